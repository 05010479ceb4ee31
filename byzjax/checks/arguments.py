"""Numbers, words, keys and names of arguments: `checks.count` and the like."""

import difflib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def present(owner: str, present: Any, m: int) -> Any:
    """Returns a mask [m] of the workers that are present, NumPy's where it is known."""
    given = present if isinstance(present, jax.Array) else np.asarray(present)
    if given.dtype != np.bool_:
        raise TypeError(f"{owner} needs present to be bools, got {given.dtype}")
    if given.shape != (m,):
        raise ValueError(
            f"{owner} needs present of shape (num_workers,) = ({m},), got {given.shape}"
        )
    return given if isinstance(given, jax.core.Tracer) else np.asarray(given)


def extras(
    owner: str, given: Collection[str], takes: Collection[str], cure: str = ""
) -> None:
    """Refuses a keyword that nothing would read, as a misspelt one is not.

    Args:
      owner: what is called.
      given: names of the keywords.
      takes: those that something reads.
      cure: how a rule of one's own takes one, for those that are not misspelt.

    Raises:
      TypeError: as Python does for a function without such a keyword.
    """
    for name in given:
        if name in takes:
            continue
        near = difflib.get_close_matches(name, takes, n=1)
        raise TypeError(
            f"{owner} needs keywords that it takes ({', '.join(sorted(takes))}), got "
            f"{name}=...{f': did you mean {near[0]}?' if near else cure}"
        )


def functions(owner: str, **given: Any) -> None:
    """Raises for what is neither a function nor None."""
    for keyword, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(
                f"{owner} needs {keyword} to be a function, got {keyword}={value!r}"
            )


def count(name: str, *, minimum: int = 0, **value: Any) -> int:
    """Returns the one keyword given if it is an int of at least `minimum`.

    Python's or NumPy's, of 64 bits at most.
    """
    ((keyword, number),) = value.items()
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        cure = ""
        if isinstance(number, jax.Array):
            cure = (
                ": give a Python int, from outside of jit; optax.inject_hyperparams "
                f'leaves it one with static_args=("{keyword}",)'
            )
        raise TypeError(
            f"{name} needs {keyword} to be a static int, got {keyword}={number!r}{cure}"
        )
    if number < minimum:
        raise ValueError(f"{name} needs {keyword} >= {minimum}, got {keyword}={number}")
    if number >= 2**63:
        raise ValueError(f"{name} needs {keyword} < 2**63, got {keyword}={number}")
    return int(number)


def number(
    name: str,
    *,
    minimum: float = 0.0,
    open_interval: bool = False,
    static: bool = False,
    **value: Any,
) -> Any:
    """Checks the one keyword given: a finite number at least (or above) `minimum`.

    Returns:
      The number as a Python float, which goes with arrays of every width; or, unless
      it has to be `static`, as a traced float, as under vmap over strengths, whose
      value cannot be checked.
    """
    ((keyword, number),) = value.items()
    if not _is_real_scalar(number):
        raise TypeError(f"{name} needs {keyword} to be a number, got {number!r}")
    if isinstance(number, jax.core.Tracer):
        if static:
            raise TypeError(
                f"{name} needs {keyword} to be a static number, got the traced "
                f"{keyword}={number!r}: give a Python or NumPy number"
            )
        if jnp.issubdtype(number.dtype, jnp.integer):
            return number.astype(jnp.result_type(float))
        return number
    given = as_float(number)
    ok = given > minimum if open_interval else given >= minimum
    if not ok or math.isinf(given):
        bound = f" {'>' if open_interval else '>='} {minimum:g}"
        raise ValueError(
            f"{name} needs a finite {keyword}{'' if minimum == -math.inf else bound}, "
            f"got {keyword}={number}"
        )
    _check_range(name, keyword, given, given - minimum if open_interval else math.inf)
    return given


def _check_range(name: str, keyword: str, given: float, above: float) -> None:
    """Raises of what is no number in the widest floats: it would end as inf, or zero.

    Args:
      name: what is called.
      keyword: what it is called with.
      given: the number.
      above: by how much it has to be above a bound, or anything large.
    """
    widest = jnp.finfo(jnp.result_type(float))
    least, most = float(widest.tiny), float(widest.max)
    if most < abs(given) or above < least:
        raise ValueError(
            f"{name} needs {keyword} in the range of {widest.dtype}, {least:.3g} to "
            f"{most:.3g}, got {keyword}={given}"
            + ("" if widest.bits == 64 else ": jax_enable_x64 widens it")
        )


def in_dtype(value: Any, dtype: Any) -> jax.Array:
    """A number, traced or not, as an array of the dtype that it goes with.

    Raises:
      ValueError: it is known, and would be an infinity there.
    """
    if isinstance(value, int | float | np.generic):
        value = as_float(value)  # An int may be beyond those of arrays.
        largest = float(jnp.finfo(dtype).max)
        if largest < abs(value) < math.inf:
            raise ValueError(
                f"byzjax needs numbers of a rule or an attack in the range of the "
                f"rows' {jnp.dtype(dtype)}, at most {largest:.3g}, got {value:g}"
            )
    return jnp.asarray(value).astype(dtype)


def as_float(number: Any) -> float:
    """A Python float; of an int beyond its range an infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _is_real_scalar(value: Any) -> bool:
    """Whether it is an int or float of Python, NumPy or JAX, and no bool."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return True
    if not isinstance(value, np.generic | np.ndarray | jax.Array) or value.ndim:
        return False
    kinds = jnp.floating, jnp.integer
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def coefficient(
    name: str,
    requirement: str,
    holds: Callable[[float], bool],
    *,
    static: bool = False,
    **value: Any,
) -> None:
    """Checks the one keyword given: a number for which the requirement `holds`.

    Schedules and traced numbers cannot be checked, and pass unless it is `static`.
    """
    if static:
        number(name, static=True, minimum=-math.inf, **value)
    ((keyword, given),) = value.items()
    if callable(given) and not isinstance(given, type):  # Such as float itself.
        return
    if not _is_real_scalar(given):
        raise TypeError(f"{name} needs {requirement}, got {keyword}={given!r}")
    if isinstance(given, jax.core.Tracer):
        return
    known = as_float(given)
    if not holds(known):
        raise ValueError(f"{name} needs {requirement}, got {keyword}={given}")
    if math.isfinite(known):
        _check_range(name, keyword, known, abs(known) or math.inf)


def flag(name: str, **value: Any) -> None:
    """Checks that the one keyword given is True or False."""
    ((keyword, flag),) = value.items()
    if not isinstance(flag, bool | np.bool_):
        raise TypeError(
            f"{name} needs {keyword} to be True or False, got {keyword}={flag!r}"
        )


def word(name: str, allowed: Sequence[str], **value: Any) -> None:
    """Checks that the one keyword given is one of the words allowed."""
    ((keyword, word),) = value.items()
    if not isinstance(word, str) or word not in allowed:
        *others, last = (f'"{other}"' for other in allowed)
        words = f"{', '.join(others)} or {last}"
        raise ValueError(
            f"{name} needs {keyword} to be {words}, got {keyword}={word!r}"
        )


def minority(name: str, num_byzantine: int) -> Callable[[int], None]:
    """A check that more than half of the workers are honest."""

    def check(m: int) -> None:
        if not m >= 2 * num_byzantine + 1:
            raise ValueError(
                f"{name} needs num_workers >= 2 * num_byzantine + 1, got "
                f"num_workers={m} and num_byzantine={num_byzantine}"
            )

    return check


def key(name: str, key: Any) -> jax.Array:
    """Returns `key`, or says how to give one."""
    if key is None:
        raise ValueError(
            f"{name} needs a key, got key=None: pass key=jax.random.key(...) to update "
            "or aggregate, or wrap the rule in byzjax.with_key(rule, key)"
        )
    is_key = hasattr(key, "dtype") and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0)
        or (key.dtype == np.uint32 and key.ndim == 1)  # Of jax.random.PRNGKey.
    )
    if not is_key:
        raise TypeError(f"{name} needs a key made by jax.random.key, got {key!r}")
    return key
