"""The language of names: "ctma(nnm(median))", "empire(scale=0.1)"; `parse`, `make`.

A name stands for a factory in a table. Options are keyword arguments, and what stands
inside is made first and given to what is around it, as in Python.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Table = Mapping[str, Callable[..., Any]]


def check_name(field: str, name: Any, table: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is not in the table."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(
            f"Config needs {field} to be one of {', '.join(sorted(table))}; "
            f"got {field}={name!r}"
        )


def parse(field: str, text: Any) -> ast.expr:
    """A name, or name(inner, option=value), as a tree with its options in order."""
    problem = (
        f'Config needs {field} to be like "name" or "name(option=1.0)", '
        f"got {field}={text!r}"
    )
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(problem) from None
    for part in _calls(node):
        if not isinstance(part, ast.Name):
            if not isinstance(part, ast.Call) or not isinstance(part.func, ast.Name):
                raise ValueError(problem)
            part.keywords.sort(key=lambda keyword: keyword.arg or "")
            if not part.args and not part.keywords:
                raise ValueError(f"{problem}: leave out the empty brackets")
    return node


def _calls(node: ast.expr) -> Iterable[ast.expr]:
    yield node
    for inner in node.args if isinstance(node, ast.Call) else ():
        yield from _calls(inner)


def make(field: str, text: str, table: Table, **known: Any) -> Any:
    """Calls what a text names.

    Args:
      field: whose text it is, for messages.
      text: such as "ctma(median)".
      table: name → factory.
      **known: what the configuration says, such as num_byzantine: given by name to
        every factory that asks for it and is not told otherwise in the text.

    Raises:
      ValueError: a name that is not in the table, options that its factory refuses.
    """

    def options(node, factory):
        found = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
        asked = inspect.signature(factory).parameters
        return {k: v for k, v in known.items() if k in asked} | found

    def build(node):
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = getattr(call.func, "id", "")
        check_name(field, name, table)
        factory = table[name]
        # The search for a strength wants the function that a strength is given to.
        of_inner = by_strength if getattr(factory, "searches", False) else build
        inner = [of_inner(argument) for argument in call.args]
        return factory(*inner, **options(call, factory))

    def by_strength(node):
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = getattr(call.func, "id", "")
        check_name(field, name, table)
        factory = table[name]
        return lambda strength: factory(strength, **options(call, factory))

    try:
        return build(parse(field, text))
    except (TypeError, ValueError) as error:
        if str(error).startswith("Config needs"):
            raise
        raise ValueError(
            f"Config needs a valid {field}, got {field}={text!r}: {error}"
        ) from None
