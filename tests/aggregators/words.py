"""The words of the adversary's grammar: where attackers put their rows."""

from typing import NamedTuple

import numpy as np


class Scene(NamedTuple):
    """What an attacker knows."""

    honest: np.ndarray  # [h, d], in the dtype of the draw, as float64.
    f: int
    center: np.ndarray
    spread: float  # The largest distance from the centre, never zero.
    power: float
    largest: float  # Of the dtype, and its smallest numbers.
    tiny: float
    subnormal: float
    end: np.ndarray  # Where the rule ended up before.
    rng: np.random.Generator

    @property
    def direction(self) -> np.ndarray:
        d = len(self.center)
        one_hot = np.eye(d)[self.rng.integers(d)]
        ways = (self.rng.normal(size=d), np.ones(d), one_hot, -one_hot)
        way = ways[self.rng.integers(len(ways))]
        return way / np.linalg.norm(way)

    @property
    def distance(self) -> float:
        with np.errstate(over="ignore"):
            return float(min(self.spread * np.float64(10) ** self.power, self.largest))


def _far(s):
    """All at one far point."""
    return np.tile(s.center + s.distance * s.direction, (s.f, 1))


def _two_scales(s):
    """Half a billion times farther than the others."""
    rows, near = _far(s), s.f // 2
    rows[:near] = s.center + (rows[:near] - s.center) * 1e-9
    return rows


def _ladder(s):
    """Each at another scale."""
    steps = np.geomspace(1, max(1.0, s.distance / s.spread), s.f + 1)[1:]
    return s.center + steps[:, None] * s.spread * s.direction


def _antipodal(s):
    sides = np.where(np.arange(s.f) % 2, -1, 1)[:, None]
    return s.center + sides * s.distance * s.direction


def _cancelling(s):
    """Far on both sides, so that the mean of two lies nearer by far than they do."""
    rows = _antipodal(s)
    off = 10.0 ** s.rng.uniform(-8, -3) * s.distance
    return rows + off * s.direction


def _bunch(s):
    """Far, and closer together than honest rows are."""
    jitter = 10.0 ** s.rng.uniform(-6, 0) * s.spread
    return _far(s) + jitter * s.rng.normal(size=(s.f, len(s.center)))


def _ring(s):
    """Far, in all directions."""
    ways = s.rng.normal(size=(s.f, len(s.center)))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    return s.center + s.distance * ways


def _axis(s):
    """An honest row but for one coordinate."""
    rows = s.honest[s.rng.integers(len(s.honest), size=s.f)].copy()
    rows[:, s.rng.integers(rows.shape[1])] += s.distance
    return rows


def _end(s):
    """One far, the others where the rule ended up before."""
    rows = np.tile(s.end, (s.f, 1))
    rows[0] = _far(s)[0]
    return rows


def _beside_the_end(s):
    """A far pair, the others near where the rule ended up before."""
    near = 10.0 ** s.rng.uniform(-6, 0) * s.spread
    rows = s.end + near * s.rng.normal(size=(s.f, len(s.center)))
    rows[:2] = _far(s)[:2]
    return rows


def _copies(s):
    return np.tile(s.honest[s.rng.integers(len(s.honest))], (s.f, 1))


def _near(s):
    """A little is enough, all alike or along one line."""
    z = s.rng.choice([0.1, 0.3, 1, 1.5, 3, 10, 100])
    rows = np.tile(s.center + z * s.honest.std(axis=0), (s.f, 1))
    if s.rng.random() < 0.5:
        rows += z * s.spread * s.rng.normal(size=(s.f, 1)) * s.direction
    return rows


def _mirrored(s):
    back = 2 * s.center - s.honest[s.rng.integers(len(s.honest), size=s.f)]
    return back if s.rng.random() < 0.5 else -back


def _subnormal(s):
    """Of zero almost, as it is or beside an honest row."""
    tiny = s.subnormal * s.rng.integers(-3, 4, size=(s.f, len(s.center)))
    beside = s.honest[0] if s.rng.random() < 0.3 else 0
    return tiny * s.rng.choice([1.0, 1e3, 1e6]) + beside


# Where the code takes another way, or numbers leave their range: of lengths, ...
LENGTHS = [1e18, 1.8446744e19, 1.0842022e-19, 1e-18, 2.0**64, 2.0**-64, 1e-15, 0.1, 2]
# ... of multiples of the honest spread.
MULTIPLES = [31.622776, 100, 1e3, 1e4, 2896.3094, 1.0, 2.0]


def _edge(s):
    """Just below and just above the thresholds of the code."""
    beyond = 1 + s.rng.choice([-1e-3, -1e-6, 0, 1e-6, 1e-3], size=(s.f, 1))
    kind = s.rng.integers(4)
    if kind == 0:
        sizes = s.rng.choice(LENGTHS, size=(1, 1)) * beyond
        return sizes * s.direction
    if kind == 1:
        return s.center + s.rng.choice(MULTIPLES) * s.spread * beyond * s.direction
    m = len(s.honest) + s.f
    ends = [s.largest, s.largest / m, s.largest / 2, s.largest**0.5, s.tiny**0.5]
    # Infinity times a zero of the direction would be no number.
    sizes = np.minimum(s.rng.choice(ends) * beyond, s.largest)
    if kind == 2:
        return sizes * s.direction
    sides = s.rng.choice([-1.0, 1.0], size=(s.f, len(s.center)))
    return sizes * sides


def _not_finite(s):
    values = [np.nan, np.inf, -np.inf]
    rows = _far(s)
    if s.rng.random() < 0.5:
        rows[:] = s.rng.choice(values, size=(s.f, 1))
    else:
        rows[np.arange(s.f), s.rng.integers(rows.shape[1], size=s.f)] = s.rng.choice(
            values, size=s.f
        )
    return rows


ATTACKS = {
    "far": _far,
    "two scales": _two_scales,
    "ladder": _ladder,
    "antipodal": _antipodal,
    "cancelling": _cancelling,
    "bunch": _bunch,
    "ring": _ring,
    "axis": _axis,
    "end": _end,
    "beside the end": _beside_the_end,
    "copies": _copies,
    "near": _near,
    "mirrored": _mirrored,
    "subnormal": _subnormal,
    "edge": _edge,
    "not finite": _not_finite,
}
READS_END = ("end", "beside the end")  # Drawn again once the rule has been run.
