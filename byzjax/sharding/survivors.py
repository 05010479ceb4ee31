"""Training that goes on when processes die: `run`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from byzjax import checks
from byzjax.sharding import runtime
from byzjax.sharding.checkpoints import Checkpoints
from byzjax.sharding.layout import Layout
from byzjax.sharding.runner import Run, Runner, on_one_axis
from byzjax.trees import Tree


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
      make_layout: of devices that are left, or of all, the layout; None: workers on one
        axis. Each worker is to lie on the devices of one process.
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
    return Runner(
        make_trainer=make_trainer,
        inputs=(params,) if model_state is None else (params, model_state),
        batches=batches,
        key=key,
        m=num_workers,
        f=num_byzantine,
        num_steps=num_steps,
        make_layout=make_layout or on_one_axis,
        checkpoints=checkpoints,
        save_every=save_every,
        copy_every=copy_every,
        on_step=on_step,
    ).run()
