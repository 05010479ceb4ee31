"""A strategy's state in one file, which is whole or not there.

Written beside its place, flushed to the disk, and renamed: whoever is killed meanwhile
leaves the file of the round before. NumPy's format without pickles, and JSON.
"""

import json
import os
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byzjax.integrations.flower import npy

_VERSION = 4


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], facts: Any) -> None:
    """Replaces the file by one with these arrays and facts."""
    # NumPy's format has no name for bfloat16 and its like: their bytes, and the name.
    viewed = {k: str(x.dtype) for k, x in arrays.items() if x.dtype.kind == "V"}
    arrays = {
        k: np.asarray(x, order="C")[..., None].view(np.uint8) if k in viewed else x
        for k, x in arrays.items()
    }
    facts = {"version": _VERSION, "arrays": sorted(arrays), "viewed": viewed, **facts}
    header = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    path = path.resolve()  # Of a link, what it names is replaced.
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = unfinished(path)
    with beside.open("wb") as file:
        np.savez(file, allow_pickle=False, __facts__=header, **arrays)
        file.flush()
        os.fsync(file.fileno())
    try:
        beside.replace(path)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"RobustStrategy needs a checkpoint of its own, got {path}, which another "
            "run writes as well: give each its file"
        ) from error
    # The name is on the disk only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unfinished(path: pathlib.Path) -> pathlib.Path:
    """Where a checkpoint is written, until it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays and facts of `write`.

    Raises:
      ValueError: a file that is no checkpoint.
    """
    with path.open("rb") as opened:
        try:
            if not zipfile.is_zipfile(opened):
                raise ValueError("it is no archive")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(arrays.pop("__facts__").tobytes())
            version, names = facts["version"], facts["arrays"]
            # The archive has a checksum of each array, and none of its name.
            if names != sorted(arrays):
                raise ValueError(f"it has the arrays {sorted(arrays)}, not {names}")
            for name, dtype in facts["viewed"].items():
                arrays[name] = arrays[name].view(npy.dtype_of(dtype))[..., 0]
        except Exception as error:  # A damaged archive raises what it likes.
            raise ValueError(
                f"RobustStrategy needs a checkpoint of its own, got the file {path}: "
                f"{error!r}. Move it away to start anew"
            ) from error
    if version != _VERSION:
        raise ValueError(
            f"RobustStrategy needs a checkpoint of version {_VERSION}, got version "
            f"{version} in {path}: finish that run with the byzjax that began it, or "
            "move it away to start anew"
        )
    return arrays, facts


def leaves(prefix: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a state as named arrays; random keys as their numbers."""
    return {
        # A Python number as JAX's, which it is after the first step.
        f"{prefix}/{i}": np.asarray(
            jax.random.key_data(x) if _is_key(x) else jnp.asarray(x)
        )
        for i, x in enumerate(jax.tree.leaves(tree))
    }


def form(tree: Any) -> list[str]:
    """What the leaves of a state are called in it: two of one shape are two states."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in named]


def check_form(prefix: str, saved: list[str], like: Any) -> None:
    """Raises unless a state of this `form` was saved."""
    if saved != form(like):
        raise _another(prefix)


def _another(prefix: str) -> ValueError:
    return ValueError(
        f"RobustStrategy needs the {prefix} that its checkpoint was written with, got "
        "another: give the same arguments as before, or move the checkpoint away to "
        "start anew"
    )


def restored(prefix: str, arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The state whose `leaves` these arrays are, of the structure of `like`.

    Raises:
      ValueError: arrays of another state.
    """
    found, structure = jax.tree.flatten(like)
    new = []
    for i, leaf in enumerate(found):
        saved = arrays.get(f"{prefix}/{i}")
        numbers = jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        wanted = numbers.shape, np.dtype(numbers.dtype)
        if saved is None or (saved.shape, saved.dtype) != wanted:
            raise _another(prefix)
        back = jnp.asarray(saved)
        if _is_key(leaf):
            back = jax.random.wrap_key_data(back, impl=jax.random.key_impl(leaf))
        new.append(back)
    if f"{prefix}/{len(found)}" in arrays:
        raise _another(prefix)
    return jax.tree.unflatten(structure, new)


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
