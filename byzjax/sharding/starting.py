"""Several processes that know each other: `start`, `stop`."""

import os
from typing import Any

import jax

from byzjax import checks
from byzjax.sharding import meeting, runtime

_FROZEN = "--xla_cpu_collective_timeout_seconds"


def start(
    address: str | None = None,
    num_processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = 60.0,
    dead_after: int = 5,
) -> None:
    r"""Makes this process one of several that train together, and may lose some.

    Call it before anything that needs a device. Without arguments the surroundings
    decide: Slurm, Open MPI, Kubernetes and TPU pods are recognised by
    `jax.distributed.initialize`, and where none of these is, this is the only process
    and nothing happens. So one script serves all of them.

    With an address, process 0 listens there and nowhere else: the coordinator knows no
    passwords, and JAX's own default is every interface of the machine. All processes
    meet there first, so that one that does not come, or comes twice, is an error that
    says which. With recognised surroundings JAX chooses, and
    `JAX_COORDINATOR_BIND_ADDRESS` is the interface.

    **Guarantee.** Once it returns, all processes are there. From then on one that dies
    is noticed after `dead_after` seconds at most, and on CPUs a frozen one too; what
    follows is up to `byzjax.sharding.run`. One that loses its coordinator, process 0,
    ends with a message and status 75, within the same time.

    Args:
      address: "host:port" of process 0, a port that is free there.
      num_processes: how many there are.
      process: which of them this is, from 0.
      timeout: seconds within which all must have come.
      dead_after: seconds without a sign of life, after which a process is dead, and in
        which every process must begin each step's communication. JAX's own default is
        100. On busy machines a small number declares the living dead.

    Raises:
      TypeError, ValueError: arguments that do not fit each other, an address that has
        no port, numbers out of range; called twice, or after JAX looked for devices.
      OSError: process 0 cannot listen at the address, or nobody knows the host.
      TimeoutError: processes that did not come in time, by their numbers; nobody
        listening at the address.

    Example:
      >>> import byzjax
      >>> byzjax.sharding.start()  # Alone, and on clusters.
      >>> byzjax.sharding.start("127.0.0.1:12345", num_processes=1, process=0)
      >>> byzjax.sharding.stop()

    Reference:
      `jax.distributed.initialize`, with `jax_enable_recoverability`.
    """
    given = {"address": address, "num_processes": num_processes, "process": process}
    lacking = [name for name, value in given.items() if value is None]
    if 0 < len(lacking) < len(given):
        raise ValueError(
            "sharding.start needs address, num_processes and process, or none of them, "
            f"got no {' and no '.join(lacking)}"
        )
    checks.number("sharding.start", timeout=timeout, open_interval=True, static=True)
    checks.count("sharding.start", dead_after=dead_after, minimum=1)
    if address is None:
        if runtime.recognised():
            _prepare(dead_after)
            _initialize(timeout, dead_after)
        return
    meeting.check_address(address)
    num_processes = checks.count(
        "sharding.start", num_processes=num_processes, minimum=1
    )
    process = checks.count("sharding.start", process=process)
    if process >= num_processes:
        raise ValueError(
            "sharding.start needs process < num_processes, got "
            f"process={process} and num_processes={num_processes}"
        )
    if num_processes == 1:
        return
    _prepare(dead_after)
    meeting.meet(address, num_processes, process, timeout)
    own = {"coordinator_bind_address": address} if not process else {}
    _initialize(
        timeout,
        dead_after,
        coordinator_address=address,
        num_processes=num_processes,
        process_id=process,
        cluster_detection_method="deactivate",
        **own,
    )


def stop() -> None:
    """Ends this process's part in an orderly way; process 0 waits for the others.

    Call it last, in every process. Without `start`, or in one process, nothing happens.
    """
    runtime.leave()


def _prepare(dead_after: int) -> None:
    if runtime.is_running():
        raise ValueError("sharding.start needs to be called once, got a second call")
    if runtime.has_devices():
        raise ValueError(
            "sharding.start needs to come before anything that asks JAX for devices, "
            "such as jax.devices() or an array: call it first"
        )
    # A frozen process stops no connection: others wait for it until this long.
    flags = os.environ.get("XLA_FLAGS", "")
    if _FROZEN not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FROZEN}={dead_after}".strip()
    jax.config.update("jax_enable_recoverability", True)
    # It would take SIGTERM for a notice and have the process go on.
    jax.config.update("jax_enable_preemption_service", False)


def _initialize(timeout: float, dead_after: int, **where: Any) -> None:
    runtime.end_clearly(_lost)
    jax.distributed.initialize(
        initialization_timeout=max(1, round(timeout)),
        heartbeat_timeout_seconds=dead_after,
        shutdown_timeout_seconds=dead_after,
        **where,
    )


def _lost() -> str:
    return (
        f"\nbyzjax: this process ends, with status {runtime.ENDED}; the lines above, "
        "of JAX, say why. Where they speak of the coordination service, it lost the "
        f"coordinator (process 0, at {runtime.coordinator()}): that one ended or is "
        "frozen, cannot be reached, or took this process for dead because it was "
        "silent for too long. Start all processes again: byzjax.sharding.run goes on "
        "from its latest checkpoint.\n"
    )
