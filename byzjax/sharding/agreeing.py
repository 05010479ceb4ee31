"""Whether processes have the same values: `agree`."""

import hashlib
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byzjax.sharding import runtime

_calls = itertools.count()
_SECONDS = 60.0
_MOST_SHOWN = 5
_FEW = 4


def agree(**trees: Any) -> None:
    r"""Says which values differ between processes that need the same ones.

    What every process passes to a step as a whole, the key, parameters, batches of all
    workers, is taken to be the same everywhere, and nothing checks it: a process with
    another seed trains another model. Call this once at the start, in all processes,
    and again when in doubt; it sends a hash of each leaf. `byzjax.sharding.run` does so
    at its start, and with its state after each loss.

    Args:
      **trees: what is to be the same, by the names that an error is to use: keys,
        arrays of NumPy or JAX, numbers, strings, trees of these.

    Raises:
      ValueError: the leaves that differ, and in which processes; or an array of which a
        process has only a part.
      TimeoutError: a process that did not call this within a minute.

    Example:
      >>> import byzjax, jax
      >>> byzjax.sharding.agree(key=jax.random.key(0), params={"w": jax.numpy.ones(3)})
    """
    owner, name = "sharding.agree", f"agree/{next(_calls)}"
    say(name, owner, trees)
    try:
        runtime.wait(name, _SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"{owner} {error}") from error
    compare(name, owner)


def say(name: str, owner: str, trees: Any) -> None:
    """Leaves this process's values for the others, under a name not used before."""
    own = {
        jax.tree_util.keystr(path, simple=True, separator="."): _digest(owner, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }
    runtime.say(name, json.dumps(own))


def compare(name: str, owner: str) -> None:
    """Raises the error of `agree`, once all have said theirs."""
    if not runtime.is_running():
        return
    texts = sorted(runtime.said(name).items())
    every = {process: json.loads(text) for process, text in texts}
    first = min(every)
    places = [path for found in every.values() for path in found]
    wrong = []
    for path in dict.fromkeys(places):
        values = {process: found.get(path) for process, found in every.items()}
        others = [p for p, value in values.items() if value != values[first]]
        if others:
            wrong.append(
                f"{path} ({_shown(values[first])} in process {first}, "
                f"{_shown(values[others[0]])} in {others})"
            )
    if wrong:
        more = f" and {len(wrong) - _MOST_SHOWN} more" * (len(wrong) > _MOST_SHOWN)
        raise ValueError(
            f"{owner} needs the same values in all processes, got different ones at "
            f"{'; '.join(wrong[:_MOST_SHOWN])}{more}"
        )


def _digest(owner, leaf) -> list[str]:
    """Type, shape, and the values or, where they are many, a hash of them."""
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                raise ValueError(
                    f"{owner} needs arrays that each process has as a whole, got one "
                    f"of shape {leaf.shape} that is spread over processes"
                )
            leaf = leaf.addressable_data(0)
    value = np.asarray(leaf)
    if value.size <= _FEW:
        return [str(value.dtype), str(value.shape), str(value.tolist())]
    content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return [str(value.dtype), str(value.shape), f"of hash {content[:16]}"]


def _shown(digest) -> str:
    if digest is None:
        return "nothing"
    dtype, shape, content = digest
    return content if content[:2] != "of" else f"{dtype}{shape} {content}"
