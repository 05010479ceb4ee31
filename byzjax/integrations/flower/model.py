"""The model that was sent: what a reply has to look like, and what becomes of it.

The floating-point arrays of a model, in the order of its record, are one vector of
float32, since rules do not care where a coordinate lives. Arrays of integers or bools
(counters of a normalisation, masks) are not trained: a reply has to have them, and the
model keeps its own.
"""

import concurrent.futures
import functools
import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flwr.app import Array, ArrayRecord

from byzjax.integrations.flower import npy
from byzjax.integrations.flower.npy import Rejected

_PIECE = 2**18  # Numbers that one thread subtracts at a time.
_LARGEST = float(np.finfo(np.float32).max)


class Leaf(NamedTuple):
    """One array of the model."""

    value: np.ndarray
    columns: slice | None  # Where it is in the vector; None if it is not trained.


class Model:
    """A record of arrays, opened: leaves by name, the trained ones also as a vector."""

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self.leaves: dict[str, Leaf] = {}
        self.columns = 0
        for name, array in record.items():
            self.leaves[name] = self._opened(name, array)
        if not self.columns:
            raise ValueError(
                "RobustStrategy needs a model with floating-point arrays, got the "
                f"arrays {sorted(self.leaves)}"
            )
        self.bytes = sum(leaf.value.nbytes for leaf in self.leaves.values())

    def _opened(self, name: str, array: Array) -> Leaf:
        try:
            dtype = npy.dtype_of(array.dtype)
            value = npy.view(array.data, dtype, tuple(array.shape))
        except Rejected as reason:
            raise ValueError(
                "RobustStrategy needs arrays as flwr.app.Array makes them of NumPy's "
                f"or PyTorch's, got the array {name!r}: {reason}"
            ) from None
        if jnp.issubdtype(dtype, jnp.floating):
            if not np.isfinite(_wide(value)).all():
                raise ValueError(
                    "RobustStrategy needs floating-point arrays that are finite, got "
                    f"NaN or infinity in {name!r}: keep a mask out of the model's "
                    "record, or send it as bools"
                )
            first, self.columns = self.columns, self.columns + value.size
            return Leaf(value, slice(first, self.columns))
        if dtype.kind not in "biu":
            raise ValueError(
                "RobustStrategy needs arrays of floats, integers or bools, got "
                f"{dtype} in {name!r}"
            )
        return Leaf(value, None)

    def update(self, record: ArrayRecord, row: np.ndarray) -> None:
        """Writes a reply minus the model to `row` [columns], float32.

        Raises:
          Rejected: a reply that is not like the model, or is not finite. All headers
            are looked at before a number is.
        """
        if record.keys() != self.leaves.keys():
            strange = sorted(map(str, record.keys() ^ self.leaves.keys()))
            shown = ", ".join(repr(name[:40]) for name in strange[:3])
            raise Rejected(f"has other arrays than the model: {shown}")
        trained = []
        for name, leaf in self.leaves.items():
            array = record[name]
            if array.stype != "numpy.ndarray":
                raise Rejected(f"{name!r} is serialised in another way than NumPy's")
            if leaf.value.dtype.kind == "V" and array.dtype != str(leaf.value.dtype):
                raise Rejected(f"{name!r} needs dtype {leaf.value.dtype}")
            try:
                value = npy.view(array.data, leaf.value.dtype, leaf.value.shape)
            except Rejected as reason:
                raise Rejected(f"{name!r} {reason}") from None
            if leaf.columns is not None:
                trained.append((value, leaf.value, row[leaf.columns]))
        if not _subtracted(trained) <= _LARGEST:
            raise Rejected(_what_is_wrong(row))

    def moved(self, step: np.ndarray) -> "Model | None":
        """The model plus a step [columns]; None if it would no longer be finite."""
        record = ArrayRecord()
        for name, leaf in self.leaves.items():
            if leaf.columns is None:
                record[name] = self.record[name]
                continue
            value = leaf.value
            with np.errstate(over="ignore"):
                new = _wide(value) + step[leaf.columns].reshape(value.shape)
                new = np.asarray(new, order="C").astype(value.dtype, copy=False)
            if not np.isfinite(_wide(new)).all():
                return None
            record[name] = Array(
                str(new.dtype), new.shape, "numpy.ndarray", npy.written(new)
            )
        return Model(record)

    def tree(self) -> dict[str, np.ndarray]:
        """The trained leaves by name, in at least float32: what an optimizer sees."""
        return {
            name: _wide(leaf.value)
            for name, leaf in self.leaves.items()
            if leaf.columns is not None
        }


_Trained = tuple[np.ndarray, np.ndarray, np.ndarray]  # A reply's, the model's, out.


def _subtracted(trained: list[_Trained]) -> float:
    """Fills each `out`; the sum of squares: NaN, infinity and overflow all show."""
    pieces = [piece for leaf in trained for piece in _cut(*leaf)]
    if len(pieces) == len(trained):
        return sum(map(_one_subtracted, pieces))
    return sum(_threads().map(_one_subtracted, pieces))


def _one_subtracted(piece: _Trained) -> float:
    value, mine, out = piece
    with np.errstate(all="ignore"):
        # float64 is rounded after the subtraction, halves are widened before.
        wide = np.promote_types(mine.dtype, np.float32)
        np.subtract(value, mine, out=out, dtype=wide, casting="unsafe")
        out = out.reshape(-1)
        return float(np.dot(out, out))


def _cut(value: np.ndarray, mine: np.ndarray, out: np.ndarray) -> list[_Trained]:
    """Parts for several threads, one after the other in memory, of a large array."""
    if mine.size < 2 * _PIECE or not value.flags.c_contiguous:
        return [(value, mine, out.reshape(mine.shape))]
    value, mine = value.reshape(-1), mine.reshape(-1)
    places = range(0, mine.size, _PIECE)
    parts = [slice(first, first + _PIECE) for first in places]
    return [(value[part], mine[part], out[part]) for part in parts]


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 4))


def _wide(value: np.ndarray) -> np.ndarray:
    """In at least float32."""
    wide = np.promote_types(value.dtype, np.float32)
    return value.astype(wide, copy=False)


def _what_is_wrong(row: np.ndarray) -> str:
    if np.isnan(row).any():
        return "has NaN"
    if np.isinf(row).any():
        return "has infinity"
    return f"is huge: an entry of {np.abs(row).max():.1e}"
