"""What the rules of the table promise, as regions that no attacker leads them out of.

A promise is a function of the *envelope* of the honest rows: where they lie, how wide,
how long. A meta-rule hands its base an envelope of what it makes of the honest rows, so
promises nest as the rules do.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.envelopes import Envelope, norm


class Region(NamedTuple):
    """Where the result lies: within a ball, within a box, and on one side of zero."""

    center: np.ndarray
    radius: float
    low: np.ndarray
    high: np.ndarray
    side: np.ndarray | None = None


Promise = Callable[[Envelope], Region | None]  # None: nothing for such rows.

# --- kinds of promises ----------------------------------------------------------------


def ball(env: Envelope, radius: float, center: np.ndarray | None = None) -> Region:
    everywhere = np.full_like(env.center, np.inf)
    center = env.center if center is None else center
    return Region(center, radius, -everywhere, everywhere)


def hull(env: Envelope) -> Region:
    """Each coordinate within the honest ones."""
    return Region(env.center, np.inf, env.low, env.high)


def widened(by: Callable[[int, int], float]) -> Promise:
    """Each coordinate within the honest ones, widened by a multiple of their width."""

    def promise(env):
        more = by(env.m, env.f) * (env.high - env.low)
        return Region(env.center, np.inf, env.low - more, env.high + more)

    return promise


def farthest(env: Envelope, region: Region) -> float:
    """How far from the centre of the envelope the region reaches."""
    corner = np.maximum(env.center - region.low, region.high - env.center)
    in_box = norm(corner) if np.isfinite(corner).all() else np.inf
    return float(min(in_box, norm(region.center - env.center) + region.radius))


def short(env: Envelope) -> Region:
    """No longer than the longest honest row."""
    return ball(env, env.longest, np.zeros_like(env.center))


def convex(env: Envelope) -> Region:
    """No defence but against what is not finite: within the rows that are finite."""
    low, high = np.min(env.finite, axis=0), np.max(env.finite, axis=0)
    return Region(env.center, np.inf, low, high)


def undefended(env: Envelope) -> Region | None:
    """As `convex`, and nothing once a row is not finite."""
    return None if env.poisoned else convex(env)


# --- rules ----------------------------------------------------------------------------

# The m−f values kept are no farther from a centre between the honest values than one of
# these, so a Byzantine one is at most their width outside; f of m−f may be Byzantine.
around_the_middle = widened(lambda m, f: f / (m - f))

# The median of the chosen m−2f values, f of them Byzantine, lies between honest ones. A
# Byzantine value is kept before an honest one only if no farther from it, hence at most
# the honest width outside; f of the m−4f values kept may be Byzantine.
bulyan = widened(lambda m, f: min(1, f / (m - 4 * f)))


def geometric_median(env: Envelope) -> Region:
    """2 H / (H − B) of the reach, for weights H and B (Lopuhaä, Rousseeuw 1991).

    For the sum of distances at z, δ from the centre, is larger than at the centre by
    H(δ − 2·reach) − Bδ at least.
    """
    return ball(env, 2 * env.honest / (env.honest - env.byzantine) * env.reach)


def weiszfeld_from_zero(smoothing: float, steps: int) -> Promise:
    """A step from z is no longer than m/(m−f) max(‖z‖ + longest, ν).

    For Σ w_i ‖x_i − z‖ ≤ Σ_i 1, and honest weights are 1/max(‖z‖ + longest, ν) at
    least. The lengths after k steps add up to ((1 + m/(m−f))^k − 1) max(longest, ν).
    """

    def promise(env):
        ratio = (env.honest + env.byzantine) / env.honest
        size = max(env.longest, smoothing)
        return ball(env, ((1 + ratio) ** steps - 1) * size, np.zeros_like(env.center))

    return promise


def descent_from_median(env: Envelope) -> Region:
    """Where the sum of distances is no larger than at the coordinate-wise median.

    As above, H(δ − 2·reach) − Bδ is at most (H + B) times how far that median is.
    """
    h, b = env.honest, env.byzantine
    off = farthest(env, hull(env))
    return ball(env, (2 * h * env.reach + (h + b) * off) / (h - b))


def medoid(env: Envelope) -> Region:
    """2 (h−1)/(h−f) diameters from an honest row, by the sums of distances.

    With δ from an honest row j to the row chosen: hδ − 2 Σ_honest d(j, ·) ≤ fδ.
    """
    h, f = env.honest, env.byzantine
    return ball(env, env.reach + 2 * (h - 1) / (h - f) * env.diameter)


def krum(power: float = 2, neighbors: Callable[[int, int], int] | None = None):
    """Within (q / (q−f+1))^(1/p) diameters of an honest row.

    An honest row scores q·diameter^p at most, so does what is chosen, and of the q
    neighbours of a Byzantine row q−f+1 are honest. So for all of the m−f best.
    """

    def promise(env):
        m, f = env.m, env.f
        q = m - f - 2 if neighbors is None else neighbors(m, f)
        return ball(env, env.reach + (q / (q - f + 1)) ** (1 / power) * env.diameter)

    return promise


def tightest(env: Envelope) -> Region:
    """Every row kept is within a diameter of an honest row: MDA, MoNNA's pivot."""
    return ball(env, env.reach + env.share * env.diameter)


def least_spread(constant: float) -> Promise:
    """√κ of the honest spread, κ = constant · f/(m−f) (1 + f/(m−2f))²."""

    def promise(env):
        m, f = env.m, env.f
        kappa = constant * f / (m - f) * (1 + f / (m - 2 * f)) ** 2
        return ball(env, (1 + kappa**0.5) * env.reach)  # The mean is in reach.

    return promise


def centered_clipping(radius: float, steps: int) -> Promise:
    """f·radius/m a step from where the honest rows alone would lead, from zero.

    v ↦ v + clip(x − v) is nonexpansive, as x − v less its projection on a ball is.
    """

    def promise(env):
        v = np.zeros_like(env.center)
        for _ in range(steps):
            gaps = env.rows - v
            far = np.maximum(norm(gaps), radius)
            v = v + np.sum(gaps * (radius / far)[:, None], axis=0) / env.m
        return ball(env, steps * env.f * radius / env.m, v)

    return promise


def signs(env: Envelope) -> Region:
    """Right where all honest rows agree, and between −1 and 1."""
    low, high = np.where(env.low > 0, 1, -1), np.where(env.high < 0, -1, 1)
    return Region(env.center, np.inf, low, high)


def trusted(env: Envelope) -> Region:
    """No longer than the reference, and never against it."""
    origin = np.zeros_like(env.center)
    length = float(norm(env.reference))
    return ball(env, length, origin)._replace(side=env.reference)


# --- meta-rules -----------------------------------------------------------------------


def _unseen(env: Envelope, **changes) -> Envelope:
    return dataclasses.replace(env, rows=None, finite=None, **changes)


def _trimmed(base: Promise, share: Callable[[Envelope], float]) -> Promise:
    # What is kept is no farther from the centre than an honest row, so at most
    # 2·farthest + reach from the envelope's, if Byzantine.
    def promise(env):
        off = farthest(env, base(env))
        return ball(env, env.reach + 2 * share(env) * off)

    return promise


def ctma(base: Promise) -> Promise:
    """The mean of the rows nearest the base's result."""
    return _trimmed(base, lambda env: env.share)


def aksel(count: Callable[[int, int], int] = lambda m, f: m - f) -> Promise:
    """The same around the median, of so many rows."""
    return _trimmed(hull, lambda env: min(1, env.f / count(env.m, env.f)))


def nnm(base: Promise) -> Promise:
    """An honest row's neighbours are within a diameter of it, f of m−f Byzantine."""

    def promise(env):
        more = env.share * env.diameter
        reach = env.reach + more
        return base(
            _unseen(
                env,
                reach=reach,
                diameter=min(2 * reach, env.diameter + 2 * more),
                low=env.low - more,
                high=env.high + more,
                shortest=max(0, norm(env.center) - reach),
                longest=env.longest + more,
            )
        )

    return promise


def bucketing(base: Promise, size: int = 2) -> Promise:
    """Means of honest rows lie where these do; f buckets at most hold another."""

    def promise(env):
        n = -(-env.m // size)
        shortest = max(0, norm(env.center) - env.reach)
        seen = {"m": n, "honest": n - env.f, "byzantine": env.f}
        return base(_unseen(env, shortest=shortest, **seen))

    return promise


def _clipped(env: Envelope, least: float, most: float) -> Envelope:
    """With all rows cut to one norm between `least` and `most`.

    Cutting is a projection on a ball, which is nonexpansive.
    """
    length = norm(env.center)
    center = env.center * min(1, most / length) if length > 0 else env.center
    moved = max(0, min(length, most) - least)
    kept = min(1, least / env.longest) if env.longest > 0 else 1
    return _unseen(
        env,
        center=center,
        reach=env.reach + moved,
        low=np.minimum(env.low, env.low * kept),
        high=np.maximum(env.high, env.high * kept),
        shortest=min(env.shortest, least),
        longest=min(env.longest, most),
    )


def _after_clipping(base: Promise, env: Envelope) -> Region:
    """Lengths after the cut, and distances to √ε of these where the base reads them."""
    region = base(env)
    if np.isinf(region.radius):
        return region
    blur = 2 * env.eps**0.5 * env.longest
    return base(
        _unseen(
            env,
            reach=env.reach + blur,
            diameter=env.diameter + 2 * blur,
            low=env.low - blur,
            high=env.high + blur,
        )
    )


def clipping(base: Promise, max_norm: float) -> Promise:
    """All rows cut to a norm that is given."""
    return lambda env: _after_clipping(base, _clipped(env, max_norm, max_norm))


def arc(base: Promise) -> Promise:
    """All rows cut to a norm between that of the shortest and the longest honest row.

    For f ≤ k < m−f, the (k+1)-th largest norm is neither above nor below these.
    """
    return lambda env: _after_clipping(base, _clipped(env, env.shortest, env.longest))
