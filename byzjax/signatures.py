"""What functions of a rule or an attack read of the arguments that they are given."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def keywords(function: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's keyword-only arguments, but `params` and f."""
    names = {p.name for p in _parameters(function) if p.kind is p.KEYWORD_ONLY}
    return frozenset(names - {"params", "num_byzantine"})


def ignoring_others(function: Callable[..., Any]) -> Callable[..., Any]:
    """It without the keywords that it does not name: a chain gives all to every one.

    An ordinary `update(updates, state, params=None)` of optax names none.
    """
    parameters = _parameters(function)
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function
    kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = {p.name for p in parameters if p.kind in kinds}

    @functools.wraps(function)
    def of_named(*args, **kwargs):
        return function(*args, **{k: v for k, v in kwargs.items() if k in named})

    return of_named


def _parameters(function):
    try:
        return [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # Of what is not written in Python.
        return []
