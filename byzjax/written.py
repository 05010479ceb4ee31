"""What factories make is shown as the call that made it: `ctma(nnm(median(), 3), 3)`.

`factories` makes those of a module remember their calls, in one place for all of
them; it is called once, where the public names are gathered.
"""

import collections.abc
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

_FEW = 1024  # Numbers of an array that are compared.


class Call:
    """A call of a factory, as one writes it."""

    def __init__(self, name: str, bound: inspect.BoundArguments):
        self.name = name
        self.bound = bound

    def __repr__(self) -> str:
        """What is not the default: by position, as long as none is left out."""
        words, in_order = [], True
        for name, parameter in self.bound.signature.parameters.items():
            if name not in self.bound.arguments:
                in_order = False
                continue
            value = self.bound.arguments[name]
            if _is_default(value, parameter.default):
                in_order = False
                continue
            named = parameter.kind is parameter.KEYWORD_ONLY or not in_order
            words.append(f"{name}={shown(value)}" if named else shown(value))
        return f"{self.name}({', '.join(words)})"

    @functools.cached_property
    def identity(self) -> Hashable | None:
        """The same for calls that make the same; None where that cannot be told."""
        parts = {k: _identity(v) for k, v in self.bound.arguments.items()}
        if None in parts.values():
            return None
        return self.name, tuple(parts.items())


class Written:
    """What is shown as the call that made it, where there was one."""

    written: Call | None = None

    def __repr__(self) -> str:
        return shown(self) if self.written is None else repr(self.written)

    def named(self, method: str) -> Hashable | None:
        """The same for this method of what does the same; None if that is not known."""
        identity = None if self.written is None else self.written.identity
        return None if identity is None else (method, identity)


class Link(Written, optax.GradientTransformationExtraArgs):
    """An optax transformation that is shown as the call that made it."""


def factories(module: types.ModuleType, names: Iterable[str], prefix: str = "") -> None:
    """Makes the factories among these names remember how they were called.

    A factory is a function whose annotation says that it returns something `Written`,
    an optax transformation, or a function. It stays what it is in signature, docstring
    and module, where the new one takes its place.

    Args:
      module: where the names are public.
      names: the public ones.
      prefix: what stands before a name when it is written, such as `attacks.`.
    """
    for name in names:
        make = getattr(module, name)
        if inspect.isfunction(make) and _makes_something(make):
            factory = _remembering(make, prefix + name)
            for place in (module, sys.modules[make.__module__]):
                setattr(place, name, factory)


def _makes_something(make: Callable[..., Any]) -> bool:
    made = inspect.signature(make).return_annotation
    if typing.get_origin(made) is collections.abc.Callable:
        return True
    kinds = Written | optax.GradientTransformation
    return inspect.isclass(made) and issubclass(made, kinds)


def _remembering(make: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(make)

    @functools.wraps(make)
    def factory(*args, **kwargs):
        # What a caller writes into an array later is no argument of this call.
        args = [_own(value) for value in args]
        kwargs = {keyword: _own(value) for keyword, value in kwargs.items()}
        made = make(*args, **kwargs)
        if type(made) is optax.GradientTransformationExtraArgs:
            made = Link(*made)
        made.written = Call(name, signature.bind(*args, **kwargs))
        return made

    vars(factory)["written"] = name
    return factory


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    plain = isinstance(value, bool | int | float | str)
    return plain and type(value) is type(default) and value == default


def _identity(value: Any) -> Hashable | None:
    """What equals that of the same argument only.

    Functions may change, and have none, but for the factories of the library.

    None is no argument's, so that one without makes the whole call one without.
    """
    if isinstance(value, Written):
        return None if value.written is None else value.written.identity
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return type(value), repr(value)  # 0.0, −0.0 and False are equal.
    if isinstance(value, jax.core.Tracer):
        return None
    if inspect.isfunction(value) and "written" in vars(value):
        return "factory", vars(value)["written"]
    if isinstance(value, jax.Array | np.ndarray) and value.size <= _FEW:
        form = type(value), str(value.dtype), value.shape
        weak = getattr(value, "weak_type", False)
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = _key_data(value)
        return *form, weak, np.asarray(value).tobytes()
    return None


def shown(value: Any) -> str:
    """A value as one writes it; in angle brackets what cannot be written in a line."""
    written = getattr(value, "written", None)
    if written is not None:
        return str(written)
    if isinstance(value, optax.GradientTransformation):
        update = value.update
        maker = getattr(update, "__qualname__", "transformation").partition(".")[0]
        return f"<{getattr(update, '__module__', '').partition('.')[0]}.{maker}>"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _shown_array(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.rpartition("<locals>.")[2]
    return repr(value)


def made_by(value: Any, *names: str) -> bool:
    """Whether one of these factories made it."""
    if not isinstance(value, Written) or value.written is None:
        return False
    return value.written.name in names


def not_called(value: Any) -> str:
    """What to add to an error about a function in the place of what it makes."""
    if not inspect.isfunction(value) or value.__name__ == "<lambda>":
        return ""
    return f": that is a function, call it, {value.__name__}(...)"


def _shown_array(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return f"<{value.aval.str_short()}>"
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _shown_key(value)
    if value.ndim == 0:
        return repr(value.item())
    return f"<{value.dtype}{list(value.shape)}>"


def _shown_key(key: jax.Array) -> str:
    data = _key_data(key)
    seed = int(data.ravel()[-1])
    with jax.ensure_compile_time_eval():
        known = jax.random.key(seed)
    same = key.shape == () and key.dtype == known.dtype
    if same and np.array_equal(_key_data(known), data):
        return f"jax.random.key({seed})"
    return f"<{key.dtype}{list(key.shape)}>"


def _key_data(key: Any) -> np.ndarray:
    """The words of a key that is known, in a trace as well."""
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.random.key_data(key))
