"""The loop of processes that may die: `Runner`, for `run`."""

import concurrent.futures
import dataclasses
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from byzjax import checks
from byzjax.sharding import agreeing, runtime
from byzjax.sharding.checkpoints import Checkpoints
from byzjax.sharding.layout import Layout
from byzjax.sharding.loading import place
from byzjax.sharding.programs import Copy, Programs
from byzjax.trees import Tree

_MOST_FAILURES = 3
_SECONDS = 1.0  # Between two looks at whether all are alive, while saving.
_runs = itertools.count()
_log = logging.getLogger("byzjax")


class TooFewWorkers(RuntimeError):
    """The workers that are left are too few for the rule and its f; the state is saved.

    Attributes:
      state: that of the last whole step, on the survivors' devices.
      step: steps done.
      present: who is left, bools `[m]`.
    """

    def __init__(self, words: str, state: Tree, step: int, present: np.ndarray):
        super().__init__(words)
        self.state, self.step, self.present = state, step, present


class Run(NamedTuple):
    """What `run` leaves.

    Attributes:
      state: the last, on the survivors' devices.
      step: steps done, those before a restart among them.
      present: which workers were there at the end, bools `[m]`.
      layout: the survivors' devices.
    """

    state: Tree
    step: int
    present: np.ndarray  # [m]
    layout: Layout


class Built(NamedTuple):
    """What is there for one list of devices."""

    devices: list[Any]
    layout: Layout
    f: int
    present: np.ndarray
    programs: Programs


@dataclasses.dataclass
class Runner:
    """The loop of `run`: a build, a step or a save, which all survivors do or none."""

    make_trainer: Callable[[Layout, int], Any]
    inputs: tuple[Tree, ...]
    batches: Callable[[int, list[int]], Tree]
    key: jax.Array
    m: int
    f: int | Callable[[int], int]
    num_steps: int
    make_layout: Callable[[list[Any]], Layout]
    checkpoints: Checkpoints | None
    save_every: int
    copy_every: int
    on_step: Callable[[int, Any, np.ndarray], None] | None

    built: Built | None = None
    state: Any = None  # None: to be made of the copy.
    step: int = 0  # Steps done.
    copy: Copy | None = None
    reported: int = 0
    saved: int | None = None
    saving: concurrent.futures.Future[None] | None = None
    failures: int = 0
    stop: str | None = None  # Why there are too few workers.
    owners: np.ndarray | None = None  # [m] Process of each worker.
    number: int = dataclasses.field(default_factory=lambda: next(_runs))

    def run(self) -> Run:
        for number in itertools.count():
            work, built = self._next(), self.built
            own = None
            if work == "step":
                # Before others wait for it: loading may take long.
                assert built is not None
                own = self.batches(self.step, built.programs.own)
            attempt = runtime.Attempt(f"{self.number}/{number}")
            try:
                with runtime.alive() as devices:
                    try:
                        if built is None or built.devices != devices:
                            work = "build"
                        commit = self._do(work, devices, own, attempt)
                    except Exception:
                        attempt.failed()
                        raise
            except (runtime.Lost, jax.errors.JaxRuntimeError) as error:
                self._again(error)
                continue
            if not attempt.worked():
                if work == "saving":
                    continue
                self._again(RuntimeError("another process could not do its part"))
                continue
            if work in ("step", "saving"):
                self.failures = 0
            commit()
            if work == "end":
                return self._ended()
        raise AssertionError("the numbers have no end")

    def _next(self) -> str:
        if self.built is None or self.state is None:
            return "build"
        if self.saving is not None:
            return "saving"
        at_end = self.step >= self.num_steps or self.stop is not None
        due = self.step % self.save_every == 0 or at_end
        if self.checkpoints is not None and due and self.saved != self.step:
            return "save"
        return "end" if at_end else "step"

    def _again(self, error: Exception) -> None:
        """What was not done by all is as if it had not been."""
        if not runtime.is_running():
            raise error
        self.state = self.saving = None
        if isinstance(error, runtime.Lost):
            _log.warning("byzjax: %s; the others go on", error)
            return
        self.failures += 1
        if self.failures > _MOST_FAILURES:
            raise error
        _log.warning("byzjax: a step failed and is tried again: %s", error)

    # --- the work: each returns what is to be done when all have done theirs ----------

    def _do(self, work, devices, own, attempt) -> Callable[[], None]:
        if work == "build":
            return self._build(devices, attempt.name)
        if work == "save":
            return self._save()
        if work == "saving":
            return self._saving(attempt)
        if work == "step":
            return self._step(own)
        return lambda: None

    def _build(self, devices, name):
        built = self.built
        if built is None or built.devices != devices:
            built = self._for(devices)
        copy, step = self.copy, self.step
        if copy is not None:
            state, step = built.programs.placed(copy), copy.step
        else:
            state = built.programs.first(self.inputs)
            step, state = self._restored(state, built.layout)
            copy = built.programs.copied(step, state)
        agreeing.say(
            name,
            "sharding.run",
            {
                "step": step,
                "state": copy.shared,
                "arguments": {
                    "key": self.key,
                    "params": self.inputs,
                    "num_workers": self.m,
                    "num_byzantine": built.f,
                    "num_steps": self.num_steps,
                    "save_every": self.save_every,
                    "copy_every": self.copy_every,
                },
            },
        )

        def commit():
            agreeing.compare(name, "sharding.run")
            before = jax.devices() if self.built is None else self.built.devices
            if len(built.devices) < len(before):
                _log.warning(
                    "byzjax: %d of %d workers are left, without %s, after step %d, "
                    "with num_byzantine=%d",
                    built.present.sum(),
                    self.m,
                    list(built.layout.absent),
                    step,
                    built.f,
                )
            self.built, self.copy = built, copy
            self.state, self.step, self.saving = state, step, None

        return commit

    def _for(self, devices) -> Built:
        layout = self.make_layout(devices)
        if self.owners is None:  # Of all who came, though one may have died since.
            everybody = jax.devices()
            whole = layout if devices == everybody else self.make_layout(everybody)
            self.owners = _owners(whole, self.m)
        alive = {device.process_index for device in devices}
        present = np.isin(self.owners, sorted(alive))
        absent = tuple(int(worker) for worker in np.flatnonzero(~present))
        layout = Layout(layout.auto_mesh, layout.workers, layout.params, absent)
        count = int(present.sum())
        f = self.f(count) if callable(self.f) else self.f
        f = checks.count("sharding.run", num_byzantine=f)
        trainer = self.make_trainer(layout, f)
        own = self.batches(self.step, layout.workers_of_process(self.m))
        programs = Programs(
            *(trainer, layout, self.m, self.inputs),
            *(place(layout, own), self.key, present),
        )
        return Built(devices, layout, f, present, programs)

    def _restored(self, state, layout):
        if self.checkpoints is None or not self.checkpoints.steps():
            return 0, state
        step, state = self.checkpoints.restore(state, layout)
        self.saved = self.reported = step
        _log.info("byzjax: goes on from step %d of %s", step, self.checkpoints.folder)
        return step, state

    def _step(self, own):
        built = self.built
        assert built is not None
        given, self.state = self.state, None  # Donated.
        batches = place(built.layout, own)
        state, metrics = built.programs.step(given, batches, self.key, built.present)
        step, copy, stop = self.step + 1, self.copy, None
        if metrics.enough is not None and not metrics.enough:
            stop = (
                f"sharding.run needs more workers present for the rule with "
                f"num_byzantine={built.f}, got {built.present.sum()} of {self.m}, "
                f"without {list(built.layout.absent)}"
            )
        elif step % self.copy_every == 0 or step == self.num_steps:
            copy = built.programs.copied(step, state)

        def commit():
            if stop is not None:  # From the state before it, which is on the host.
                self.stop = stop
                return
            self.state, self.step, self.copy = state, step, copy
            if step > self.reported:
                self.reported = step
                if self.on_step is not None:
                    self.on_step(step, metrics, built.present)

        return commit

    def _save(self):
        built = self.built
        assert built is not None and self.checkpoints is not None
        # In a thread: orbax waits minutes for a process that died, we leave it then.
        saving: concurrent.futures.Future[None] = concurrent.futures.Future()
        arguments = self.step, self.state, built.layout
        save = self.checkpoints.save

        def work():
            try:
                saving.set_result(save(*arguments))
            except Exception as error:
                saving.set_exception(error)

        threading.Thread(target=work, daemon=True).start()

        def commit():
            self.saving = saving

        return commit

    def _saving(self, attempt):
        saving, step = self.saving, self.step
        assert saving is not None
        concurrent.futures.wait([saving], timeout=_SECONDS)
        if saving.done():
            saving.result()
        else:
            attempt.failed()  # Not yet.

        def commit():
            self.saved, self.saving = step, None

        return commit

    def _ended(self) -> Run:
        built = self.built
        assert built is not None
        if self.stop is None:
            return Run(self.state, self.step, built.present, built.layout)
        where = "" if self.checkpoints is None else f" in {self.checkpoints.folder}"
        saved = f"; the state after step {self.step} is saved{where}" if where else ""
        raise TooFewWorkers(self.stop + saved, self.state, self.step, built.present)


def on_one_axis(devices: list[Any]) -> Layout:
    """Workers on all devices."""
    mesh = Mesh(np.asarray(devices), ("workers",), axis_types=(AxisType.Auto,))
    return Layout(mesh)


def _owners(layout: Layout, m: int) -> np.ndarray:
    """The process of each worker `[m]`."""
    owners = np.full(m, -1)
    for process in layout.processes:
        for worker in layout.workers_of_process(m, process):
            if owners[worker] >= 0:
                raise ValueError(
                    "sharding.run needs each worker on the devices of one process, got "
                    f"worker {worker} on those of {owners[worker]} and {process}: put "
                    "the workers' axis first and the model's within a process"
                )
            owners[worker] = process
    return owners
