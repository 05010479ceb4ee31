"""Training that goes on when processes die: `run`."""

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


def run(
    make_trainer: Callable[[Layout, int], Any],
    params: Tree,
    batches: Callable[[int, list[int]], Tree],
    key: jax.Array,
    *,
    num_workers: int,
    num_byzantine: int | Callable[[int], int],
    num_steps: int,
    model_state: Tree = None,
    make_layout: Callable[[list[Any]], Layout] | None = None,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    copy_every: int = 1,
    on_step: Callable[[int, Any, np.ndarray], None] | None = None,
) -> Run:
    r"""Trains on all processes of `byzjax.sharding.start`, and on when some die.

    Workers belong to the process on whose devices they lie. When it dies, is killed or
    is frozen, they are absent from then on: the others' rows stay where they are, on a
    mesh of the devices that are left, and rules see who is `present`. m stays what it
    was. All processes call this with the same arguments, and with their own workers'
    batches. In one process it is a plain loop.

    **Guarantee.** Each step is applied once, with the batches of those present, or by
    no process: the result is that of `trainer.step` with the same history of `present`,
    whenever processes die. Every copy in memory is of a step that all survivors
    finished; from it they repeat what came after. When process 0 dies, which is the
    coordinator, the others end with status 75 and a message, and a new start goes on
    from the latest checkpoint, with all workers. What is not covered: a process that
    sends wrong numbers is the rule's matter; one that hangs in Python but lives is
    waited for.

    Args:
      make_trainer: of a layout and f, the trainer: `trainer(..., layout=layout)` with
        a rule of that f. It is called again after each loss.
      params: the first parameters, the same in all processes.
      batches: of a step from 0 and worker numbers, leaves `[k, b, ...]` of these
        workers' batches of that step, NumPy arrays. It is asked for this process's own,
        and after a loss perhaps for a step once more: same step, same batches.
      key: step t has `jax.random.fold_in(key, t)`.
      num_workers: m, a multiple of the devices that workers lie on.
      num_byzantine: f, kept whoever dies, which is safe: all attackers may be left. Or
        a function of the number of workers present, such as `lambda n: (n - 1) // 4`,
        which says that attackers die as others do.
      num_steps: in all, those before a restart among them.
      model_state: as `trainer.init` takes it.
      make_layout: of devices that are left, the layout; None: workers on one axis. Each
        worker is to lie on the devices of one process.
      checkpoints: where states are saved, and the latest is taken up from; None:
        nowhere.
      save_every: steps from one checkpoint to the next; there is one at the end, too.
      copy_every: steps from one copy in memory to the next. It holds the parameters and
        all that is like them, and the own workers' states; a loss repeats up to so many
        steps.
      on_step: called in each process with the number of steps done, the step's metrics
        as NumPy arrays, and who was present. Repeated steps are reported once.

    Returns:
      A `Run`.

    Raises:
      TooFewWorkers: by the rule's own `enough`; the state is saved first.
      TypeError, ValueError: wrong arguments, processes with other values of them, a
        rule that does not know of `present`, more processes without `start`.
      Exception: what a user's function raises ends that process, and it is dead for
        the others.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, numpy as np, optax
      >>> def make_trainer(layout, f):
      ...     return byzjax.trainer(
      ...         lambda params, batch: jnp.mean((params[None] - batch) ** 2),
      ...         aggregator=byzjax.ctma(byzjax.median(), num_byzantine=f),
      ...         server=optax.sgd(0.5),
      ...         num_workers=6, layout=layout,
      ...     )
      >>> byzjax.sharding.start()
      >>> done = byzjax.sharding.run(
      ...     make_trainer, jnp.zeros(2),
      ...     lambda step, workers: np.ones((len(workers), 4, 2), np.float32),
      ...     jax.random.key(0), num_workers=6, num_byzantine=1, num_steps=3,
      ... )
      >>> print(done.step, done.state.params, done.present.sum())
      3 [0.875 0.875] 6
      >>> byzjax.sharding.stop()
    """
    name = "sharding.run"
    for given, value in (("save_every", save_every), ("copy_every", copy_every)):
        checks.count(name, minimum=1, **{given: value})
    checks.count(name, num_workers=num_workers, minimum=1)
    checks.count(name, num_steps=num_steps)
    if not callable(num_byzantine):
        checks.count(name, num_byzantine=num_byzantine)
    checks.key(name, key)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"{name} needs checkpoints to be a byzjax.sharding.Checkpoints, got "
            f"{checkpoints!r}"
        )
    if jax.process_count() > 1 and not runtime.can_lose_some():
        raise ValueError(
            f"{name} needs byzjax.sharding.start in place of jax.distributed.initialize"
        )
    return _Runner(
        make_trainer=make_trainer,
        inputs=(params,) if model_state is None else (params, model_state),
        batches=batches,
        key=key,
        m=num_workers,
        f=num_byzantine,
        num_steps=num_steps,
        make_layout=make_layout or _on_one_axis,
        checkpoints=checkpoints,
        save_every=save_every,
        copy_every=copy_every,
        on_step=on_step,
    ).run()


class _Built(NamedTuple):
    """What is there for one list of devices."""

    devices: list[Any]
    layout: Layout
    f: int
    present: np.ndarray
    programs: Programs


@dataclasses.dataclass
class _Runner:
    """The loop: a build or a step at a time, which all survivors do or none."""

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

    built: _Built | None = None
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
            if self.built is not None and len(built.devices) < len(self.built.devices):
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
            self.state, self.step = state, step

        return commit

    def _for(self, devices) -> _Built:
        layout = self.make_layout(devices)
        if self.owners is None:
            self.owners = _owners(layout, self.m)
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
        return _Built(devices, layout, f, present, programs)

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


def _on_one_axis(devices: list[Any]) -> Layout:
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
