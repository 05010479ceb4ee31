"""The link that keeps the mean and watches: `guard`."""

import jax
import optax

from byzjax import base, checks, loops
from byzjax.aggregators import bearing, claims
from byzjax.aggregators.mean import mean
from byzjax.base import Aggregator
from byzjax.guarding import account
from byzjax.numerics import stacked


def guard(
    rule: Aggregator,
    num_workers: int,
    *,
    false_alarms: float = 1e-6,
    probation: int = 1000,
    window: int = 1024,
) -> Aggregator:
    r"""The mean while all is well, and an account of every worker that says so.

    For data parallelism on hardware that now and then computes wrongly. Replicas that
    compute the gradient of like batches are as far from each other as chance has it. A
    worker's distance is the mean of its squared distances to the nearer half of the
    others; its position z_i is the logarithm of that over the middle worker's, in units
    of its usual spread. In a step of n workers, for functions w that weigh a high
    position,

    .. math::
      M_i \leftarrow (1 + M_i) \Big(1 - \lambda
      + \lambda \frac{n \, w(z_i)}{\sum_j w(z_j)}\Big)

    is the evidence against worker i, a mean over several w and λ: for a small shift in
    every step, for large ones in few, and for rows nearer than any replica's can be. At
    M_i ≥ m / `false_alarms` the worker is under suspicion, and `rule` serves in place
    of the mean, for `probation` steps in which it is present, and again as long when
    evidence of e-value 10 · `probation` comes together in these. A worker whose row
    holds a NaN or Inf is under suspicion in its own step, unless half or more do: then
    it is the step that is broken, and nobody is blamed.

    Before it is sure of a worker it is careful with the step: `rule` also serves the
    steps whose farthest worker is farther out than any other was in the last `window`,
    and those with a row 10^9 times as long as most or more.

    **Guarantee.** *False alarms*: as long as the workers' rows could change places in
    every step, whatever went before, which is all that is assumed of gradients, the
    expected number of alarms in t steps is at most t · `false_alarms`, all workers
    together; of those by mistake under suspicion one in ten is held longer. Rows that
    hold a NaN or Inf are an alarm each. *The price of a clean run*: the update is the
    mean, bit for bit, but for a share of about 1 / `window` of the steps, if positions
    are alike over time. *One bad step*: one not finite, or farther out than the others
    lately were, is served by `rule` itself. No (f, κ)-robust rule: who hides among the
    honest is averaged like them. The mean's time and one geometry, O(dm²).

    Sharp edges. *Momentum* belongs after the guard, in the server: the workers' own has
    a past that stays with them, so that a row once far out is so for many steps; a
    trainer refuses it. *Workers whose data differ* do not change places, and one of
    them will be suspected; so will one that sees the same shard again and again. Draw
    batches of all data, or shuffle between epochs. A rule that remembers sees no step
    but those it serves. *Meta-rules* belong inside, `guard(nnm(rule, f), m)`: around
    the guard they would hide from it what it watches. Under `jax.vmap` both the mean
    and the rule are computed.

    Args:
      rule: what serves while a worker is under suspicion, such as `median()`.
      num_workers: m >= 4: of two rows nobody can tell the wrong one, and of three not
        one that is too near the others.
      false_alarms: expected number in a clean step, in (0, 1).
      probation: steps, at least 1.
      window: steps whose farthest positions are kept, at least 2.

    Returns:
      An `Aggregator` with a `GuardState`; see `guard_report`. Takes what the rule takes
      but weights, as rows of unlike batches do not change places.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: a number out of range; a rule that bears nobody, as the mean, that
        does not serve m workers, or that has a guard in it; weights; updates of another
        number of workers. From a meta-rule other than `with_key`, a guard as its base.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> watch = byzjax.guard(byzjax.median(), num_workers=8)
      >>> state = watch.init(jnp.zeros(100))
      >>> for key in jax.random.split(jax.random.key(0), 10):
      ...     rows = jax.random.normal(key, (8, 100))
      ...     update, state = watch.update(rows.at[5].multiply(2.0), state)
      >>> print(jnp.flatnonzero(state.suspected))
      [5]

    Reference:
      Shin, Ramdas, Rinaldo: E-detectors: A Nonparametric Framework for Sequential
      Change Detection, 2022, https://arxiv.org/abs/2203.03532, for sums of bets that
      begin at every step; Vovk: Testing Randomness Online, 2019,
      https://arxiv.org/abs/1906.09256, for bets on exchangeability; Vovk, Wang:
      E-values: Calibration, Combination, and Applications, 2019,
      https://arxiv.org/abs/1912.06116, for their mean. The bets themselves are ours.
    """
    name = "guard"
    bearing.check_base(name, rule)
    m = checks.count(name, num_workers=num_workers, minimum=account.FEWEST + 1)
    rate = checks.number(
        name, false_alarms=false_alarms, open_interval=True, static=True
    )
    if not rate < 1:
        raise ValueError(f"{name} needs false_alarms < 1, got {false_alarms=}")
    terms = account.Terms(
        num_workers=m,
        false_alarms=rate,
        probation=checks.count(name, probation=probation, minimum=1),
        window=checks.count(name, window=window, minimum=2),
    )
    plain = mean()
    # That of all means is one function.
    defenceless = rule.weigh is plain.weigh
    if defenceless or (rule.bears is not None and rule.bears(m) < 1):
        raise ValueError(
            f"{name} needs a rule that bears a Byzantine worker of num_workers={m}, "
            f"which serves while one is suspected, got {rule!r}: give median(), or "
            "nnm(median(), 1)"
        )
    rule.check(m)  # Else it would fail in the first step.

    def init(params):
        return account.first(terms, rule.init(params))

    def update(updates, state, params=None, *, weights=None, present=None, **extra):
        claims.refuse_weights(name, weights)
        rows = checks.num_workers(updates)
        if rows != m:
            raise ValueError(
                f"{name} needs updates of the number of workers in its account, got "
                f"{rows} and num_workers={m}"
            )
        # Who is suspected is no function of the rows that one could differentiate.
        still = jax.lax.stop_gradient(updates)
        seen = stacked.geometry(still, present=present)
        known = seen.finite if present is None else seen.finite | ~present
        finite = stacked.numbers_only(still, known)
        serves, state = account.watched(terms, state, seen, finite)

        def robustly():
            inner = state.rule_state
            return rule.inside(updates, inner, params, present=present, **extra)

        def plainly():
            none = optax.EmptyState()
            found = plain.inside(updates, none, params, present=present)
            return found[0], state.rule_state

        out, rule_state = loops.cond(serves, robustly, plainly)
        return out, state._replace(rule_state=rule_state)

    return base.around(rule, init, update, outermost=True)
