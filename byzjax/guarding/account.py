"""The running account of every worker: how far outside, how often, how sure one is.

A worker's *distance* in a step is the mean of the squared distances to the nearer half
of the others, its *position* z the logarithm of that over the middle of all workers, in
units of its usual spread. Rows of honest replicas can change places with each other, so
for any positive function w the factor b_i = n·w(z_i) / Σ_j w(z_j) has mean one: a fair
bet that i is farther out than the others, exact for every distribution of gradients.
Products of such bets are the evidence; bets add up that begin at every step, so that it
does not matter how long a worker was well before (Shiryaev and Roberts).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byzjax.numerics import stacked

FEWEST = 3  # Who are trusted: of two rows nobody can tell which one is wrong.


class Bet(NamedTuple):
    """w(z) = 1 + exp(slope·(side·z − start)), and the share of the evidence staked."""

    side: int  # 1: farther out than the others; −1: nearer than replicas can be.
    slope: float
    start: float | None  # None: at a level that positions had lately.
    stake: float
    level: int = 0  # Which one, see `_levels`.


# Those with a start of their own see a small shift in many steps. The others stake next
# to nothing while nobody is farther out than usual, and see large ones in few steps.
BETS = (
    Bet(1, 1.0, -8.0, 0.5),
    Bet(1, 3.0, -8.0, 0.5),
    Bet(1, 4.0, 2.5, 0.9),
    Bet(1, 8.0, None, 0.9, level=0),
    Bet(1, 8.0, None, 0.5, level=0),
    Bet(1, 8.0, None, 0.5, level=1),
    Bet(1, 8.0, None, 0.5, level=2),
    Bet(-1, 3.0, -8.0, 0.5),
    Bet(-1, 3.0, -8.0, 0.9),
)
_LARGEST_EXPONENT = 40.0
_GROUP = 8  # Steps in a row, of whose largest positions the middle one is a level.
_LEAST_OUTSIDE = 3.0  # z up to which a row is never called outside.
_LEAST_SPREAD = 1e-3  # Of logarithms of squared distances.
_LARGEST = 170.0  # Such a logarithm whose root is a float32.
_MEMORY = 256  # Steps that the spread is averaged over, at least.
_NORMAL = 1.4826  # Standard deviations in a middle deviation.
_LEAST_REPEATED = 0.1  # Chance that a worker who is well is held longer.


class GuardState(NamedTuple):
    """State of `guard`.

    Attributes:
      step: updates so far, `[]`, int32.
      suspected: the verdict, `[m]`, bool.
      since: the step of the worker's latest alarm, −1 without one, `[m]`, int32.
      alarms: how often the verdict was made or renewed, `[m]`, int32.
      steps: steps in which the worker was compared, `[m]`, int32.
      farthest: of these, those in which it was the farthest out, `[m]`, int32.
      outside: of these, those in which it was so far out that the robust rule served,
        `[m]`, int32.
      broken: steps in which its row was not finite, `[m]`, int32.
      largest: how many times as far out as the middle worker it was at most, in units
        of length, `[m]`.
      evidence: log(1 + e) of each bet against it, `[m, bets]`.
      strongest: log(1 + e) over all bets, the largest so far, `[m]`.
      probation: steps that it is still held for, `[m]`, int32.
      spread: of the logarithms of distances between workers, `[]`.
      tops: the largest position in each of the latest steps, `[window]`.
      owners: whose it was, −1 for nobody's, `[window]`, int32.
      rule_state: of the robust rule, which sees the steps that it serves.
    """

    step: jax.Array
    suspected: jax.Array
    since: jax.Array
    alarms: jax.Array
    steps: jax.Array
    farthest: jax.Array
    outside: jax.Array
    broken: jax.Array
    largest: jax.Array
    evidence: jax.Array
    strongest: jax.Array
    probation: jax.Array
    spread: jax.Array
    tops: jax.Array
    owners: jax.Array
    rule_state: Any


class Terms(NamedTuple):
    """The numbers of a guard, as it was given them."""

    num_workers: int  # m
    false_alarms: float  # In a clean step, of all workers together.
    probation: int
    window: int


def first(terms: Terms, rule_state: Any) -> GuardState:
    """The account before the first step."""
    m = terms.num_workers

    def counts(n=m):
        return jnp.zeros((n,), jnp.int32)

    def numbers(*shape):
        return jnp.zeros(shape, jnp.float32)

    return GuardState(
        step=jnp.zeros((), jnp.int32),
        suspected=jnp.zeros((m,), bool),
        since=counts() - 1,
        alarms=counts(),
        steps=counts(),
        farthest=counts(),
        outside=counts(),
        broken=counts(),
        largest=numbers(m),
        evidence=numbers(m, len(BETS)),
        strongest=numbers(m),
        probation=counts(),
        spread=numbers(),
        tops=numbers(terms.window),
        owners=counts(terms.window) - 1,
        rule_state=rule_state,
    )


def watched(
    terms: Terms, state: GuardState, geometry: stacked.Geometry, finite: jax.Array
) -> tuple[jax.Array, GuardState]:
    """One step: whether the robust rule has to serve it, and the account after it.

    Args:
      terms: the guard's numbers.
      state: the account before.
      geometry: of the rows; those too far for it are the farthest of all.
      finite: which rows `[m]` hold numbers only.
    """
    present = jnp.ones_like(finite) if geometry.present is None else geometry.present
    there = finite & present
    broken = present & ~finite
    # Where most rows are not finite that is the model's doing, and no worker's.
    blamed = broken & (2 * jnp.sum(broken) < jnp.sum(present))
    trusted = there & ~state.suspected
    enough = jnp.sum(trusted) >= FEWEST
    compared = there & enough
    heights = _heights(geometry, there, trusted)
    spread = _spread(state, heights, trusted, enough)
    positions = heights / jnp.maximum(spread, _LEAST_SPREAD)

    top = jnp.argmax(jnp.where(trusted, positions, -jnp.inf)).astype(jnp.int32)
    farthest = _farthest_of_each(state, terms.num_workers)
    bars = _of_others(farthest)
    is_outside = enough & (positions[top] > bars[top])
    outside = compared & is_outside & (positions > bars)
    place = state.step % terms.window

    evidence = _evidence(state, positions, farthest, trusted, compared)
    strength = _strength(evidence)
    # Once suspected, less is asked for: as much as shows in a worker who is well, while
    # it is held, with a chance of a tenth.
    needed = jnp.where(
        state.suspected,
        np.float32(np.log1p(terms.probation / _LEAST_REPEATED)),
        np.float32(np.log1p(terms.num_workers / terms.false_alarms)),
    )
    alarm = (compared & (strength >= needed)) | blamed
    left = jnp.where(there, jnp.maximum(state.probation - 1, 0), state.probation)
    left = jnp.where(alarm, terms.probation, left)
    suspected = left > 0
    # What was known of a worker who is let go, or held anew, counts no longer.
    ends = (alarm | (state.suspected & ~suspected))[:, None]
    after = state._replace(
        step=state.step + 1,
        suspected=suspected,
        since=jnp.where(alarm, state.step, state.since),
        alarms=_counted(state.alarms, alarm),
        steps=_counted(state.steps, compared),
        farthest=_counted(
            state.farthest,
            compared & (np.arange(terms.num_workers) == _farthest(heights, compared)),
        ),
        outside=_counted(state.outside, outside),
        broken=_counted(state.broken, broken),
        largest=jnp.maximum(
            state.largest, jnp.where(compared, jnp.exp(heights / 2), 0)
        ),
        evidence=jnp.where(ends, 0, evidence),
        strongest=jnp.maximum(state.strongest, strength),
        probation=left,
        spread=spread,
        tops=state.tops.at[place].set(jnp.where(enough, positions[top], 0)),
        owners=state.owners.at[place].set(jnp.where(enough, top, -1)),
    )
    too_far = present & ~geometry.finite
    serves = is_outside | jnp.any(too_far) | jnp.any(suspected & present)
    return serves, after


def _heights(geometry, there, trusted):
    """log of the workers' distances over that of the trusted middle one, [m]."""
    m = geometry.num_workers
    known = geometry.finite
    pairs = known[:, None] & known[None, :] & ~np.eye(m, dtype=bool)
    apart = jnp.where(pairs, geometry.squared_distances, jnp.inf)
    ordered = jnp.sort(apart, axis=1)
    half = jnp.maximum(jnp.sum(known) // 2, 1)
    near = jnp.where(np.arange(m) < half, ordered, 0)
    distances = jnp.sum(near / half.astype(near.dtype), axis=1)
    # Where most rows are equal their distances are zeros, which have no logarithm.
    least = jnp.asarray(jnp.finfo(near.dtype).tiny, near.dtype)
    logs = jnp.log(jnp.maximum(jnp.where(known, distances, 1), least))
    heights = logs - _middle(logs, trusted & known)
    heights = jnp.where(known, jnp.clip(heights, -_LARGEST, _LARGEST), _LARGEST)
    return jnp.where(there, heights, 0).astype(jnp.float32)


def _middle(values, counted):
    """The lower middle of those `counted`, whatever it is of none."""
    ordered = jnp.sort(jnp.where(counted, values, jnp.inf))
    return ordered[jnp.maximum(jnp.sum(counted) - 1, 0) // 2]


def _spread(state, heights, trusted, enough):
    """The usual spread of heights, this step's included."""
    now = np.float32(_NORMAL) * _middle(jnp.abs(heights), trusted)
    share = 1 / jnp.minimum(state.step + 1, _MEMORY).astype(jnp.float32)
    return jnp.where(enough, state.spread + share * (now - state.spread), state.spread)


def _farthest_of_each(state, m):
    """The largest position with which each worker led a remembered step, [m]."""
    counted = (state.owners[None, :] == np.arange(m, dtype=np.int32)[:, None]) & (
        ~state.suspected[:, None]
    )
    tops = jnp.where(counted, state.tops[None, :], _LEAST_OUTSIDE)
    return jnp.maximum(jnp.max(tops, axis=1), _LEAST_OUTSIDE)


def _of_others(values):
    """The largest of all others, [m]."""
    apart = ~np.eye(len(values), dtype=bool)
    return jnp.max(jnp.where(apart, values[None, :], _LEAST_OUTSIDE), axis=1)


def _levels(state, farthest):
    """Positions that are seldom, or seldomer, reached: seldomest first.

    What one worker alone ever reached is no level, else it would raise its own.
    """
    ordered, group = jnp.sort(farthest), min(_GROUP, len(state.tops))
    groups = len(state.tops) // group
    largest = jnp.max(state.tops[: groups * group].reshape(groups, group), axis=1)
    levels = ordered[-2], ordered[len(ordered) // 2], jnp.sort(largest)[groups // 2]
    return [jnp.maximum(level, _LEAST_OUTSIDE) for level in levels]


def _evidence(state, positions, farthest, trusted, compared):
    """log(1 + e) of each bet after this step, [m, bets]."""
    levels = _levels(state, farthest)
    starts = [levels[x.level] if x.start is None else np.float32(x.start) for x in BETS]
    side, slope, stake = (
        np.asarray([[bet[i] for bet in BETS]], np.float32) for i in (0, 1, 3)
    )
    exponents = slope * (side * positions[:, None] - jnp.stack(starts)[None, :])
    weights = 1 + jnp.exp(jnp.minimum(exponents, _LARGEST_EXPONENT))
    # One who is suspected is compared with those who are not.
    among = (trusted & compared)[:, None]
    total = jnp.sum(jnp.where(among, weights, 0), axis=0)[None, :]
    total = total + jnp.where(among, 0, weights)
    count = jnp.sum(among) + jnp.where(among, 0, 1)
    # Beside those who are far out all others look near, so that there are as many
    # fewer to be the nearest: with these odds a quarter may be.
    unfair = jnp.maximum(count // 4, 1)
    players = jnp.where(side > 0, count, count - unfair).astype(jnp.float32)
    factors = 1 - stake + stake * players * weights / total
    grown = jnp.logaddexp(0.0, jnp.log(factors) + state.evidence)
    return jnp.where(compared[:, None], grown, state.evidence)


def _strength(evidence):
    """log(1 + e) of the mean of all bets."""
    largest = jnp.max(evidence, axis=1)
    mean = jnp.mean(jnp.exp(evidence - largest[:, None]), axis=1)
    return largest + jnp.log(mean)


def _farthest(heights, compared):
    return jnp.argmax(jnp.where(compared, heights, -jnp.inf))


def _counted(counts, which):
    return counts + which.astype(jnp.int32)
