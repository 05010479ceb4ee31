"""Every name that is offered to users, as the code has it."""

import ast
import inspect
import pathlib
import types

import byzjax
from byzjax import testing

FLOWER = "byzjax.integrations.flower"


def dotted() -> list[str]:
    """Such as byzjax.krum, byzjax.attacks.alie and byzjax.testing.check_rule."""
    return sorted({*_of(byzjax), *_of(testing), *_of_flower()})


def value_of(name: str) -> object:
    """What a name stands for; None if its extra may not be installed."""
    if name.startswith(FLOWER):
        return None
    value: object = byzjax
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def _of(module: types.ModuleType) -> list[str]:
    found = []
    for name in _offered(module):
        value = getattr(module, name)
        found.append(f"{module.__name__}.{name}")
        if isinstance(value, types.ModuleType):
            found += _of(value)
    return found


def _offered(module: types.ModuleType) -> list[str]:
    """`__all__`, or where there is none the functions that are defined there."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and value.__module__ == module.__name__
    ]


def _of_flower() -> list[str]:
    """From the source, as its extra may not be installed."""
    path = pathlib.Path(byzjax.__file__).parent / "integrations/flower/__init__.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [f"{FLOWER}.{name}" for name in ast.literal_eval(node.value)]
    raise AssertionError(f"{path} has no __all__")
