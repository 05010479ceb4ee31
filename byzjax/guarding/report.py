"""The account as a table that names devices and processes: `guard_report`."""

import types
from typing import Any, NamedTuple

import jax
import numpy as np

from byzjax.guarding.account import GuardState
from byzjax.sharding.layout import Layout
from byzjax.sharding.way import check_layout


class WorkerReport(NamedTuple):
    """What a guard knows of one worker.

    Attributes:
      worker: its row, 0 to m − 1.
      devices: the devices that it lies on, as JAX names them; empty without a layout.
      process: the index of their process; None without a layout.
      suspected: the verdict.
      since: the step of its latest alarm, counted from 0; None without one.
      alarms: how often the verdict was made or renewed.
      steps: in which it was compared with others.
      farthest: of these, those in which it was the farthest out.
      outside: of these, those that the robust rule had to serve for it.
      broken: steps in which its row was not finite.
      largest: how many times as far out as the middle worker it was at most.
      once_in: a clean run shows evidence as strong as the strongest against it, against
        any worker, once in so many steps; 1 / `false_alarms` is an alarm.
    """

    worker: int
    devices: tuple[str, ...]
    process: int | None
    suspected: bool
    since: int | None
    alarms: int
    steps: int
    farthest: int
    outside: int
    broken: int
    largest: float
    once_in: float


class GuardReport(NamedTuple):
    """A guard's account of all workers, printed as a table.

    Attributes:
      step: updates so far.
      workers: one `WorkerReport` each, in order.
    """

    step: int
    workers: tuple[WorkerReport, ...]

    @property
    def suspects(self) -> tuple[WorkerReport, ...]:
        """Those under suspicion."""
        return tuple(worker for worker in self.workers if worker.suspected)

    def __str__(self) -> str:
        head = (
            *("worker", "process", "devices", "verdict", "alarms", "farthest"),
            *("outside", "not finite", "at most", "once in"),
        )
        rows = [head, *map(_cells, self.workers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [x.ljust(width) for x, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([f"after {self.step} steps", *lines])


def guard_report(state: Any, layout: Layout | None = None) -> GuardReport:
    """What a guard knows of every worker, with the names of devices; on the host.

    Args:
      state: a `GuardState`, or what holds one: the state of a chain, a `TrainState`.
      layout: where the workers lie, for the names of devices and processes.

    Returns:
      A `GuardReport`; `print` shows it as a table.

    Raises:
      TypeError: something other than a layout.
      ValueError: a state with no `GuardState` in it, or with several.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, optax
      >>> layout = byzjax.sharding.Layout(jax.make_mesh((1,), ("workers",)))
      >>> optimizer = optax.chain(byzjax.guard(byzjax.median(), 4), optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(2))
      >>> rows = jnp.ones((4, 2)).at[2, 0].set(jnp.nan)
      >>> _, state = optimizer.update(rows, state)
      >>> suspect, = byzjax.guard_report(state, layout).suspects
      >>> suspect.worker, suspect.process, suspect.broken
      (2, 0, 1)
    """
    if layout is not None:
        check_layout("guard_report", layout)
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, GuardState))
    states = [leaf for leaf in leaves if isinstance(leaf, GuardState)]
    if len(states) != 1:
        raise ValueError(
            "guard_report needs a state with one GuardState in it, got "
            f"{len(states)} in a {type(state).__name__}"
        )
    found = states[0]._asdict()
    del found["rule_state"]
    known = types.SimpleNamespace(**{k: _on_host(x) for k, x in found.items()})
    m = len(known.suspected)
    places = [[] for _ in range(m)] if layout is None else _places(layout, m)
    with np.errstate(over="ignore"):
        once_in = np.maximum(np.expm1(known.strongest.astype(float)) / m, 0)
    workers = tuple(
        WorkerReport(
            worker=i,
            devices=tuple(str(device) for device in places[i]),
            process=places[i][0].process_index if places[i] else None,
            suspected=bool(known.suspected[i]),
            since=int(known.since[i]) if known.since[i] >= 0 else None,
            alarms=int(known.alarms[i]),
            steps=int(known.steps[i]),
            farthest=int(known.farthest[i]),
            outside=int(known.outside[i]),
            broken=int(known.broken[i]),
            largest=float(known.largest[i]),
            once_in=float(once_in[i]),
        )
        for i in range(m)
    )
    return GuardReport(int(known.step), workers)


def _on_host(x):
    """NumPy's; of an array of many processes this one's copy."""
    whole = not isinstance(x, jax.Array) or x.is_fully_addressable
    return np.asarray(x if whole else x.addressable_data(0))


def _places(layout, m):
    """The devices of each worker, those of a process beside each other.

    None of those who are absent from the layout: the others lie on all devices.
    """
    live = layout.live(m)
    padded = len(live) + -len(live) % layout.num_worker_shards
    places: list[list[Any]] = [[] for _ in range(m)]
    for device, index in layout.batches.devices_indices_map((padded,)).items():
        for worker in live[index[0]]:
            places[worker].append(device)
    return [
        sorted(devices, key=lambda x: (x.process_index, x.id)) for devices in places
    ]


def _cells(report):
    """A worker's line of the table."""
    verdict = f"suspected since step {report.since}" if report.suspected else "well"
    return (
        str(report.worker),
        "-" if report.process is None else str(report.process),
        ", ".join(report.devices) or "-",
        verdict,
        str(report.alarms),
        f"{report.farthest} of {report.steps}",
        str(report.outside),
        str(report.broken),
        f"{report.largest:.2f}x",
        f"{report.once_in:.3g}",
    )
