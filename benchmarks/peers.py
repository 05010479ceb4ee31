"""The same rules in PyTorch and in ByzFL, on the same numbers, where installed.

ByzFL's package imports torchvision and seaborn, for its data sets and figures. The
rules need neither, so only the subpackage that holds them is imported.
"""

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from benchmarks import data
from benchmarks.apart import QUEUED, Call


def _byzfl() -> Any:
    spec = importlib.util.find_spec("byzfl")
    assert spec is not None
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


_IMPORT = {"torch": lambda: importlib.import_module("torch"), "byzfl": _byzfl}


def _trimmed_mean(torch, f):
    return lambda x: torch.sort(x, dim=0).values[f : x.shape[0] - f].mean(0)


def _after(first, second):
    return lambda x: second(first(x))


# Library → rule → (the library, f) → a function of the stack.
_RULES: dict[str, dict[str, Callable[[Any, int], Callable[[Any], Any]]]] = {
    "torch": {
        "mean": lambda torch, f: lambda x: x.mean(0),
        "median": lambda torch, f: lambda x: torch.median(x, dim=0).values,
        "trimmed_mean": _trimmed_mean,
    },
    "byzfl": {
        "mean": lambda byzfl, f: byzfl.Average(),
        "median": lambda byzfl, f: byzfl.Median(),
        "trimmed_mean": lambda byzfl, f: byzfl.TrMean(f),
        "geometric_median(3)": lambda byzfl, f: byzfl.GeometricMedian(nu=0.1, T=3),
        "krum": lambda byzfl, f: byzfl.Krum(f),
        "multi_krum": lambda byzfl, f: byzfl.MultiKrum(f),
        "centered_clipping": lambda byzfl, f: byzfl.CenteredClipping(L=1, tau=100.0),
        "mda": lambda byzfl, f: byzfl.MDA(f),
        "smea(1)": lambda byzfl, f: byzfl.SMEA(1),
        "monna": lambda byzfl, f: byzfl.MoNNA(f),
        "meamed": lambda byzfl, f: byzfl.Meamed(f),
        "caf": lambda byzfl, f: byzfl.CAF(f),
        "clipping(mean)": lambda byzfl, f: _after(byzfl.Clipping(2.0), byzfl.Average()),
        "arc(mean)": lambda byzfl, f: _after(byzfl.ARC(f), byzfl.Average()),
        "bucketing(median)": lambda byzfl, f: _after(
            byzfl.Bucketing(2), byzfl.Median()
        ),
        "nnm(median)": lambda byzfl, f: _after(byzfl.NNM(f), byzfl.Median()),
    },
}
# They clip the stack they are given, in place: a second call would find nothing to do.
_CHANGE_THEIR_INPUT = ("clipping(mean)", "arc(mean)")


def having(rule: str) -> list[str]:
    """The libraries that are installed and have the rule."""
    return [
        library
        for library, table in _RULES.items()
        if rule in table
        and all(importlib.util.find_spec(name) for name in {"torch", library})
    ]


def call(library: str, rule: str, m: int, d: int) -> Call:
    """A library's call of a rule, on the stack of these sizes."""
    of_rule = _RULES[library][rule](_IMPORT[library](), data.assumed_byzantine(m))
    torch = _IMPORT["torch"]()
    on_gpu = torch.cuda.is_available()
    x = torch.tensor(data.stack(m, d), device="cuda" if on_gpu else "cpu")

    def wait(_):
        if on_gpu:
            torch.cuda.synchronize()

    def run(x):
        with torch.no_grad():
            return of_rule(x)

    if library == "byzfl" and rule in _CHANGE_THEIR_INPUT:
        spoilt = x.clone()

        def restore():
            spoilt.copy_(x)
            wait(None)

        return Call(functools.partial(run, spoilt), before=restore, wait=wait)
    queued = QUEUED if on_gpu else 1
    return Call(functools.partial(run, x), wait=wait, queued=queued)
