"""Where honest rows lie, seen from outside: what promises are made of.

Everything is NumPy in float64, and lengths are 2-norms, whatever their range.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Envelope:
    """The honest rows, seen from outside; all lengths are 2-norms."""

    m: int  # The workers that the rule sees,
    f: int  # and how many of them are Byzantine at most.
    honest: float  # The weight of the honest ones, m − f without weights,
    byzantine: float  # and of the others.
    center: np.ndarray  # Any point; their mean, where the rows are known.
    reach: float  # No honest row is farther from it.
    diameter: float  # No two honest rows are farther apart.
    low: np.ndarray  # The least and the largest of each coordinate.
    high: np.ndarray
    shortest: float  # The norms of the honest rows.
    longest: float
    rows: np.ndarray | None = None  # The honest rows, where they are known;
    finite: np.ndarray | None = None  # all rows that are finite, whoever sent them;
    poisoned: bool = False  # whether some are not;
    reference: np.ndarray | None = None  # what the server trusts.
    eps: float = 0.0  # The last place of what distances are computed in.

    @property
    def share(self) -> float:
        """The largest share of Byzantine rows among the m−f that a rule keeps."""
        kept = (1 - self.f / self.m) * (self.honest + self.byzantine)
        return self.byzantine / kept


def norm(x) -> np.ndarray:
    """Of the last axis, whatever the range."""
    size = np.max(np.abs(x), axis=-1, initial=0, keepdims=True)
    unit = np.divide(x, size, out=np.zeros_like(x), where=size > 0)
    return size[..., 0] * np.sqrt(np.sum(unit * unit, axis=-1))


def envelope(stack, byzantine, f, weights=None, **known) -> Envelope:
    """Of a stack [m, d] whose rows `byzantine` [m] are the attackers'."""
    stack = np.asarray(stack, np.float64)
    m = len(stack)
    weights = np.ones(m) if weights is None else np.asarray(weights, np.float64)
    rows = stack[~byzantine & (weights > 0)]
    center = np.mean(rows, axis=0)
    gaps = [np.max(norm(rows - row)) for row in rows]
    lengths = norm(rows)
    finite = np.isfinite(stack).all(axis=1)
    return Envelope(
        m=m,
        f=f,
        honest=float(np.sum(weights[~byzantine])),
        byzantine=float(np.sum(weights[byzantine])),
        center=center,
        reach=float(np.max(norm(rows - center))),
        diameter=float(max(gaps)),
        low=np.min(rows, axis=0),
        high=np.max(rows, axis=0),
        shortest=float(np.min(lengths)),
        longest=float(np.max(lengths)),
        rows=rows,
        finite=stack[finite],
        poisoned=not finite.all(),
        **known,
    )
