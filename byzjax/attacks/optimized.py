"""The strength of an attack that hurts a rule most, found by line search."""

from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import jax.typing
import numpy as np

from byzjax import checks, loops
from byzjax.attack import Attack
from byzjax.attacks import lift, search
from byzjax.attacks.search import SearchState
from byzjax.base import Aggregator
from byzjax.numerics import stacked


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
    search.check("optimized", aggregator)
    num_evaluations = checks.count(
        "optimized", num_evaluations=num_evaluations, minimum=1
    )
    lift.any_number("optimized", start=start)
    checks.number("optimized", step=step, open_interval=True)
    checks.number("optimized", ratio=ratio, open_interval=True)
    if not isinstance(ratio, jax.core.Tracer) and not np.asarray(ratio) < 1:
        raise ValueError(f"optimized needs ratio < 1, got ratio={ratio}")
    if not callable(attack) or isinstance(attack, Attack):
        raise TypeError(
            "optimized needs attack to be a function from a strength to an attack, "
            f"such as byzjax.attacks.ipm, got {attack!r}"
        )
    probe = attack(checks.in_dtype(start, jnp.float32))
    search.check("optimized", aggregator, probe, what="result of attack")

    def worst(honest, forged, aggregated):
        mu = lift.mean(honest)

        def try_out(strength):
            sent, after = forged(attack(strength))
            out, rule_state = aggregated(sent)
            away = stacked.norm(search.gaps(out, mu))
            return away, sent, SearchState(after, rule_state)

        def trial(i, carry):
            best, harm, reach, expanding = carry
            proposed = jnp.where(i == 0, best, jnp.minimum(best + reach, largest))
            found = try_out(proposed)[0].astype(jnp.float32)
            better = found > harm
            grown = jnp.where(expanding & better, 2 * reach, shrink * reach)
            best = jnp.where(better, proposed, best)
            harm = jnp.where(better, found, harm)
            expanding &= better | (i == 0)
            return best, harm, jnp.where(i == 0, reach, grown), expanding

        shrink = jnp.asarray(ratio).astype(jnp.float32)
        largest = float(jnp.finfo(jnp.float32).max)
        # The first trial is of the start itself. It is a pass of the loop like the
        # others, so that the rule is compiled once less.
        carry = (
            checks.in_dtype(start, jnp.float32),
            jnp.asarray(-jnp.inf, jnp.float32),
            checks.in_dtype(step, jnp.float32),
            jnp.asarray(True),
        )
        best = loops.fori_loop(0, num_evaluations, trial, carry)[0]
        _, sent, state = try_out(best)
        return sent, state

    return search.over(
        "optimized", probe, aggregator, worst, num_byzantine=num_byzantine
    )
