"""Processes that meet before JAX starts: here they are threads."""

import socket
import threading
import time

import jax
import pytest

from byzjax import sharding
from byzjax.sharding.meeting import meet
from tests.sharding.processes import free_address


def outcomes(numbers, *, count=3, timeout=20.0, address=None, counts=None):
    """What each said or raised, in order."""
    address, found = address or free_address(), {}

    def one(place, number):
        own = (counts or {}).get(number, count)
        try:
            found[place] = meet(address, own, number, timeout)
        except Exception as error:
            found[place] = error

    threads = [
        threading.Thread(target=one, args=pair, daemon=True)
        for pair in enumerate(numbers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[place] for place in range(len(numbers))]


def test_all_go_on_when_all_have_come():
    assert outcomes([2, 0, 1]) == [None, None, None]


def test_strangers_are_not_counted():
    address = free_address()
    host, port = address.rsplit(":", 1)

    def stranger():
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": "x"}\n', b""):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    with socket.create_connection((host, int(port)), 1) as other:
                        other.sendall(words)
                    break
                except OSError:
                    time.sleep(0.02)

    first = threading.Thread(target=stranger, daemon=True)
    first.start()
    assert outcomes([0, 1], count=2, address=address) == [None, None]


def test_who_is_missing_is_named_to_all():
    for error in outcomes([0, 2], timeout=1.0):
        assert isinstance(error, TimeoutError)
        assert "all 3 processes to come within 1 s, got none of 1" in str(error)


@pytest.mark.parametrize(
    "numbers, counts, words",
    [
        ([0, 1, 1], {}, "got process=1 twice"),
        ([0, 1], {1: 4}, "got 3 in process 0 and 4 in process 1"),
    ],
)
def test_those_who_contradict_each_other_are_told(numbers, counts, words):
    for error in outcomes(numbers, counts=counts):
        assert isinstance(error, ValueError) and words in str(error)


def test_a_wrong_address_is_an_error_in_time():
    (error,) = outcomes([1], timeout=0.5)
    assert isinstance(error, TimeoutError) and "process 0 to listen" in str(error)
    (error,) = outcomes([0], timeout=0.5, address="192.0.2.1:12345")
    assert isinstance(error, OSError) and "192.0.2.1:12345" in str(error)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (error,) = outcomes([0], timeout=0.5, address=address)
    assert isinstance(error, OSError) and "a free port" in str(error)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("127.0.0.1:12345", 2), "no process"),
        (("127.0.0.1", 2, 0), "host:port"),
        (("127.0.0.1:123456", 2, 0), "65535"),
        (("127.0.0.1:12345", 2, 2), "process=2 and num_processes=2"),
        (("127.0.0.1:12345", 0, 0), "num_processes >= 1"),
        (("127.0.0.1:12345", 2, 0), "call it first"),
    ],
)
def test_start_refuses_what_does_not_fit(arguments, words):
    jax.devices()
    with pytest.raises(ValueError, match=words):
        sharding.start(*arguments)
    with pytest.raises(TypeError, match="address=7"):
        sharding.start(7, 2, 0)


def test_alone_nothing_is_started():
    sharding.start()
    sharding.start("127.0.0.1:12345", 1, 0)
    sharding.agree(key=3)
    sharding.stop()
