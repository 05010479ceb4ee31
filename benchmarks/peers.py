"""The same rules in PyTorch and in ByzFL, on the same numbers, where installed.

ByzFL's package imports torchvision and seaborn, for its data sets and figures. The
rules need neither, so only the subpackage that holds them is imported.
"""

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

LIBRARIES = ("torch", "byzfl")
# They clip the stack they are given, in place: a second call would find nothing to do.
_CHANGE_THEIR_INPUT = ("byzfl clipping(mean)", "byzfl arc(mean)")


def _torch() -> Any:
    if importlib.util.find_spec("torch") is None:
        return None
    return importlib.import_module("torch")


def _byzfl() -> Any:
    if "byzfl" not in sys.modules:
        spec = importlib.util.find_spec("byzfl")
        if spec is None:
            return None
        package = types.ModuleType("byzfl")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def _torch_rules(torch: Any, f: int) -> dict[str, Callable[[Any], Any]]:
    def trimmed_mean(x):
        return torch.sort(x, dim=0).values[f : x.shape[0] - f].mean(0)

    return {
        "mean": lambda x: x.mean(0),
        "median": lambda x: torch.median(x, dim=0).values,
        "trimmed_mean": trimmed_mean,
    }


def _byzfl_rules(byzfl: Any, f: int) -> dict[str, Callable[[Any], Any]]:
    median, mean = byzfl.Median(), byzfl.Average()
    geometric_median = byzfl.GeometricMedian(nu=0.1, T=3)

    def after(first, second):
        return lambda x: second(first(x))

    return {
        "mean": mean,
        "median": median,
        "trimmed_mean": byzfl.TrMean(f),
        "geometric_median(3)": geometric_median,
        "krum": byzfl.Krum(f),
        "multi_krum": byzfl.MultiKrum(f),
        "centered_clipping": byzfl.CenteredClipping(L=1, tau=100.0),
        "mda": byzfl.MDA(f),
        "smea(1)": byzfl.SMEA(1),
        "monna": byzfl.MoNNA(f),
        "meamed": byzfl.Meamed(f),
        "caf": byzfl.CAF(f),
        "clipping(mean)": after(byzfl.Clipping(2.0), mean),
        "arc(mean)": after(byzfl.ARC(f), mean),
        "bucketing(median)": after(byzfl.Bucketing(2), median),
        "nnm(median)": after(byzfl.NNM(f), median),
    }


class Peers(NamedTuple):
    """Library and rule, as "byzfl krum" → what to time, and what to call before."""

    calls: dict[str, Callable[[], Any]]
    before: dict[str, Callable[[], Any]]


NONE = Peers({}, {})


def peers(host: np.ndarray, f: int, names: Sequence[str]) -> Peers:
    """The calls of the rules that a library has, on copies of a stack `[m, d]`."""
    torch = _torch()
    if torch is None:
        return NONE
    byzfl = _byzfl()
    on_gpu = torch.cuda.is_available()
    # A copy each, also on CPU, where an array may be shared between libraries.
    x = torch.tensor(host, device="cuda" if on_gpu else "cpu")
    spoilt = x.clone()

    def wait():
        if on_gpu:
            torch.cuda.synchronize()

    def run(rule, x):
        with torch.no_grad():
            out = rule(x)
        wait()
        return out

    def restore():
        spoilt.copy_(x)
        wait()

    tables = {"torch": _torch_rules(torch, f)}
    if byzfl is not None:
        tables["byzfl"] = _byzfl_rules(byzfl, f)
    found = Peers({}, {})
    for library, table in tables.items():
        for rule in names:
            if rule not in table:
                continue
            name = f"{library} {rule}"
            changes = name in _CHANGE_THEIR_INPUT
            given = spoilt if changes else x
            found.calls[name] = functools.partial(run, table[rule], given)
            if changes:
                found.before[name] = restore
    return found
