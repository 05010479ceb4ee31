"""Gradient ascent through the rule itself."""

import math

import jax
import jax.numpy as jnp
import jax.typing

from byzjax import checks, loops
from byzjax.attack import Attack
from byzjax.attacks import lift, search
from byzjax.attacks.alie import alie
from byzjax.attacks.search import SearchState
from byzjax.base import Aggregator
from byzjax.numerics import stacked


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

    **Guarantee.** At least as harmful, by H, as `start`; finite where `start` is, as
    the ascent stops at the ends of the dtype's range. Costs `num_steps` runs of the
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
    num_steps = checks.count("adaptive", num_steps=num_steps, minimum=1)
    checks.number("adaptive", step=step, open_interval=True)
    begin = alie(1.0, ddof=0) if start is None else start
    search.check("adaptive", aggregator, begin)

    def worst(honest, forged, aggregated):
        mu = lift.mean(honest)

        def harm(sent):
            return stacked.norm(search.gaps(aggregated(sent)[0], mu))

        def ascend(_, carry):
            sent, best, most = carry
            value, gradient = jax.value_and_grad(harm)(sent)
            better = value > most
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), sent, best)
            # Where the rule has a kink its gradient may be no number: ignore that part.
            gradient = jax.tree.map(
                lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient
            )
            length = stacked.norm(gradient)
            pace = radius / jnp.where(length > 0, length, 1).astype(radius.dtype)
            # What a step would carry out of the range of the messages' dtype stays.
            further = jax.tree.map(
                lambda b, g: b + lift.number(pace, g) * g, sent, gradient
            )
            sent = jax.tree.map(
                lambda b, to, x: jnp.where(jnp.isfinite(to.astype(x.dtype)), to, b),
                *(sent, further, honest),
            )
            return sent, best, jnp.where(better, value, most)

        begun, after = forged(begin)
        begun = jax.tree.map(lift.wide, begun)
        spread = jax.tree.map(lambda x, c: lift.wide(x) - c[None], honest, mu)
        share = checks.num_workers(begun) / checks.num_workers(honest)
        radius = stacked.norm(spread) * math.sqrt(share)
        radius = radius * jnp.asarray(step).astype(radius.dtype)
        least = jnp.asarray(-jnp.inf, radius.dtype)
        # One pass more than steps: what the last step led to is tried as well.
        carry = (begun, begun, least)
        _, best, _ = loops.fori_loop(0, num_steps + 1, ascend, carry)
        sent = jax.tree.map(lambda b, x: b.astype(x.dtype), best, honest)
        return sent, SearchState(after, aggregated(sent)[1])

    return search.over(
        "adaptive", begin, aggregator, worst, num_byzantine=num_byzantine
    )
