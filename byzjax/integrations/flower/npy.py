"""An array out of the bytes that a client calls one, without a copy and without trust.

`numpy.load` opens whatever it finds: a zip in place of an array, a header that asks for
10^10 floats, brackets so deep that the parser gives up. Here the header is read first
and compared with what is wanted; nothing is allocated for it.
"""

import ast
import contextlib
import functools
import io
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096  # Bytes. NumPy's are 128; others pad to more.


class Rejected(Exception):
    """A reply that is not used; its text is the reason."""


def view(data: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array that `.npy` bytes hold, read-only and in place.

    Args:
      data: what a client sent.
      dtype: which it has to be; bytes of the other order are accepted.
      shape: which it has to have.

    Raises:
      Rejected: bytes that are anything else.
    """
    if not isinstance(data, bytes):
        raise Rejected(f"needs bytes, got {type(data).__name__}")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not size < len(data) <= size + _LONGEST_HEADER + 12:
        raise Rejected(
            f"needs {size} bytes behind a header, got {len(data)} bytes in all"
        )
    start, header = _header(data)
    if header.keys() != {"descr", "fortran_order", "shape"}:
        raise Rejected("its header is not that of an array")
    found = _dtype(header["descr"], dtype)
    given = header["shape"]
    # Equality alone would take True for 1.
    if not isinstance(given, tuple) or any(type(n) is not int for n in given):
        raise Rejected("its header has no shape")
    if given != shape:
        raise Rejected(f"needs shape {shape}, got {str(given)[:60]}")
    if not isinstance(header["fortran_order"], bool):
        raise Rejected("its header has no order")
    if len(data) - start != size:
        raise Rejected(f"needs {size} bytes behind its header, got {len(data) - start}")
    flat = np.frombuffer(data, found, offset=start) if size else np.empty(0, found)
    return flat.reshape(shape, order="F" if header["fortran_order"] else "C")


def written(array: np.ndarray) -> bytes:
    """The `.npy` bytes of an array in C order, as `numpy.save` makes them.

    With one copy of the numbers, where that one makes three.
    """
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    numbers = array.reshape(-1).view(np.uint8)
    return b"".join((file.getvalue(), numbers.data))


def _header(data: bytes) -> tuple[int, dict[str, Any]]:
    """Where the numbers start, and what the header says."""
    if data[:6] != _MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise Rejected("its bytes are no array")
    # Version 1 has a length of two bytes, later ones of four.
    form, first = ("<H", 10) if data[6] == 1 else ("<I", 12)
    (length,) = struct.unpack_from(form, data, 8)
    if length > _LONGEST_HEADER or first + length > len(data):
        raise Rejected(f"its header claims {length} bytes")
    text = data[first : first + length].decode("utf-8", "replace")
    return first + length, _parsed(text)


@functools.lru_cache(maxsize=256)  # Most arrays of most replies have the same few.
def _parsed(text: str) -> dict[str, Any]:
    if text.count("(") != 1 or text.count("{") != 1 or "[" in text:
        raise Rejected("its header is not that of a plain array")
    try:
        header = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Rejected("its header cannot be read") from None
    if not isinstance(header, dict):
        raise Rejected("its header is not that of an array")
    return header


def _dtype(name: Any, wanted: np.dtype) -> np.dtype:
    """The dtype that a header names, if it is the one wanted in either byte order."""
    try:
        found = np.dtype(name) if isinstance(name, str) else None
    except Exception:  # NumPy has many ways to dislike a name.
        found = None
    if found is None:
        raise Rejected("its header has no dtype")
    # NumPy writes bfloat16 and its like as nameless bytes of their width.
    if wanted.kind == "V" and found == np.dtype(f"V{wanted.itemsize}"):
        return wanted
    if found.hasobject or found.newbyteorder("=") != wanted.newbyteorder("="):
        raise Rejected(f"needs dtype {wanted}, got {str(found)[:60]}")
    return found


def dtype_of(name: str) -> np.dtype:
    """The dtype of that name, bfloat16 and its like included."""
    try:
        return np.dtype(name)
    except TypeError:
        with contextlib.suppress(AttributeError, TypeError):
            return np.dtype(getattr(jnp, name))
    raise Rejected(f"has the dtype {name[:20]!r}, which is unknown")
