"""Any transformation of optax for each row of a stack."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, trees, written
from byzjax.attack import Attack
from byzjax.base import Aggregator
from byzjax.trees import Tree


def per_worker(
    transform: optax.GradientTransformation | optax.MultiSteps, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    """Any optax transformation for each row, so that it may stand before a rule.

        chain(per_worker(momentum(0.9), m), ctma(nnm(median(), f), f), sgd(0.1))

    Each worker has a state of its own, as in `byzjax.trainer(worker=...)`, and its rows
    alone enter it: `optax.clip_by_global_norm` clips each gradient by its own length,
    `optax.MultiSteps` accumulates each worker's, `optax.masked` leaves out leaves.

    Params and extra arguments are those of all workers, not stacked. An extra argument
    that is a function returns stacked results, of which each worker is given its row:
    for `storm`, pass `grad_fn=lambda at: jax.vmap(grad, (None, 0))(at, batches)`.

    **Guarantee**: row i of the result depends on row i and worker i's history alone. A
    row that is not finite, or becomes so in the result or the state, is passed on and
    leaves that worker's state as it was; so does a worker's absence. But `MultiSteps`
    of all workers end together, so that a missed step counts, and `storm` begins anew
    after an absence, as its d was of another point. Typed random keys in a state,
    `jax.random.key`, are made different for each worker. The same as a loop over the
    workers; one program under jit.

    Args:
      transform: an optax transformation of one worker's updates.
      num_workers: m, the number of rows.

    Returns:
      An optax transformation, stacked to stacked, `[m, ...]`; `init` takes unstacked
      params, as in any chain with a rule. Its state is that of `transform` with leaves
      `[m, ...]`.

    Raises:
      TypeError: if `transform` is no optax transformation of one worker's updates.
      ValueError: num_workers < 1; in `update`, updates that are not `[m, ...]`.

    Example:
      >>> import byzjax, jax.numpy as jnp, optax
      >>> optimizer = optax.chain(
      ...     byzjax.per_worker(optax.clip_by_global_norm(1.0), num_workers=3),
      ...     byzjax.mean(),
      ... )
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[0.6, 0.8], [3.0, 4.0], [30.0, 40.0]])
      >>> update, state = optimizer.update(gradients, optimizer.init(params), params)
      >>> print(update)
      [0.6 0.8]
    """
    if isinstance(transform, Aggregator | Attack):
        raise TypeError(
            "per_worker needs transform to be of one worker's updates, got "
            f"{transform!r}, which reads those of all: put it after per_worker(...) in "
            "an optax.chain"
        )
    if written.made_by(transform, "per_worker"):
        raise TypeError(
            "per_worker needs transform to be of one worker's updates, got "
            f"{transform!r}, which is of each worker's already: once is enough"
        )
    if isinstance(transform, optax.MultiSteps):
        transform = transform.gradient_transformation()
    if not isinstance(transform, optax.GradientTransformation):
        raise TypeError(
            "per_worker needs transform to be an optax.GradientTransformation, got "
            f"{transform!r}{written.not_called(transform)}"
        )
    m = checks.count("per_worker", num_workers=num_workers, minimum=1)
    one = optax.with_extra_args_support(transform)

    def init(params):
        return copies(one.init(params), m)

    def update(updates, state, params=None, *, present=None, **extra):
        rows = checks.stacked(updates, params)
        if rows != m:
            raise ValueError(
                f"per_worker needs updates of num_workers={m} rows, got {rows}"
            )

        if present is not None:
            present = jnp.asarray(checks.present("per_worker", present, m))

        def of_worker(updates, state, worker):
            def row_of(function):
                def own(*args, **kwargs):
                    return jax.tree.map(lambda x: x[worker], function(*args, **kwargs))

                return own

            own = {k: row_of(v) if callable(v) else v for k, v in extra.items()}
            message, after = one.update(updates, state, params, **own)
            good = trees.all_finite((updates, message))
            good &= trees.stays_finite(after, state)
            if present is not None:
                good &= present[worker]
            return message, trees.after_step(good, after, state)

        workers = jnp.arange(m, dtype=jnp.int32)
        return jax.vmap(of_worker)(trees.as_arrays(updates), state, workers)

    return optax.GradientTransformationExtraArgs(init, update)


def copies(state: Any, count: int) -> Tree:
    """One state a worker, leaves `[count, ...]`; typed keys become keys of their own.

    Were they the same, all workers would add the same noise.
    """

    def of_leaf(x):
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jnp.repeat(x[None], count, axis=0)
        own = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
        return own(x.ravel(), jnp.arange(count)).reshape(count, *x.shape)

    return jax.tree.map(of_leaf, state)
