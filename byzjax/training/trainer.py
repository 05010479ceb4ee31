"""One training step under attack, as a pure function: `trainer`.

Workers are a vmapped batch axis. A step is gradients, worker transform, attack,
aggregator, server transform, in this order; a run is `lax.scan` over steps and a sweep
over seeds is `vmap` over runs, each of them one XLA program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax import checks
from byzjax.aggregators.median import median
from byzjax.attack import Attack
from byzjax.base import Aggregator
from byzjax.sharding import region
from byzjax.sharding.layout import Layout
from byzjax.sharding.way import Way, present_of, spread
from byzjax.training import phases, places
from byzjax.training.given import check_batches, check_state
from byzjax.training.setup import Setup, number_of_attackers
from byzjax.training.state import Metrics, Trainer, TrainState
from byzjax.transforms.per_worker import copies
from byzjax.trees import Tree


def trainer(
    loss_fn: Callable[..., Any],
    *,
    aggregator: optax.GradientTransformation,
    server: optax.GradientTransformation,
    num_workers: int,
    num_byzantine: int | None = None,
    worker: optax.GradientTransformation | None = None,
    attack: Attack | None = None,
    poison: Callable[[Any], Any] | None = None,
    max_grad_norm: float | None = None,
    has_model_state: bool = False,
    has_aux: bool = False,
    model_state_aggregator: Aggregator | None = None,
    model_state_attack: Attack | None = None,
    workers_at_once: int | None = None,
    report_workers: bool = False,
    layout: Layout | None = None,
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
      num_byzantine: f, the workers of the last f rows attack. None is the number that
        the attack was given, and 0 where there is neither attack nor poison.
      worker: optax transformation of each worker's gradient, such as
        `byzjax.momentum(0.9)` or `byzjax.storm()`; None sends plain gradients. One that
        draws noise does so for each worker if its key is a typed one, `jax.random.key`.
      attack: what the Byzantine workers send; None: they follow the protocol.
      poison: batch → batch, applied to the Byzantine workers' data, such as
        `byzjax.poisoning.label_flip(10)`.
      max_grad_norm: each worker's gradient is scaled down to this norm, if larger.
      has_model_state: whether `loss_fn` has the second form.
      has_aux: whether `loss_fn` returns metrics of your own beside the loss, any tree
        of arrays, as in `jax.value_and_grad`: (loss, aux), or with a model state
        (loss, (new state, aux)). They are taken at x_t, never sent, attacked or
        aggregated, and reported for each honest worker as `Metrics.aux`.
      model_state_aggregator: rule for the workers' new model states, by default the
        coordinate-wise median. Never an unprotected mean unless you say so.
      model_state_attack: what the Byzantine workers send as model state; None: what
        they computed, or copies of honest workers' where they compute nothing.
      workers_at_once: how many workers' gradients are computed together, at most;
        None is all. Chunks need less memory; on CPUs they can be faster for it, on
        GPUs they are slower. In a layout a chunk takes as many of each device, and is
        on its way to the coordinates before the next one is computed.
      report_workers: whether the metrics say whom the rule trusted, as
        `Metrics.workers`: each worker's influence on the aggregate, and its distance
        from it. By one reverse pass through the rule that was run, and one over the
        messages; benchmarks/README.md has what it costs.
      layout: the devices that workers and coordinates lie on, a
        `byzjax.sharding.Layout`: gradients and the workers' states stay where their
        batch is, `layout.batches`, and the step moves what an ordinary all-reduce of
        the gradients moves. The result is the same, to rounding. None: XLA decides.

    Returns:
      A `Trainer`. `init(params, model_state=None)` → `TrainState`;
      `step(state, batches, key, **extra)` → (`TrainState`, `Metrics`), with leaves of
      batches `[m, b, ...]`, `key` for attacks and rules that draw, and `extra` for the
      aggregator: `weights`, and `present`, bools `[m]`: which workers take part in this
      step. What the others' batches hold does not matter, their states stay as in
      `byzjax.per_worker`, and
      attackers do not see them. Where too few are there for the rule, the parameters
      and the states of rule and server stay, and `Metrics.enough` says so; a chain as
      aggregator cannot. Jit it, scan it, vmap it, donate its state.

    Raises:
      TypeError: an aggregator, server, worker or attack of the wrong kind; in `step`
        an extra argument that nothing in the aggregator takes.
      ValueError: an attack or poison without a number of attackers, or with two
        different ones, f ≥ m, poisoned data that no attack would send; at trace time
        batches of another number of workers, a `loss_fn` that returns another form, or
        an aggregate, update or model state
        that has not the shapes of what it belongs to.

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
    checks.flag("trainer", has_model_state=has_model_state)
    checks.flag("trainer", has_aux=has_aux)
    checks.flag("trainer", report_workers=report_workers)
    model_rule = median() if model_state_aggregator is None else model_state_aggregator
    setup = Setup(
        loss_fn=loss_fn,
        worker=optax.identity() if worker is None else worker,
        attack=attack,
        aggregator=aggregator,
        server=server,
        num_workers=num_workers,
        num_byzantine=number_of_attackers(
            num_byzantine, attack, model_state_attack, poison
        ),
        poison=poison,
        max_grad_norm=max_grad_norm,
        has_model_state=has_model_state,
        has_aux=has_aux,
        model_rule=model_rule,
        model_attack=model_state_attack,
        workers_at_once=workers_at_once,
        report_workers=report_workers,
        layout=layout,
    )
    given = (model_state_aggregator, model_state_attack) != (None, None)
    if not has_model_state and given:
        raise ValueError(
            "trainer needs has_model_state=True for a model_state_aggregator or "
            "model_state_attack, got has_model_state=False"
        )

    def init(params: Tree, model_state: Tree = None) -> TrainState:
        first = functools.partial(_initial, setup)
        if layout is None:
            return first(params, model_state)
        specs = functools.partial(places.specs_of_state, setup, first=True)
        return region.automatically(layout, first, (params, model_state), specs)

    def step(
        state: TrainState, batches: Any, key: jax.Array, **extra: Any
    ) -> tuple[TrainState, Metrics]:
        check_state(init, state)
        checks.extras("trainer.step", extra, setup.taken_by(extra))
        check_batches(setup, batches)
        if key is None:
            raise ValueError(
                "trainer.step needs a key, got key=None: give each step its own, of "
                "jax.random.split(jax.random.key(0), num_steps)"
            )
        keys = jax.random.split(checks.key("trainer.step", key), 4)
        present = extra.get("present")
        if present is not None:
            checks.present("trainer.step", present, setup.num_workers)
        if layout is not None and layout.absent:
            extra["present"] = present_of(layout, setup.num_workers, present)
        if layout is None:
            return one_step(state, batches, keys, extra)

        def specs(out):
            return places.specs_of_state(setup, out[0]), places.anywhere(out[1])

        args = state, batches, keys, extra
        return region.automatically(layout, one_step, args, specs)

    def one_step(state, batches, keys, extra):
        way, present = Way(layout, state.params), extra.get("present")
        if present is not None:
            present = jnp.asarray(present)
        sent = phases.messages(setup, state, batches, present, way)
        inside = state._replace(
            params=way.tree(state.params),
            attack_state=_inside(way, attack, state.attack_state),
            aggregator_state=_inside(way, aggregator, state.aggregator_state),
        )
        with way.passes():
            rows, attack_state = phases.forged(
                *(setup, attack, sent.rows, inside.attack_state),
                *(keys[0], inside.params, present),
            )
            direction, aggregator_state, of_workers = phases.aggregated(
                setup, rows, inside, keys[1], way.extras(extra)
            )
            metrics = phases.measured(setup, sent, direction, of_workers, present)
        attack_state = _kept(way, attack, attack_state)
        aggregator_state = _kept(way, aggregator, aggregator_state)
        enough = phases.enough_for(aggregator, present)
        params, server_state = phases.served(setup, way.back(direction), state, enough)
        model_state, model_rule_states = _model_state(
            setup, sent.model_states, state, (keys[2], keys[3]), present
        )
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            prev_params=state.params,
            model_state=model_state,
            worker_state=sent.worker_state,
            attack_state=attack_state,
            aggregator_state=aggregator_state,
            server_state=server_state,
            model_rule_states=model_rule_states,
        )
        return new_state, metrics

    return Trainer(init, step)


def _inside(way, part, state):
    """The state of an attack or rule as that reads it; of none as it is."""
    return state if part is None else way.inside(part.init, state)


def _kept(way, part, state):
    """The state of an attack or rule as it is kept between steps."""
    return state if part is None else way.kept(part.init, state)


def _model_state(setup, new, state, keys, present):
    """`phases.model_state_of`, on a layout's devices if there is one."""
    if setup.layout is None or not jax.tree.leaves(state.model_state):
        return phases.model_state_of(setup, new, state, keys, present)
    way = Way(setup.layout.of_replicated, state.model_state)
    parts = setup.model_attack, setup.model_rule
    inner = [
        _inside(way, part, own)
        for part, own in zip(parts, state.model_rule_states, strict=True)
    ]
    inside = state._replace(
        model_state=way.tree(state.model_state), model_rule_states=tuple(inner)
    )
    rows = spread(way.rows(new), setup.live, setup.num_computed)
    with way.passes():
        out, after = phases.model_state_of(setup, rows, inside, keys, present)
    after = [_kept(way, part, own) for part, own in zip(parts, after, strict=True)]
    return way.back(out), tuple(after)


def _initial(setup, params, model_state):
    """The state before the first step."""
    if setup.has_model_state != (model_state is not None):
        raise ValueError(
            "trainer.init needs a model_state exactly if has_model_state, got "
            f"has_model_state={setup.has_model_state} and model_state="
            f"{'None' if model_state is None else 'a tree'}"
        )
    # Copies, so that a donated state does not take the caller's arrays with it.
    params = jax.tree.map(jnp.copy, params)
    model_state = jax.tree.map(jnp.copy, model_state)
    attack, model_attack = setup.attack, setup.model_attack
    worker_state = setup.worker.init(params)
    setup.check_memory(worker_state, params)
    worker_state = copies(worker_state, setup.num_rows)
    way, layout = Way(setup.layout, params), setup.layout
    models = Way(None if layout is None else layout.of_replicated, model_state)
    rule_state = None
    if setup.has_model_state:
        rule_state = models.first(setup.model_rule.init, model_state)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        prev_params=jax.tree.map(jnp.copy, params),
        model_state=model_state,
        worker_state=worker_state,
        attack_state=None if attack is None else way.first(attack.init, params),
        aggregator_state=way.first(setup.aggregator.init, params),
        server_state=setup.server.init(params),
        model_rule_states=(
            None
            if model_attack is None
            else models.first(model_attack.init, model_state),
            rule_state,
        ),
    )
