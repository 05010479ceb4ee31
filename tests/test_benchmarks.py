"""Calls that the benchmarks time in a process of their own."""

import multiprocessing
import os
import pathlib
import sys
import time

import pytest

from benchmarks.apart import Call, Process

PAUSE = 0.2


def logging(log: pathlib.Path) -> Call:
    def note(word):
        with log.open("a") as file:
            file.write(f"{word} {os.getpid()} {'jax' in sys.modules}\n")

    def before():
        time.sleep(PAUSE)
        note("before")

    return Call(lambda: note("call"), before=before)


def sleeping() -> Call:
    return Call(lambda: time.sleep(PAUSE))


def broken() -> Call:
    return Call(lambda: 1 / 0)


def leaving() -> Call:
    return Call(lambda: os._exit(3))


def test_a_call_is_timed_over_there():
    with Process(sleeping) as there:
        assert there.turn() >= PAUSE


def test_what_comes_before_a_call_is_not_timed(tmp_path):
    log = tmp_path / "log"
    with Process(logging, log) as there:
        assert 0 < there.turn() < PAUSE
    lines = [line.split() for line in log.read_text().splitlines()]
    # A call that warms up and one that counts, each prepared for.
    assert [word for word, *_ in lines] == ["before", "call"] * 2
    processes = {process for _, process, _ in lines}
    assert len(processes) == 1 and str(os.getpid()) not in processes
    assert {has_jax for *_, has_jax in lines} == {"False"}


@pytest.mark.parametrize(
    ("make", "said"),
    [(broken, "ZeroDivisionError"), (leaving, "ended by itself, exit code 3")],
)
def test_what_goes_wrong_over_there_is_said_here(make, said):
    with Process(make) as there, pytest.raises(RuntimeError, match=said):
        there.turn()


def test_a_call_that_cannot_be_made_is_an_error():
    with Process(broken, "unexpected") as there:
        while multiprocessing.active_children():
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="takes 0 positional arguments"):
            there.turn()
