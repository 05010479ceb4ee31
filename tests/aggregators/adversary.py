"""A grammar of what attackers send, as pure functions of a short description.

A `Draw` says everything in one line that can be pasted back. `rows_of` makes the stack
of it, in float64 first, then in the dtype of the draw.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Draw(NamedTuple):
    """One stack: what the honest rows are like, and where the attackers' are put."""

    m: int
    f: int
    d: int
    seed: int
    scale: float = 1.0  # The honest spread in each coordinate,
    offset: float = 0.0  # how many spreads from zero their centre is,
    shape: str = "gaussian"  # and one of SHAPES.
    dtype: str = "float32"
    attack: str = "far"  # Words of ATTACKS; of "a+b" the first half sends a.
    power: float = 6.0  # How far: ten to so many honest spreads.
    weights: str = "none"  # One of WEIGHTS.
    x64: bool = False


class Stack(NamedTuple):
    rows: np.ndarray  # [m, d]
    byzantine: np.ndarray  # [m], bool
    weights: np.ndarray | None  # [m]
    reference: np.ndarray  # [d], the server's own row.


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


# --- honest rows ----------------------------------------------------------------------


def _one_coordinate(rng, h, d):
    return rng.normal(size=(h, 1)) * np.eye(d)[rng.integers(d)]


def _pairs(rng, h, d):
    rows = np.repeat(rng.normal(size=(-(-h // 2), d)), 2, axis=0)[:h]
    return rows + 1e-4 * rng.normal(size=(h, d))


def _one_astray(rng, h, d):
    rows = 1e-3 * rng.normal(size=(h, d))
    rows[0] = rng.normal(size=d)
    return rows


SHAPES = {
    "gaussian": lambda rng, h, d: rng.normal(size=(h, d)),
    "one coordinate": _one_coordinate,
    "pairs": _pairs,
    "equal": lambda rng, h, d: np.zeros((h, d)),
    "uneven": lambda rng, h, d: rng.normal(size=(h, d)) * np.geomspace(1, 1e-6, d),
    "one astray": _one_astray,
    "two camps": lambda rng, h, d: (
        rng.choice([-1.0, 1.0], (h, 1)) + 0.01 * rng.normal(size=(h, d))
    ),
}


# --- attackers' rows ------------------------------------------------------------------


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
    if kind == 2:
        return s.rng.choice(ends) * beyond * s.direction
    sides = s.rng.choice([-1.0, 1.0], size=(s.f, len(s.center)))
    return s.rng.choice(ends) * beyond * sides


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


# --- weights --------------------------------------------------------------------------


def _with_zeros(rng, m):
    drawn = rng.uniform(0.5, 2, m)
    drawn[rng.permutation(m)[: m // 3]] = 0
    return drawn


WEIGHTS = {
    "none": lambda rng, m: None,
    "ones": lambda rng, m: np.ones(m),
    "tenths": lambda rng, m: np.full(m, 0.1),
    "integers": lambda rng, m: rng.integers(1, 600, m).astype(float),
    "random": lambda rng, m: rng.uniform(0.01, 1, m),
    "zeros": _with_zeros,
}


def _weights(draw, rng, byzantine):
    """With which attackers hold no more than f/m of the total."""
    drawn = WEIGHTS[draw.weights](rng, draw.m)
    if drawn is None:
        return None
    allowed = np.mean(drawn[~byzantine])
    if draw.weights == "integers":
        allowed = np.floor(allowed)
    drawn[byzantine] = np.minimum(drawn[byzantine], allowed)
    # A rounded share above f/m would be another promise.
    if draw.weights in ("random", "zeros"):
        drawn[byzantine] *= 1 - 1e-3
    return drawn


# --- the stack ------------------------------------------------------------------------


def limits(dtype: str) -> tuple[float, float, float]:
    info = jnp.finfo(dtype)
    return float(info.max), float(info.tiny), float(info.smallest_subnormal)


def honest_of(draw: Draw) -> np.ndarray:
    """The honest rows [m − f, d], float64."""
    rng = np.random.default_rng([draw.seed, 1])
    rows = SHAPES[draw.shape](rng, draw.m - draw.f, draw.d)
    way = rng.normal(size=draw.d)
    center = draw.offset * way / np.linalg.norm(way)
    return (rows + center) * draw.scale


def rows_of(draw: Draw, end=None, at=None) -> Stack:
    """The stack of a draw.

    Args:
      draw: what to make.
      end: [d], where the rule ended up before; the coordinate-wise median for None.
      at: the index of a row that has to be honest, if any has.
    """
    m, f, d = draw.m, draw.f, draw.d
    honest = honest_of(draw).astype(jnp.dtype(draw.dtype)).astype(np.float64)
    rng = np.random.default_rng([draw.seed, 2])
    center = np.mean(honest, axis=0)
    spread = np.max(np.linalg.norm(honest - center, axis=1))
    spread = spread if spread > 0 else draw.scale
    largest, tiny, subnormal = limits(draw.dtype)
    if end is None or not np.isfinite(end).all():
        end = np.median(honest, axis=0)
    words, sent = draw.attack.split("+"), []
    for k, count in enumerate(_parts(f, len(words))):
        scene = Scene(
            *(honest, count, center, spread, draw.power, largest, tiny, subnormal),
            *(end, np.random.default_rng([draw.seed, 3, k])),
        )
        if count:
            with np.errstate(over="ignore"):
                evil = ATTACKS[words[k]](scene)
            # Rows that are not finite are a word of their own.
            kept = words[k] == "not finite" and ~np.isfinite(evil)
            sent.append(np.where(kept, evil, np.clip(evil, -largest, largest)))
    evil = np.concatenate(sent) if sent else np.zeros((0, d))
    place = rng.permutation(m)
    byzantine = place < f
    if at is not None and byzantine[at]:
        other = int(np.flatnonzero(~byzantine)[0])
        place[[at, other]] = place[[other, at]]
        byzantine = place < f
    rows = np.concatenate([evil, honest])[place].astype(jnp.dtype(draw.dtype))
    reference = center if rng.random() < 0.5 else np.ones(d)
    reference = reference.astype(rows.dtype)
    return Stack(rows, byzantine, _weights(draw, rng, byzantine), reference)


def _parts(total, parts):
    return [len(x) for x in np.array_split(np.arange(total), parts)]


# --- drawing descriptions -------------------------------------------------------------

# Of the honest spread and its distance from zero, what each dtype holds well.
SCALES = {"float16": (-2, 1.5), "float32": (-30, 25)}
OFFSETS = {"float16": 2, "bfloat16": 2, "float32": 4}


def random_draw(seed, m, f, d, *, dtype="float32", weighted=False, x64=False) -> Draw:
    """The seed-th draw of this shape; half of them at a scale of one."""
    rng = np.random.default_rng([seed, m, f, d])
    low, high = SCALES.get(dtype, SCALES["float32"])
    scale = 1.0 if rng.random() < 0.5 else float(f"{10 ** rng.uniform(low, high):.2g}")
    most = OFFSETS.get(dtype, OFFSETS["float32"])
    offset = float(rng.choice([0.0, 1.0, 10.0**most, 10 ** rng.uniform(-1, most)]))
    shape = str(rng.choice(list(SHAPES), p=_favouring("gaussian", SHAPES)))
    words = list(rng.choice(list(ATTACKS), 2 if rng.random() < 0.3 else 1))
    kinds = [kind for kind in WEIGHTS if kind != "none"]
    return Draw(
        *(m, f, d, seed, scale, float(f"{offset:.3g}"), shape, dtype),
        attack="+".join(words),
        power=float(f"{rng.uniform(1, 40 if rng.random() < 0.5 else 12):.3g}"),
        weights=str(rng.choice(kinds)) if weighted else "none",
        x64=x64,
    )


def _favouring(first, names):
    chances = np.array([3.0 if name == first else 1.0 for name in names])
    return chances / chances.sum()
