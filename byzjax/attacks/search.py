"""Attacks that try themselves out on the very rule that they attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import jax.typing
import numpy as np
from jax import lax

from byzjax import base, columns
from byzjax.attacks import lift
from byzjax.attacks.simple import alie
from byzjax.base import Aggregator, Attack, Tree


class SearchState(NamedTuple):
    """State of `optimized` and `adaptive`."""

    attack_state: Any  # Of the attack searched over or started from.
    rule_state: Any  # Of the rule, as the server's is after the same messages.


def optimized(
    attack: Callable[[jax.Array], Attack],
    aggregator: Aggregator,
    *,
    num_evaluations: int = 20,
    start: jax.typing.ArrayLike = 0.0,
    step: jax.typing.ArrayLike = 10.0,
    ratio: jax.typing.ArrayLike = 0.8,
    num_byzantine: int | None = None,
) -> Attack:
    r"""The strength of an attack that hurts a rule most, by line search in every step.

    .. math:: \max_{\eta} \Big\| A\big(x_1, \dots, x_h, b_1(\eta), \dots, b_f(\eta)\big)
      - \frac{1}{h} \sum_{j \text{ honest}} x_j \Big\|

    From `start`, steps are added as long as each makes it worse for the rule, and
    doubled; after the first failure the step shrinks by `ratio` at every trial, and is
    taken where it helps. This is the search of ByzFL: with the defaults here, its
    Opt-IPM is `optimized(ipm, rule)`, its Opt-ALIE
    `optimized(lambda z: alie(z, direction="positive"), rule)`. (The search of EPFL's
    earlier code also tries steps back.)

    **Guarantee.** At least as harmful, by the measure above, as the attack at `start`.
    Costs `num_evaluations` runs of the rule, in one loop of fixed length.

    Args:
      attack: strength → `Attack`, such as `byzjax.attacks.ipm` or
        `lambda z: byzjax.attacks.alie(z)`; called with a traced number.
      aggregator: the server's rule, or what the attacker takes for it.
      num_evaluations: how often the rule is tried, at least 1.
      start: the first strength; may be traced.
      step: the first step, > 0; may be traced.
      ratio: factor of contraction, in (0, 1); may be traced.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` with a `SearchState`; passes its `key` on to attack and rule.

    Raises:
      TypeError: `attack` makes no attack, or `aggregator` is none.
      ValueError: a number out of range.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> attack = byzjax.attacks.optimized(byzjax.attacks.ipm, byzjax.median())
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [4.0], [0.0]])
      >>> print(byzjax.median().aggregate(attack.apply(rows, num_byzantine=1)))
      [2.]

    Reference:
      Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe
      for Optimal Byzantine ML under Heterogeneity, 2023,
      https://arxiv.org/abs/2302.01772
    """
    _check_aggregator("optimized", aggregator)
    base.check_count("optimized", num_evaluations=num_evaluations, minimum=1)
    lift.any_number("optimized", start=start)
    base.check_number("optimized", step=step, open_interval=True)
    base.check_number("optimized", ratio=ratio, open_interval=True)
    if not isinstance(ratio, jax.core.Tracer) and not np.asarray(ratio) < 1:
        raise ValueError(f"optimized needs ratio < 1, got ratio={ratio}")
    if not callable(attack) or isinstance(attack, Attack):
        raise TypeError(
            "optimized needs attack to be a function from a strength to an attack, "
            f"such as byzjax.attacks.ipm, got {attack!r}"
        )
    probe = attack(jnp.asarray(start, jnp.float32))
    _check_attack("optimized", probe)

    def init(params):
        return SearchState(probe.init(params), aggregator.init(params))

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        mu = lift.mean(honest)
        own_key, rule_key = (None, None) if key is None else jax.random.split(key)

        def try_out(strength):
            sent, after = attack(strength).forge(
                honest,
                own,
                state.attack_state,
                num_byzantine=num_byzantine,
                key=own_key,
                params=params,
                **extra,
            )
            out, rule_state = aggregator.update(
                base.stack_rows(honest, sent), state.rule_state, params, key=rule_key
            )
            return _distance(out, mu), sent, SearchState(after, rule_state)

        def trial(i, carry):
            best, harm, reach, expanding = carry
            proposed = jnp.where(i == 0, best, best + reach)
            found = try_out(proposed)[0].astype(jnp.float32)
            better = found > harm
            grown = jnp.where(expanding & better, 2 * reach, shrink * reach)
            best = jnp.where(better, proposed, best)
            harm = jnp.where(better, found, harm)
            expanding &= better | (i == 0)
            return best, harm, jnp.where(i == 0, reach, grown), expanding

        shrink = jnp.asarray(ratio).astype(jnp.float32)
        # The first trial is of the start itself. It is a pass of the loop like the
        # others, so that the rule is compiled once less.
        carry = (
            jnp.asarray(start).astype(jnp.float32),
            jnp.asarray(-jnp.inf, jnp.float32),
            jnp.asarray(step).astype(jnp.float32),
            jnp.asarray(True),
        )
        best = lax.fori_loop(0, num_evaluations, trial, carry)[0]
        _, sent, state = try_out(best)
        return sent, state

    return Attack(
        forge, init=init, needs_own=probe.needs_own, num_byzantine=num_byzantine
    )


def adaptive(
    aggregator: Aggregator,
    *,
    num_steps: int = 20,
    step: jax.typing.ArrayLike = 0.5,
    start: Attack | None = None,
    num_byzantine: int | None = None,
) -> Attack:
    r"""Gradient ascent through the rule itself, over all Byzantine messages at once.

    .. math:: b \leftarrow b + \eta\, \rho\, \frac{\nabla_b H}{\|\nabla_b H\|}, \qquad
      H(b) = \Big\| A(x_1, \dots, x_h, b_1, \dots, b_f)
      - \frac{1}{h} \sum_{j \text{ honest}} x_j \Big\|^2

    with ρ = √f times the root mean square distance of the honest messages from their
    mean, so that η is in units of the honest spread. The messages with the largest H of
    all tried are sent, so a rule with jumps (Krum) is no harm to the search. A rule
    whose output does not depend on b where the ascent stands gives no gradient; begin
    nearer then, by `start`.

    **Guarantee.** At least as harmful, by H, as `start`. Costs `num_steps` runs of the
    rule forwards and backwards.

    Args:
      aggregator: the server's rule; must be differentiable by reverse mode.
      num_steps: steps of ascent, at least 1.
      step: η > 0; may be traced.
      start: the attack that the ascent begins from; None: `alie(1.0, ddof=0)`.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` with a `SearchState`; passes its `key` on to `start` and rule.

    Raises:
      TypeError: `aggregator` is none, or `start` no attack.
      ValueError: a number out of range.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> attack = byzjax.attacks.adaptive(byzjax.trimmed_mean(1))
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [6.0], [0.0]])
      >>> print(byzjax.trimmed_mean(1).aggregate(attack.apply(rows, num_byzantine=1)))
      [2.]

    Reference:
      Tramèr, Carlini, Brendel, Madry: On Adaptive Attacks to Adversarial Example
      Defenses, 2020, https://arxiv.org/abs/2002.08347, for the principle.
    """
    _check_aggregator("adaptive", aggregator)
    base.check_count("adaptive", num_steps=num_steps, minimum=1)
    base.check_number("adaptive", step=step, open_interval=True)
    begin = alie(1.0, ddof=0) if start is None else start
    _check_attack("adaptive", begin)

    def init(params):
        return SearchState(begin.init(params), aggregator.init(params))

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        mu = lift.mean(honest)
        own_key, rule_key = (None, None) if key is None else jax.random.split(key)

        def aggregate(sent):
            rows = base.stack_rows(honest, sent)
            return aggregator.update(rows, state.rule_state, params, key=rule_key)

        def harm(sent):
            return _distance(aggregate(sent)[0], mu, squared=True)

        def ascend(_, carry):
            sent, best, most = carry
            value, gradient = jax.value_and_grad(harm)(sent)
            better = value > most
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), sent, best)
            # Where the rule has a kink its gradient may be no number: ignore that part.
            gradient = jax.tree.map(
                lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient
            )
            length = lift.norm(gradient)
            pace = radius / jnp.where(length > 0, length, 1).astype(radius.dtype)
            sent = jax.tree.map(
                lambda b, g: b + lift.number(pace, g) * g, sent, gradient
            )
            return sent, best, jnp.where(better, value, most)

        begun, after = begin.forge(
            honest,
            own,
            state.attack_state,
            num_byzantine=num_byzantine,
            key=own_key,
            params=params,
            **extra,
        )
        begun = jax.tree.map(lift.wide, begun)
        squares = [
            jnp.sum((lift.wide(x) - c[None]) ** 2)
            for x, c in zip(jax.tree.leaves(honest), jax.tree.leaves(mu), strict=True)
        ]
        variance = columns.total(squares) / base.num_workers(honest)
        radius = jnp.sqrt(variance * num_byzantine)
        radius = radius * jnp.asarray(step).astype(radius.dtype)
        least = jnp.asarray(-jnp.inf, radius.dtype)
        # One pass more than steps: what the last step led to is tried as well.
        carry = (begun, begun, least)
        _, best, _ = lax.fori_loop(0, num_steps + 1, ascend, carry)
        sent = jax.tree.map(lambda b, x: b.astype(x.dtype), best, honest)
        return sent, SearchState(after, aggregate(sent)[1])

    return Attack(
        forge, init=init, needs_own=begin.needs_own, num_byzantine=num_byzantine
    )


def _distance(out: Tree, mu: Tree, *, squared: bool = False) -> jax.Array:
    gaps = jax.tree.map(lambda a, c: lift.wide(a) - c, out, mu)
    if not squared:
        return lift.norm(gaps)
    return columns.total([jnp.sum(gap * gap) for gap in jax.tree.leaves(gaps)])


def _check_aggregator(name: str, aggregator: object) -> None:
    if not isinstance(aggregator, Aggregator):
        raise TypeError(f"{name} needs a byzjax.Aggregator, got {aggregator!r}")


def _check_attack(name: str, attack: object) -> None:
    if not isinstance(attack, Attack):
        raise TypeError(f"{name} needs a byzjax.Attack, got {attack!r}")
