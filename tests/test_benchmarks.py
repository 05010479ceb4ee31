"""Calls that the benchmarks time in a process of their own."""

import os
import pathlib
import time

import pytest

from benchmarks.apart import Call, Process

PAUSE = 0.2


def calls(log: pathlib.Path):
    def note(word):
        with log.open("a") as file:
            file.write(f"{word} {os.getpid()}\n")

    def slow(word):
        time.sleep(PAUSE)
        note(word)

    return {
        "slow": Call(lambda: slow("slow")),
        "prepared": Call(lambda: note("call"), before=lambda: slow("before")),
        "broken": Call(lambda: 1 / 0),
        "dead": Call(lambda: os._exit(3)),
    }


def test_calls_are_timed_over_there(tmp_path):
    log = tmp_path / "log"
    with Process(calls, log) as there:
        turns = there.turns()
        assert turns["slow"]() >= PAUSE
        assert 0 < turns["prepared"]() < PAUSE
    lines = [line.split() for line in log.read_text().splitlines()]
    # A call that warms up and one that counts, each prepared for.
    words = ["slow"] * 2 + ["before", "call"] * 2
    assert [word for word, _ in lines] == words
    processes = {process for _, process in lines}
    assert len(processes) == 1 and str(os.getpid()) not in processes


@pytest.mark.parametrize(
    ("name", "said"),
    [("broken", "ZeroDivisionError"), ("dead", "ended by itself, exit code 3")],
)
def test_what_goes_wrong_over_there_is_said_here(name, said, tmp_path):
    with Process(calls, tmp_path) as there, pytest.raises(RuntimeError, match=said):
        there.turns()[name]()


def test_calls_that_cannot_be_made_are_an_error():
    with pytest.raises(RuntimeError, match="missing 1 required positional argument"):
        Process(calls).__enter__()
