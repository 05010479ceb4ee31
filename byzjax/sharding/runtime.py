"""JAX's runtime of several processes, as far as it calls itself unstable.

All that byzjax asks of it that is not in JAX's documented interface is here: who is
alive, a store of small values at the coordinator, and how a process ends when the
coordinator is lost. Tried with jax 0.10.2 and 0.12.0.1.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import clusters, distributed, xla_bridge
from jax.experimental import multihost_utils

ENDED = 75  # EX_TEMPFAIL of sysexits.h: start it again.
_handlers: list[object] = []  # C functions, which must outlive their registration.


class Lost(Exception):
    """Some processes died while others were in an `alive` context."""


def can_lose_some() -> bool:
    """Whether processes outlive others, as `byzjax.sharding.start` has it."""
    return distributed._ENABLE_RECOVERABILITY.value


def is_running() -> bool:
    """Whether this process is one of several that know each other."""
    return distributed.global_state.client is not None


def has_devices() -> bool:
    """Whether JAX has looked for its devices: after that its options are fixed."""
    return xla_bridge.backends_are_initialized()


def recognised() -> bool:
    """Whether JAX knows these surroundings, and they say that processes are several."""
    kinds = clusters.ClusterEnv._cluster_types
    for kind in kinds:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind.get_process_count() > 1
    return False


def coordinator() -> str | None:
    """The address of the coordinator, as given or found."""
    return distributed.global_state.coordinator_address


@contextlib.contextmanager
def alive() -> Iterator[list[Any]]:
    """Devices of the processes that are alive, the same list for all of them.

    It waits until all of these have come, and at its end until they have left it.

    Raises:
      Lost: at its end, in every survivor, when a process died inside of it.
    """
    if not is_running():
        yield jax.devices()
        return
    try:
        with multihost_utils.live_devices(jax.devices()) as devices:
            yield list(devices)
    except multihost_utils.ProcessFailureError as error:
        died = sorted({device.process_index for device in error.failed_devices})
        raise Lost(f"processes {died} died") from error


class Attempt:
    """One try of something that all processes do together: it worked for all or none.

    What one process could not do it says before it leaves `alive`, so that the others
    know when they have left it.

    Args:
      name: the same in all processes, and never used before.
    """

    def __init__(self, name: str):
        self.name = f"byzjax/attempts/{name}"

    def failed(self) -> None:
        """Says that it did not work here."""
        if is_running():
            _client().key_value_set(self.name, "failed", allow_overwrite=True)

    def worked(self) -> bool:
        """Whether no process said otherwise; asked after all of them left `alive`."""
        if not is_running():
            return True
        try:
            _client().key_value_try_get(self.name)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return True
            raise
        return False


def say(name: str, text: str) -> None:
    """Leaves a text for the others, under a name that was never used before."""
    if is_running():
        _client().key_value_set(f"byzjax/said/{name}/{jax.process_index()}", text)


def said(name: str) -> dict[int, str]:
    """What each process has said under a name, by its number."""
    found = _client().key_value_dir_get(f"byzjax/said/{name}/") if is_running() else []
    return {int(key.rsplit("/", 1)[1]): text for key, text in found}


def wait(name: str, timeout: float) -> None:
    """Waits until all processes have come, at most so many seconds.

    Where some may die, `alive` is what waits: here they are waited for to the end.

    Raises:
      TimeoutError: one of them did not come.
    """
    if not is_running():
        return
    try:
        _client().wait_at_barrier(f"byzjax/{name}", int(1000 * timeout))
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError(
            f"needs all {jax.process_count()} processes to come within {timeout:g} s, "
            f"got: {error}"
        ) from error


def leave() -> None:
    """Ends this process's part; the coordinator waits until all others have left."""
    if not is_running():
        return
    if not jax.process_index():
        everybody = list(range(jax.process_count()))
        # Waits each time until those alive ask as well, or have left.
        while len(_client().get_live_nodes(everybody)) > 1:
            pass
    _restore()
    jax.distributed.shutdown()


def end_clearly(message: Callable[[], str]) -> None:
    """Has a process that loses its coordinator end with a message and `ENDED`.

    JAX's client then calls `abort()` from a thread of its own, with no way for Python
    to know before: a handler of that signal is what is left. It runs in that thread,
    which holds no lock but takes the interpreter's for a moment; JAX holds that nowhere
    while it waits.
    """

    def handler(number):
        # Another thread may hold the lock of what it prints to: no longer than this.
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(1.0)
        os.write(2, message().encode())
        os._exit(ENDED)

    function = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    _handlers.append(function)
    _libc_signal(function)


def _libc_signal(function):
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(int(signal.SIGABRT), ctypes.cast(function, ctypes.c_void_p))


def _restore():
    if _handlers:
        _libc_signal(ctypes.c_void_p(None))  # SIG_DFL.


def _client():
    client = distributed.global_state.client
    assert client is not None
    return client
