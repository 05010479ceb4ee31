"""A grammar of what attackers send, as pure functions of a short description.

A `Draw` says everything in one line that can be pasted back. `rows_of` makes the stack
of it, in float64 first, then in the dtype of the draw.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from tests.aggregators.words import ATTACKS, Scene


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
    narrow: int = 0  # So many columns are a leaf of float32 beside one of float64.


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


# Leaves of float32 and float64 in one tree, with x64. Of the wider one the scale may be
# none of the floats of the other.
TWO_WIDTHS = "two widths"


def narrowest(dtype: str) -> str:
    """The dtype that results are good to."""
    return "float32" if dtype == TWO_WIDTHS else dtype


def _cast(rows, dtype):
    """Rows in their dtype; of two widths as float64, half of the columns rounded."""
    if dtype != TWO_WIDTHS:
        return rows.astype(jnp.dtype(dtype))
    rows, k = np.array(rows, np.float64), _narrow(rows.shape[-1], dtype)
    rows[..., :k] = rows[..., :k].astype(np.float32)
    return rows


def _narrow(d, dtype):
    return -(-d // 2) if dtype == TWO_WIDTHS else 0


def limits(dtype: str) -> tuple[float, float, float]:
    info = jnp.finfo(narrowest(dtype))
    return float(info.max), float(info.tiny), float(info.smallest_subnormal)


def honest_of(draw: Draw) -> np.ndarray:
    """The honest rows [m − f, d], float64."""
    rng = np.random.default_rng([draw.seed, 1])
    rows = SHAPES[draw.shape](rng, draw.m - draw.f, draw.d)
    way = rng.normal(size=draw.d)
    center = draw.offset * way / np.linalg.norm(way)
    rows = (rows + center) * draw.scale
    if draw.dtype == TWO_WIDTHS and draw.seed % 3 == 0:
        k = _narrow(draw.d, draw.dtype)
        rows[:, :k] *= draw.seed % 2  # Zeros, or as they are, beside:
        rows[:, k:] *= 1e-50
    return rows


def rows_of(draw: Draw, end=None, at=None) -> Stack:
    """The stack of a draw.

    Args:
      draw: what to make.
      end: [d], where the rule ended up before; the coordinate-wise median for None.
      at: the index of a row that has to be honest, if any has.
    """
    m, f, d = draw.m, draw.f, draw.d
    honest = _cast(honest_of(draw), draw.dtype).astype(np.float64)
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
    rows = _cast(np.concatenate([evil, honest])[place], draw.dtype)
    reference = center if rng.random() < 0.5 else np.ones(d)
    reference = _cast(reference, draw.dtype)
    weights = _weights(draw, rng, byzantine)
    return Stack(rows, byzantine, weights, reference, _narrow(d, draw.dtype))


def _parts(total, parts):
    return [len(x) for x in np.array_split(np.arange(total), parts)]


# --- drawing descriptions -------------------------------------------------------------

# Of the honest spread and its distance from zero, what each dtype holds well; of
# float32 with room for squares, which rules over the geometry need.
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
