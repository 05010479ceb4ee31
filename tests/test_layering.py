"""Imports go one way, experiments use the public API only, and files stay small.

The package is read where it is imported from, so `make test` reads the wheel.
"""

import ast
import fnmatch
import os
import pathlib
import sys
import types

import pytest

import byzjax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(byzjax.__file__).parent
MAX_LINES = 350

# Bottom to top. A module imports from lower layers, and from its own package within its
# layer. The longest pattern that fits decides.
LAYERS = [
    [
        "byzjax.checks*",
        "byzjax.eager",
        "byzjax.loops",
        "byzjax.signatures",
        "byzjax.written",
        "byzjax.layers*",
    ],
    ["byzjax.trees"],
    ["byzjax.base", "byzjax.partition*", "byzjax.poisoning*"],
    [
        "byzjax.attack",
        "byzjax.stacking",
        "byzjax.aggregators.bearing",
    ],
    [
        "byzjax.numerics",
        "byzjax.numerics._loops",
        "byzjax.numerics._reductions",
        "byzjax.numerics.devices",
    ],
    [
        "byzjax.numerics._network",
        "byzjax.numerics._planes",
        "byzjax.numerics._words",
        "byzjax.numerics._counting",
        "byzjax.numerics._columns",
        "byzjax.numerics._range",
    ],
    [
        "byzjax.numerics._ranks",
        "byzjax.numerics._pairs*",
        "byzjax.numerics._weighted",
    ],
    ["byzjax.numerics.order", "byzjax.numerics._products"],
    ["byzjax.numerics._crowds", "byzjax.numerics._gram"],
    ["byzjax.numerics._geometry", "byzjax.numerics._mixing"],
    ["byzjax.numerics._lengths"],
    ["byzjax.numerics.stacked"],
    ["byzjax.aggregators.claims"],
    [
        "byzjax.aggregators.lift",
        "byzjax.aggregators.newton",
        "byzjax.aggregators.subsets",
        "byzjax.attacks.lift",
        "byzjax.shares",
    ],
    [
        "byzjax.aggregators*",
        "byzjax.attacks*",
        "byzjax.transforms*",
        "byzjax.sharding*",
    ],
    ["byzjax.aggregators.meta*", "byzjax.rules"],
    ["byzjax.robustness*", "byzjax.training*", "byzjax.guard*"],
    ["byzjax"],
    ["byzjax.catalogue", "byzjax.demo"],
    ["byzjax.__main__", "byzjax.integrations*", "byzjax.testing*"],
]
# What is asked for from outside of `numerics`, and of how many of them by one rule.
FRONT = {
    "byzjax.numerics",
    "byzjax.numerics.devices",
    "byzjax.numerics.order",
    "byzjax.numerics.stacked",
}
MOST_OF_FRONT = 2
RANKS = {pattern: rank for rank, layer in enumerate(LAYERS) for pattern in layer}

RUN_TIME = {"jax", "jaxlib", "numpy", "optax"} | sys.stdlib_module_names
EXTRAS = {  # With the modules inside.
    "byzjax.integrations.flower": {"flwr", "httpx"},
    "byzjax.sharding.checkpoints": {"orbax"},
}
# A strategy and a run of many processes are host programs, which their user cannot jit:
# their compiled programs. And those of rules that a user calls without jit.
JITS = {
    "byzjax.integrations.flower.programs",
    "byzjax.integrations.flower.server",
    "byzjax.sharding.programs",
    "byzjax.eager",
}


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SCRIPTS = [
    path
    for folder in ("experiments", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
FILES = {str(path.relative_to(PACKAGE.parent)): path for path in MODULES.values()}
FILES |= {str(path.relative_to(ROOT)): path for path in SCRIPTS}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree, modules):
    """The modules imported anywhere in a file; `from p import m` is p.m if a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def rank(module):
    fits = [pattern for pattern in RANKS if fnmatch.fnmatchcase(module, pattern)]
    return RANKS[max(fits, key=len)] if fits else None


def package_of(module):
    """byzjax.attacks for byzjax.attacks.alie, byzjax.base for itself."""
    return ".".join(module.split(".")[:2])


def may_import(module, other):
    """Whether the layers allow it; both are modules of byzjax."""
    if rank(module) == rank(other):
        return package_of(module) == package_of(other)
    return rank(module) > rank(other)


def is_a_jit(node):
    if isinstance(node, ast.Attribute):
        return node.attr in ("jit", "pjit") and ast.unparse(node.value) != "self"
    if isinstance(node, ast.ImportFrom):
        return any(alias.name in ("jit", "pjit") for alias in node.names)
    return False


def offered(package):
    """`__all__` of a package as its source has it: its extra may not be installed."""
    for node in parse(MODULES[package]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def is_public(dotted):
    """Whether each step of a name such as byzjax.attacks.alie is offered to users."""
    for package in EXTRAS:
        if dotted == package or dotted.startswith(f"{package}."):
            inside = dotted[len(package) + 1 :].split(".")[0]
            return not inside or inside in offered(package)
    value = byzjax
    for part in dotted.split(".")[1:]:
        if not isinstance(value, types.ModuleType):
            return True  # Attributes of classes, functions and values.
        if part.startswith("_") or part not in getattr(value, "__all__", dir(value)):
            return False
        value = getattr(value, part)
    return True


def private_uses(tree):
    """What a script takes from byzjax that is not public, as dotted names."""
    used, local = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.append(alias.name)
                local[alias.asname or "byzjax"] = (
                    alias.name if alias.asname else "byzjax"
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                used.append(f"{node.module}.{alias.name}")
                local[alias.asname or alias.name] = used[-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            if head in local and rest.replace(".", "").isidentifier():
                used.append(f"{local[head]}.{rest}")
    return [
        name for name in used if name.split(".")[0] == "byzjax" and not is_public(name)
    ]


def test_every_module_has_a_layer():
    assert not [module for module in MODULES if rank(module) is None]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    for other in imports(parse(MODULES[module]), MODULES):
        if other.split(".")[0] == "byzjax":
            assert may_import(module, other), f"{module} must not import {other}"
        else:
            assert other.split(".")[0] in allowed(module), f"{module} imports {other}"


def allowed(module):
    """What a module may import from outside: the run-time ones and its extra's."""
    extras = [
        names
        for package, names in EXTRAS.items()
        if f"{module}.".startswith(f"{package}.")
    ]
    return RUN_TIME.union(*extras)


def behind_the_front(module, others):
    """What a module outside of `numerics` imports from behind its front."""
    if package_of(module) == "byzjax.numerics":
        return []
    return [x for x in others if package_of(x) == "byzjax.numerics" and x not in FRONT]


@pytest.mark.parametrize("module", MODULES)
def test_nobody_reaches_behind_the_front_of_numerics(module):
    others = set(imports(parse(MODULES[module]), MODULES))
    assert not behind_the_front(module, others)
    assert len(others & FRONT) <= MOST_OF_FRONT


def test_the_front_of_numerics_has_no_underscore():
    inside = {name for name in MODULES if package_of(name) == "byzjax.numerics"}
    assert {name for name in inside if "._" not in name} == FRONT


@pytest.mark.parametrize("module", sorted(set(MODULES) - JITS))
def test_the_library_never_calls_jit(module):
    if module in ("byzjax.testing", "byzjax.demo"):
        return  # Which jit as users do.
    assert not [
        node.lineno for node in ast.walk(parse(MODULES[module])) if is_a_jit(node)
    ]


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_scripts_use_the_public_api_only(name):
    assert not private_uses(parse(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_files_stay_small(name):
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: is it still one room?"


@pytest.mark.parametrize("name", FILES)
def test_no_comment_silences_a_checker(name):
    text = FILES[name].read_text(encoding="utf-8")
    for silencer in ("type: ignore", "pyright: ignore", "noqa", "fmt: off"):
        assert f"# {silencer}" not in text


def test_the_wheel_is_what_is_tested():
    assert (PACKAGE / "py.typed").is_file()
    if os.environ.get("BYZJAX_TEST_INSTALLED"):
        assert "site-packages" in PACKAGE.parts
        assert not (ROOT / "byzjax").exists()


def test_the_checks_see_what_they_forbid():
    assert not may_import("byzjax.numerics.order", "byzjax.numerics.stacked")
    assert not may_import("byzjax.numerics._words", "byzjax.numerics.order")
    assert not may_import("byzjax.aggregators.krum", "byzjax.aggregators.meta.nnm")
    assert not may_import("byzjax.aggregators.lift", "byzjax.aggregators.krum")
    assert not may_import("byzjax.transforms", "byzjax.attacks")
    assert not may_import("byzjax.training", "byzjax")
    assert may_import("byzjax.aggregators.meta.nnm", "byzjax.aggregators.krum")
    assert may_import("byzjax.attacks.alie", "byzjax.attacks.lift")
    assert may_import("byzjax.integrations.flower", "byzjax")
    assert "flwr" in allowed("byzjax.integrations.flower.npy")
    assert "flwr" not in allowed("byzjax.integrations") | allowed("byzjax.training")
    assert is_public("byzjax.integrations.flower.RobustStrategy")
    assert not is_public("byzjax.integrations.flower.rounds")
    inside = "def f():\n    from byzjax import base, median"
    assert list(imports(ast.parse(inside), MODULES)) == ["byzjax.base", "byzjax"]
    outside = ["byzjax.numerics._gram", "byzjax.numerics.stacked"]
    assert behind_the_front("byzjax.aggregators.krum", outside) == outside[:1]
    assert not behind_the_front("byzjax.numerics.stacked", outside)
    for code in ("jax.jit(f)", "from jax import jit", "@jax.jit\ndef f(): pass"):
        assert any(is_a_jit(node) for node in ast.walk(ast.parse(code)))
    for code, names in (
        ("from byzjax import numerics", ["byzjax.numerics"]),
        ("import byzjax as bz\nbz.trees.stack_rows(x, y)", ["byzjax.trees"]),
        ("import byzjax.checks", ["byzjax.checks"]),
        ("from byzjax.attacks import lift", ["byzjax.attacks.lift"]),
        ("import byzjax\nbyzjax.median().aggregate(byzjax.attacks.alie())", []),
        ("from byzjax import attacks, median as m\nattacks.alie().apply(x)", []),
    ):
        assert set(private_uses(ast.parse(code))) >= set(names)
        assert bool(private_uses(ast.parse(code))) == bool(names)
