"""Calls that the benchmarks time in a process of their own."""

import multiprocessing
import os
import pathlib
import sys
import time

import pytest

from benchmarks import report
from benchmarks.apart import Call, Process, turn

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


def test_of_queued_calls_the_mean_is_taken():
    done = []

    def call():
        time.sleep(PAUSE)
        done.append("call")
        return len(done)

    def wait(results):
        done.append(results)

    seconds = turn(Call(call, wait=wait, queued=3))
    assert PAUSE <= seconds < 3 * PAUSE
    # A warm-up, and what counts.
    assert done == [*["call"] * 3, [1, 2, 3], *["call"] * 3, [5, 6, 7]]


def test_a_record_is_told_by_what_it_is_of():
    seconds = {"low": 0.001, "median": 0.002, "high": 0.003}
    record = {"rule": "krum", "m": 17, "d": 100, "seconds": seconds}
    assert report.line(record) == "rule krum, m 17, d 100, 2.00 (1.00 to 3.00) ms"
    assert report.line({"runs": 4, "mapped": seconds}).startswith("runs 4, 2.00 (")


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
