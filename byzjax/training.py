"""One training step under attack, as a pure function: `trainer`.

Workers are a vmapped batch axis. A step is gradients, worker transform, attack,
aggregator, server transform, in this order; a run is `lax.scan` over steps and a sweep
over seeds is `vmap` over runs, each of them one XLA program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import base, columns, stacked, workers
from byzjax.aggregators.coordinatewise import median
from byzjax.base import Aggregator, Attack, Tree


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    step: jax.Array  # [], int32, steps done.
    params: Tree  # x_t, where gradients are taken.
    prev_params: Tree  # x_{t-1}; x_1 before the first step.
    model_state: Tree  # Running statistics, as aggregated; None if there are none.
    worker_state: Tree  # State of the worker transform, stacked.
    attack_state: Tree
    aggregator_state: Tree
    server_state: Tree
    model_rule_states: Tree  # States of the attack on and rule for model state.


class Metrics(NamedTuple):
    """What a step reports, all scalars."""

    loss: jax.Array  # Mean loss of the honest workers, before the update.
    aggregate_norm: jax.Array  # ‖A‖, the norm of the aggregate.
    honest_distance: jax.Array  # ‖A − mean of the honest messages‖.


class Trainer(NamedTuple):
    """A pure pair: `init(params, model_state=None)` and `step(state, batches, key)`."""

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]


def trainer(
    loss_fn: Callable[..., Any],
    *,
    aggregator: optax.GradientTransformation,
    server: optax.GradientTransformation,
    num_workers: int,
    num_byzantine: int = 0,
    worker: optax.GradientTransformation | None = None,
    attack: Attack | None = None,
    poison: Callable[[Any], Any] | None = None,
    max_grad_norm: float | None = None,
    has_model_state: bool = False,
    model_state_aggregator: Aggregator | None = None,
    model_state_attack: Attack | None = None,
    workers_at_once: int | None = None,
) -> Trainer:
    r"""Synchronous training with m workers of which the last f are Byzantine.

    .. math::
      g^i = \nabla f(x_t; z^i), \quad d^i = \mathrm{worker}(g^i), \quad
      \hat d = A(d^1, \dots, \mathrm{attack}(\dots)), \quad
      x_{t+1} = \mathrm{server}(x_t, \hat d)

    The worker transform is given `grad_fn` (the gradient on the same sample at other
    parameters) and `prev_params`, which μ²-SGD's `storm` needs and other optax
    transformations ignore. An attack that reads only the honest messages costs no
    Byzantine gradients: the last f batches are then not touched.

    The f that the rule assumes is the rule's own argument; `num_byzantine` here is how
    many attackers there really are.

    Args:
      loss_fn: `loss_fn(params, batch)` → scalar loss of one worker's batch, or, with
        `has_model_state`, `loss_fn(params, model_state, batch)` → (loss, new state).
      aggregator: stacked messages `[m, ...]` → `[...]`, such as
        `byzjax.ctma(byzjax.median(), num_byzantine=8)`.
      server: optax transformation of the aggregate, such as `optax.sgd(0.1)` or
        `byzjax.anytime(optax.sgd(0.1))`.
      num_workers: m.
      num_byzantine: f, the workers of the last f rows attack.
      worker: optax transformation of each worker's gradient, such as
        `byzjax.momentum(0.9)` or `byzjax.storm()`; None sends plain gradients. One that
        draws noise does so for each worker if its key is a typed one, `jax.random.key`.
      attack: what the Byzantine workers send; None: they follow the protocol.
      poison: batch → batch, applied to the Byzantine workers' data, such as
        `byzjax.poisoning.label_flip(10)`.
      max_grad_norm: each worker's gradient is scaled down to this norm, if larger.
      has_model_state: whether `loss_fn` has the second form.
      model_state_aggregator: rule for the workers' new model states, by default the
        coordinate-wise median. Never an unprotected mean unless you say so.
      model_state_attack: what the Byzantine workers send as model state; None: what
        they computed, or copies of honest workers' where they compute nothing.
      workers_at_once: how many workers' gradients are computed together, at most;
        None is all. Chunks need less memory; on CPUs they can be faster for it, on
        GPUs they are slower.

    Returns:
      A `Trainer`. `init(params, model_state=None)` → `TrainState`;
      `step(state, batches, key, **extra)` → (`TrainState`, `Metrics`), with leaves of
      batches `[m, b, ...]`, `key` for attacks and rules that draw, and `extra`, such as
      `weights`, for the aggregator. Jit it, scan it, vmap it, donate its state.

    Raises:
      TypeError: an aggregator, server, worker or attack of the wrong kind.
      ValueError: f ≥ m, poisoned data that no attack would send; at trace time batches
        of another number of workers, or an aggregate, update or model state that has
        not the shapes of what it belongs to.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, optax
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((params[None] - batch) ** 2)
      >>> trainer = byzjax.trainer(
      ...     loss_fn,
      ...     worker=byzjax.storm(),
      ...     attack=byzjax.attacks.sign_flip(),
      ...     aggregator=byzjax.ctma(byzjax.geometric_median(), num_byzantine=2),
      ...     server=byzjax.anytime(optax.sgd(0.1)),
      ...     num_workers=5, num_byzantine=2,
      ... )
      >>> state = trainer.init(jnp.zeros(3))
      >>> batches = jnp.ones((5, 4, 3))
      >>> step = jax.jit(trainer.step)
      >>> for key in jax.random.split(jax.random.key(0), 50):
      ...     state, metrics = step(state, batches, key)
      >>> print(state.params.round(1))
      [1. 1. 1.]
    """
    m = base.check_count("trainer", num_workers=num_workers, minimum=1)
    f = base.check_count("trainer", num_byzantine=num_byzantine)
    if not f < m:
        raise ValueError(
            "trainer needs num_byzantine < num_workers, got "
            f"num_byzantine={f} and num_workers={m}"
        )
    worker = optax.identity() if worker is None else worker
    model_rule = median() if model_state_aggregator is None else model_state_aggregator
    link = optax.GradientTransformation, "an optax.GradientTransformation"
    forger = Attack | None, "a byzjax.Attack"
    for keyword, value, (kind, name) in (
        ("aggregator", aggregator, link),
        ("server", server, link),
        ("worker", worker, link),
        ("model_state_aggregator", model_rule, link),
        ("attack", attack, forger),
        ("model_state_attack", model_state_attack, forger),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"trainer needs {keyword} to be {name}, got {value!r}")
    if not has_model_state and (model_state_aggregator or model_state_attack):
        raise ValueError(
            "trainer needs has_model_state=True for a model_state_aggregator or "
            "model_state_attack, got has_model_state=False"
        )
    if max_grad_norm is not None:
        base.check_number("trainer", max_grad_norm=max_grad_norm, open_interval=True)
    if workers_at_once is not None:
        base.check_count("trainer", workers_at_once=workers_at_once, minimum=1)

    # Rows computed by following the protocol; the others are forged from these.
    reads_own = any(a is not None and a.needs_own for a in (attack, model_state_attack))
    computed = m if attack is None or reads_own else m - f
    if poison is not None and computed < m:
        raise ValueError(
            "trainer needs an attack that sends what the Byzantine workers computed "
            "for poison to have an effect, got one that reads the honest messages only"
        )

    worker_update = optax.with_extra_args_support(worker).update
    aggregate = optax.with_extra_args_support(aggregator).update
    server_update = optax.with_extra_args_support(server).update
    model_update = optax.with_extra_args_support(model_rule).update

    def init(params: Tree, model_state: Tree = None) -> TrainState:
        if has_model_state != (model_state is not None):
            raise ValueError(
                "trainer.init needs a model_state exactly if has_model_state, got "
                f"has_model_state={has_model_state} and model_state="
                f"{'None' if model_state is None else 'a tree'}"
            )
        # Copies, so that a donated state does not take the caller's arrays with it.
        params = jax.tree.map(jnp.copy, params)
        model_state = jax.tree.map(jnp.copy, model_state)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            prev_params=jax.tree.map(jnp.copy, params),
            model_state=model_state,
            worker_state=workers.copies(worker.init(params), computed),
            attack_state=None if attack is None else attack.init(params),
            aggregator_state=aggregator.init(params),
            server_state=server.init(params),
            model_rule_states=(
                model_state_attack and model_state_attack.init(model_state),
                model_rule.init(model_state) if has_model_state else None,
            ),
        )

    def step(
        state: TrainState, batches: Any, key: jax.Array, **extra: Any
    ) -> tuple[TrainState, Metrics]:
        _check_batches(batches, m)
        params = state.params
        keys = jax.random.split(base.check_key("trainer.step", key), 4)

        def loss_of(at, batch):
            if has_model_state:
                # Rebuilt in this trace: models of Flax NNX write to what they merge.
                old = jax.tree.map(jnp.asarray, state.model_state)
                return loss_fn(at, old, batch)
            return loss_fn(at, batch), None

        def gradient(at, batch):
            (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(at, batch)
            return loss, new, _clip(grads, max_grad_norm)

        def one_worker(operands):
            batch, worker_state = operands
            loss, new, grads = gradient(params, batch)
            message, worker_state = worker_update(
                grads,
                worker_state,
                params,
                grad_fn=lambda at: gradient(at, batch)[2],
                prev_params=state.prev_params,
            )
            return loss, new, message, worker_state

        operands = _batches_of(batches, computed, m - f, poison), state.worker_state
        losses, new_states, messages, worker_state = workers.map_workers(
            one_worker, operands, computed, at_most=workers_at_once
        )
        h = m - f
        honest = jax.tree.map(lambda x: x[:h], messages)

        messages, attack_state = _forge(
            attack, messages, state.attack_state, h, f, keys[0], params
        )
        direction, aggregator_state = aggregate(
            messages, state.aggregator_state, params, key=keys[1], **extra
        )
        _check_shapes("the aggregate", direction, params)
        updates, server_state = server_update(direction, state.server_state, params)
        _check_shapes("the server's updates", updates, params)

        model_state = state.model_state
        forger_state, rule_state = state.model_rule_states
        if has_model_state:
            one = jax.tree.map(lambda x: x[0], new_states)
            _check_shapes("loss_fn's new model state", one, model_state)
        if jax.tree.leaves(model_state):  # A model may have none, and say so by {}.
            new_states, forger_state = _forge(
                model_state_attack, new_states, forger_state, h, f, keys[2], model_state
            )
            # The rule's own f counts on m rows, whoever computed them.
            if computed < m and model_state_attack is None:
                new_states = jax.tree.map(lambda x: x[np.arange(m) % h], new_states)
            model_state, rule_state = model_update(
                new_states, rule_state, model_state, key=keys[3]
            )

        center = stacked.weighted_sum(honest, jnp.full((h,), 1 / h))
        metrics = Metrics(
            loss=jnp.sum(losses[:h]) / h,
            aggregate_norm=_norm(direction),
            honest_distance=_norm(jax.tree.map(jnp.subtract, direction, center)),
        )
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(params, updates),
            prev_params=params,
            model_state=model_state,
            worker_state=worker_state,
            attack_state=attack_state,
            aggregator_state=aggregator_state,
            server_state=server_state,
            model_rule_states=(forger_state, rule_state),
        )
        return new_state, metrics

    return Trainer(init, step)


def _check_batches(batches, m):
    if not jax.tree.leaves(batches):
        raise ValueError(f"trainer.step needs batches of arrays, got {batches!r}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != m:
            raise ValueError(
                f"trainer.step needs batches with num_workers={m} in front of every "
                f"leaf, got shape {shape} at {jax.tree_util.keystr(path) or 'the leaf'}"
            )


def _check_shapes(what, tree, like):
    """Nothing may broadcast, as an aggregator in the server's place would."""
    got, want = ([jnp.shape(x) for x in jax.tree.leaves(t)] for t in (tree, like))
    if jax.tree.structure(tree) != jax.tree.structure(like) or got != want:
        raise ValueError(
            f"trainer.step needs {what} to have the structure and shapes of "
            f"{jax.tree.map(jnp.shape, like)}, got {jax.tree.map(jnp.shape, tree)}"
        )


def _norm(tree):
    """Euclidean norm of a tree, by products: XLA:CPU would copy what sums are of."""
    wide = [x.astype(columns.accumulator_dtype(x.dtype)) for x in jax.tree.leaves(tree)]
    precision = jax.lax.Precision.HIGHEST
    squares = [jnp.vdot(x, x, precision=precision) for x in wide]
    return jnp.sqrt(columns.total(squares))


def _clip(grads, max_norm):
    """Scales a gradient down to `max_norm`, if it is longer."""
    if max_norm is None:
        return grads
    norm = _norm(grads)
    scale = jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def _batches_of(batches, computed, h, poison):
    """The batches that are computed on, those of Byzantine workers poisoned."""
    if poison is None:
        return jax.tree.map(lambda x: x[:computed], batches)
    poisoned = jax.vmap(poison)(jax.tree.map(lambda x: x[h:computed], batches))
    return base.stack_rows(jax.tree.map(lambda x: x[:h], batches), poisoned)


def _forge(attack, messages, state, h, f, key, params):
    """What reaches the server: honest rows as they are, the last f forged."""
    if attack is None or f == 0:
        return messages, state
    honest = jax.tree.map(lambda x: x[:h], messages)
    own = jax.tree.map(lambda x: x[h:], messages) if attack.needs_own else None
    forged, state = attack.forge(
        honest, own, state, num_byzantine=f, key=key, params=params
    )
    return base.stack_rows(honest, forged), state
