"""All processes at one address, before JAX's runtime starts: `meet`.

JAX ends a process by `abort()` when another does not come, and says not who is missing.
So they meet here first, at the address that its coordinator then has: one line of JSON
each way. As the coordinator itself it trusts whoever reaches the address.
"""

import contextlib
import json
import socket
import time
from typing import Any

_MOST_BYTES = 200
_PAUSE = 0.1


def check_address(address: Any) -> tuple[str, int]:
    """Host and port of "host:port"."""
    if not isinstance(address, str):
        raise TypeError(
            f'sharding.start needs address to be "host:port", got address={address!r}'
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise ValueError(
            f'sharding.start needs address to be "host:port", got address={address!r}'
        )
    if not 0 < int(port) < 2**16:
        raise ValueError(
            f"sharding.start needs a port of 1 to 65535, got address={address!r}"
        )
    return host.strip("[]"), int(port)


def meet(address: str, num_processes: int, process: int, timeout: float) -> None:
    """Returns when all processes have come to the address.

    Raises:
      OSError: process 0 cannot listen there, or nobody knows the host.
      TimeoutError: someone did not come, or nobody listens there.
      ValueError: two processes of one number, or of different numbers of processes.
    """
    host, port = check_address(address)
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise OSError(
            error.errno,
            f"sharding.start needs a host that is known, got address={address!r}: "
            f"{error.strerror}",
        ) from error
    until = time.monotonic() + timeout
    if process:
        words = _come(family, kind, where, num_processes, process, until)
        if words is None:
            raise TimeoutError(
                "sharding.start needs process 0 to listen at the address within "
                f"{timeout:g} s, got address={address!r} and no answer: is it the "
                "address of process 0, and does that run?"
            )
        if words:
            raise (TimeoutError if "within" in words else ValueError)(words)
        return
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
        except OSError as error:
            raise OSError(
                error.errno,
                "sharding.start needs process 0 to listen at the address, a free port "
                f"of its own machine, got address={address!r}: {error.strerror}",
            ) from error
        listener.listen(num_processes + 8)
        words = _wait(listener, num_processes, timeout, until)
    if words:
        raise (TimeoutError if "within" in words else ValueError)(words)


def _wait(listener, num_processes, timeout, until) -> str:
    """Process 0's part: what is wrong, "" if nothing is; the others are told."""
    with contextlib.ExitStack() as held:
        came: dict[int, socket.socket] = {}
        words = ""
        while len(came) < num_processes - 1 and not words:
            left = until - time.monotonic()
            if left <= 0:
                missing = sorted(set(range(1, num_processes)) - set(came))
                words = (
                    f"sharding.start needs all {num_processes} processes to come "
                    f"within {timeout:g} s, got none of {_some(missing)}"
                )
                break
            listener.settimeout(left)
            try:
                other = held.enter_context(listener.accept()[0])
                other.settimeout(min(2.0, max(left, 0.1)))
                said = json.loads(_line(other))
                number, count = int(said["process"]), int(said["num_processes"])
            except (OSError, ValueError, TypeError, KeyError):
                continue  # Not one of ours.
            if count != num_processes:
                words = (
                    "sharding.start needs one num_processes in all processes, got "
                    f"{num_processes} in process 0 and {count} in process {number}"
                )
            elif number in came or not 0 < number < num_processes:
                words = (
                    "sharding.start needs each process to have a number of its own, "
                    f"got process={number} twice"
                )
            came[number if number not in came else -1] = other
        for other in came.values():
            with contextlib.suppress(OSError):
                other.sendall(json.dumps({"words": words}).encode() + b"\n")
        return words


def _come(family, kind, where, num_processes, process, until) -> str | None:
    """Another's part: what process 0 says, or None if it says nothing."""
    said = {"process": process, "num_processes": num_processes}
    # A little longer than process 0, which knows who is missing.
    while (left := until + 2.0 - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            socket.socket(family, kind) as other,
        ):
            other.settimeout(left)
            other.connect(where)
            other.sendall(json.dumps(said).encode() + b"\n")
            return str(json.loads(_line(other))["words"])
        time.sleep(_PAUSE)
    return None


def _line(other) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = other.recv(_MOST_BYTES)
        found += more
        if not more or len(found) > 10 * _MOST_BYTES:
            raise ValueError("not a line")
    return found


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} … ({len(numbers)} in all)"
