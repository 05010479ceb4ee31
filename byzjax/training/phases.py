"""The phases of a training step, in order: each reads a `Setup` and the state before.

`messages` (gradients and the workers' transform), `forged` (the attack), `aggregated`,
`served` (the server's update), `model_state_of`, `measured`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import base, checks, loops, trees
from byzjax.attack import Attack
from byzjax.numerics import stacked
from byzjax.sharding.way import Way, spread
from byzjax.shares import with_shares
from byzjax.training import places, workers
from byzjax.training.given import check_read
from byzjax.training.setup import Setup
from byzjax.training.state import Metrics, TrainState, WorkerMetrics
from byzjax.trees import Tree


class Messages(NamedTuple):
    """What the workers computed, the first `num_rows` of them."""

    losses: jax.Array  # [n]
    model_states: Tree  # Leaves [n, ...].
    aux: Tree  # Leaves [n, ...].
    rows: Tree  # d^i, leaves [n, ...].
    worker_state: Tree


def messages(
    setup: Setup, state: TrainState, batches: Any, present: jax.Array | None, way: Way
) -> Messages:
    """g^i = ∇f(x_t; z^i) and d^i = worker(g^i), worker by worker, as rules see them."""

    def loss_of(at, batch):
        if not setup.has_model_state:
            return _loss_and_more(setup, setup.loss_fn(at, batch))
        # Rebuilt in this trace: models of Flax NNX write to what they merge.
        old = jax.tree.map(jnp.asarray, state.model_state)
        return _loss_and_more(setup, setup.loss_fn(at, old, batch))

    def gradient(at, batch):
        at = loops.varying_as(at, lambda at: loss_of(at, batch)[0])
        (loss, more), grads = jax.value_and_grad(loss_of, has_aux=True)(at, batch)
        return loss, more, _clipped(grads, setup.max_grad_norm)

    def one_worker(operands):
        batch, worker_state, is_present = operands
        loss, (new, aux), grads = gradient(state.params, batch)
        message, after = optax.with_extra_args_support(setup.worker).update(
            grads,
            worker_state,
            state.params,
            grad_fn=lambda at: gradient(at, batch)[2],
            prev_params=state.prev_params,
        )
        # A bad batch costs a worker this step, and not what it remembers.
        good = trees.all_finite((grads, message))
        good &= trees.stays_finite(after, worker_state)
        if is_present is not None:
            good &= is_present
        worker_state = trees.after_step(good, after, worker_state)
        return Messages(loss, new, aux, message, worker_state)

    if present is not None:
        # Of rows that there are too many on some devices nothing is kept.
        live = np.asarray(setup.live, int)
        present = jnp.pad(present[live], (0, setup.num_rows - len(live)))
    operands = _poisoned(setup, batches), state.worker_state, present
    n, at_most = setup.num_rows, setup.workers_at_once
    if setup.layout is None:
        return workers.map_workers(one_worker, operands, n, at_most=at_most)

    def sent(found):
        return found._replace(rows=way.rows(found.rows))

    found = workers.map_sharded(
        *(one_worker, operands, n),
        at_most=at_most,
        shards=setup.num_worker_shards,
        sent=sent,
    )
    # Free where coordinates are, where rows are all on a device.
    live, count = setup.live, setup.num_computed
    return found._replace(
        rows=spread(found.rows, live, count),
        losses=spread(found.losses, live, count),
        aux=spread(found.aux, live, count),
    )


def forged(
    setup: Setup,
    attack: Attack | None,
    rows: Tree,
    state: Any,
    key: jax.Array,
    params: Tree,
    present: jax.Array | None,
) -> tuple[Tree, Any]:
    """What reaches the server: honest rows as they are, the last f forged.

    Attackers see none of the honest workers that are absent: others' rows instead.
    """
    h, f = setup.num_honest, setup.num_byzantine
    if attack is None or f == 0:
        return rows, state
    honest = jax.tree.map(lambda x: x[:h], rows)
    own = jax.tree.map(lambda x: x[h:], rows) if attack.needs_own else None
    sent, state = attack.forge(
        trees.of_present(honest, present),
        own,
        state,
        num_byzantine=f,
        key=key,
        params=params,
    )
    return trees.stack_rows(
        honest, sent, "trainer.step", "the attack's messages"
    ), state


def aggregated(
    setup: Setup, rows: Tree, state: TrainState, key: jax.Array, extra: dict[str, Any]
) -> tuple[Tree, Any, WorkerMetrics | None]:
    """d̂ = A(d^1, …, d^m), the rule's state, and what the workers had to do with d̂."""
    rule = optax.with_extra_args_support(setup.aggregator)

    def aggregate(rows, extra=extra):
        return rule.update(rows, state.aggregator_state, state.params, key=key, **extra)

    if extra and not isinstance(setup.aggregator, base.Aggregator):
        check_read(lambda extra: aggregate(rows, extra), extra)

    def checked(direction):
        checks.alike("trainer.step", "the aggregate", direction, state.params)
        return direction

    if not setup.report_workers:
        direction, rule_state = aggregate(rows)
        return checked(direction), rule_state, None
    direction, rule_state, influence = with_shares(aggregate, rows)
    present = extra.get("present")
    distances = stacked.distances_to_tree(rows, checked(direction), present)
    return direction, rule_state, WorkerMetrics(influence, distances.plain())


def served(
    setup: Setup, direction: Tree, state: TrainState, enough: jax.Array | None
) -> tuple[Tree, Any]:
    """x_{t+1} = server(x_t, d̂), and the server's state; both stay if not `enough`.

    Zeros would not do: momentum moves the parameters without any direction.
    """
    server = optax.with_extra_args_support(setup.server)
    updates, server_state = server.update(direction, state.server_state, state.params)
    checks.alike("trainer.step", "the server's updates", updates, state.params)
    new = optax.apply_updates(state.params, updates), server_state
    if enough is None:
        return new
    return trees.kept(enough, new, (state.params, state.server_state))


def model_state_of(
    setup: Setup,
    new: Tree,
    state: TrainState,
    keys: tuple[jax.Array, jax.Array],
    present: jax.Array | None,
) -> tuple[Tree, tuple[Any, Any]]:
    """The aggregate of the workers' model states, attacked as messages are."""
    old, (attack_state, rule_state) = state.model_state, state.model_rule_states
    if setup.has_model_state:
        one = jax.tree.map(lambda x: x[0], new)
        checks.alike("trainer.step", "loss_fn's new model state", one, old)
    if not jax.tree.leaves(old):  # A model may have none, and say so by {}.
        return old, (attack_state, rule_state)
    attack = setup.model_attack
    new, attack_state = forged(setup, attack, new, attack_state, keys[0], old, present)
    # The rule's own f counts on m rows, whoever computed them.
    if setup.num_computed < setup.num_workers and attack is None:
        from_honest = np.arange(setup.num_workers) % setup.num_honest
        honest = jax.tree.map(lambda x: x[: setup.num_honest], new)
        honest = trees.of_present(honest, present)
        new = jax.tree.map(lambda x: x[from_honest], honest)
    rule = optax.with_extra_args_support(setup.model_rule)
    absent = {} if present is None else {"present": present}
    out, after = rule.update(new, rule_state, old, key=keys[1], **absent)
    good = trees.stays_finite(out, old)
    enough = enough_for(setup.model_rule, present)
    if enough is not None:
        good &= enough
    rule_state = trees.kept(good, after, rule_state)
    return trees.kept(good, out, old), (attack_state, rule_state)


def measured(
    setup: Setup,
    sent: Messages,
    direction: Tree,
    of_workers: WorkerMetrics | None,
    present: jax.Array | None,
) -> Metrics:
    """What the step reports, from the honest workers' losses and messages."""
    h = setup.num_honest
    honest = jax.tree.map(lambda x: x[:h], sent.rows)
    wide = trees.accumulator_dtype(sent.losses.dtype)
    losses, shares, enough = sent.losses[:h].astype(wide), jnp.full((h,), 1 / h), None
    parts = losses / h
    if present is not None:
        there = present[:h]
        count = jnp.maximum(jnp.sum(there), 1)
        shares = jnp.where(there, 1 / count.astype(shares.dtype), 0)
        parts = jnp.where(there, losses / count.astype(wide), 0)
        enough = enough_for(setup.aggregator, present)
        if setup.has_model_state and enough is not None:
            of_model = enough_for(setup.model_rule, present)
            enough = None if of_model is None else enough & of_model
    center = stacked.weighted_sum(honest, shares)
    return Metrics(
        loss=jnp.sum(parts).astype(sent.losses.dtype),
        aggregate_norm=stacked.norm(direction),
        honest_distance=stacked.norm(jax.tree.map(_gap, direction, center)),
        aux=jax.tree.map(lambda x: x[:h], sent.aux),
        workers=of_workers,
        enough=enough,
    )


def enough_for(
    rule: optax.GradientTransformation, present: jax.Array | None
) -> jax.Array | None:
    """Whether a rule can serve those present; None of all, and of a chain.

    That does not say what is in it.
    """
    if present is None or not isinstance(rule, base.Aggregator):
        return None
    return rule.enough(present)


def _loss_and_more(setup, returned):
    """What `loss_fn` returned as loss, (new model state, aux)."""
    forms = {
        (False, False): "loss",
        (False, True): "(loss, aux)",
        (True, False): "(loss, new model state)",
        (True, True): "(loss, (new model state, aux))",
    }
    form = setup.has_model_state, setup.has_aux

    def is_pair(x):
        return isinstance(x, tuple | list) and len(x) == 2

    if not any(form):
        fits = not isinstance(returned, tuple | list)
    else:
        fits = is_pair(returned) and (not all(form) or is_pair(returned[1]))
    if not fits:
        raise ValueError(
            f"trainer.step needs loss_fn to return {forms[form]} with has_model_state="
            f"{form[0]} and has_aux={form[1]}, got {jax.tree.map(jnp.shape, returned)}"
        )
    if not any(form):
        return returned, (None, None)
    loss, more = returned
    if all(form):
        new, aux = more
        return loss, (new, aux)
    return loss, (more, None) if setup.has_model_state else (None, more)


def _poisoned(setup, batches):
    """The batches that are computed on, those of Byzantine workers poisoned."""
    computed, h = setup.num_computed, setup.num_honest
    if setup.layout is not None:
        return places.computed_batches(setup, setup.layout, batches)
    if setup.poison is None:
        return jax.tree.map(lambda x: x[:computed], batches)
    poisoned = jax.vmap(setup.poison)(jax.tree.map(lambda x: x[h:computed], batches))
    honest = jax.tree.map(lambda x: x[:h], batches)
    return trees.stack_rows(honest, poisoned, "trainer.step", "poison's batches")


def _clipped(grads, max_norm):
    """A gradient scaled down to `max_norm`, if it is longer."""
    if max_norm is None:
        return grads
    norm = stacked.norm(grads)
    max_norm = checks.in_dtype(max_norm, norm.dtype)
    long = norm > max_norm
    # By way of a power of two, as the quotient of the two may be no float.
    unit = stacked.inverse(stacked.power_of_two(jnp.where(long, norm, 1)))
    scale = jnp.where(long, max_norm / jnp.where(long, norm * unit, 1), 1)

    def of_leaf(g):
        return ((g.astype(unit.dtype) * unit) * scale).astype(g.dtype)

    return jax.tree.map(of_leaf, grads)


def _gap(x, y):
    """x − y, in at least float32."""
    dtype = trees.accumulator_dtype(x.dtype)
    return x.astype(dtype) - y.astype(dtype)
