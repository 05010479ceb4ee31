"""Compiled programs of what users call without jit.

Run operation by operation, a rule's loops and conditions are compiled anew at every
call, which takes seconds. So `run` keeps the program of a whole call, for the shapes it
was called with, and gives what jitting it gives, bit for bit.

It is not for calls whose user would see a difference, which `may_run` tells: inside of
a trace, under `jax.disable_jit`, `jax_debug_nans` and `jax_debug_infs`, and of
functions that are not known to be pure.
"""

import collections
import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

_MOST = 128  # Programs that are kept; the one unused for longest is dropped.


class Programs:
    """The programs last used, by what was asked for."""

    def __init__(self, most: int = _MOST):
        self._most = most
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, asked: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """The program kept for what is `asked`, else that of `function`, jitted."""
        with self._lock:
            program = self._kept.pop(asked, None)
            if program is None:
                # A function of its own, so that what JAX keeps of it goes with it.
                program = jax.jit(functools.partial(function))
            self._kept[asked] = program
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return program


SHARED = Programs()


def may_run(identity: Hashable, arguments: Any) -> bool:
    """Whether a call is one that `run` may compile: see above.

    Args:
      identity: the same for functions that do the same; None if that is not known, or
        the function may do more than compute.
      arguments: a tree.
    """
    if identity is None or _is_watched():
        return False
    leaves = jax.tree.leaves(arguments)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return False
    # What is known in a trace becomes part of its program nevertheless.
    return not isinstance(lax.full((), 0.0, np.float32), jax.core.Tracer)


def run(
    identity: Hashable, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """`function(*args, **kwargs)` by a program, unless it has to see what jit hides.

    Args:
      identity: as in `may_run`, which was asked.
      function: of arrays; it is jitted for each form of arguments.
      *args: trees.
      **kwargs: trees.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    if not all(map(_is_kept, leaves)):
        return function(*args, **kwargs)
    asked = identity, structure, tuple((x.shape, x.dtype) for x in leaves)
    try:
        program = SHARED.of(asked, function)
    except TypeError:  # A node of the tree that cannot be hashed.
        return function(*args, **kwargs)
    return program(*args, **kwargs)


def _is_watched() -> bool:
    """Whether the user asked to see each operation."""
    switches = "jax_disable_jit", "jax_debug_nans", "jax_debug_infs"
    return any(getattr(jax.config, switch) for switch in switches)


def _is_kept(leaf: Any) -> bool:
    """Whether it is an array that jit leaves as it is.

    Wide ones of NumPy would be cast. Numbers of Python would be hidden, and what is
    checked of them is checked before a trace.
    """
    if isinstance(leaf, jax.Array):
        return True
    if not isinstance(leaf, np.ndarray | np.generic):
        return False
    kinds = np.number, np.bool_  # Those of JAX; strings are left to the rule's errors.
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
        return False
    return jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype
