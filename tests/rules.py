"""The one table of all rules: what every test and the catalogue page are made from.

Adding a rule is adding a `Rule` to `RULES`, with an oracle in `reference.py`. All the
properties of the tests then hold for it, or the row says that they do not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import byzjax
from byzjax.base import Aggregator
from byzjax.testing import flat, tree_of
from tests import promises, rules_catalogue, rules_clipped
from tests import reference as ref
from tests.rules_catalogue import half

__all__ = ["KEY", "NAMES", "RULES", "Rule", "arguments", "flat", "tree_of"]


class Rule(NamedTuple):
    """One row. The defaults are those of a deterministic, poison-proof rule."""

    name: str  # Unique, as one would write the rule.
    make: Callable[[int, int], Aggregator]  # (m, f) → rule.
    oracle: Callable[[np.ndarray, int], np.ndarray]  # (rows [m, d], f) → [d] or [k, d].
    most: Callable[[int], int]  # m → the largest f it serves, negative if none.

    # For the catalogue page.
    paper: str = ""
    arxiv: str = ""
    constraint: str = "m ≥ 2f + 1"
    breakdown: str = "f/m"
    cost: str = "O(dm)"
    variant: bool = False  # A convention of another row; not on the page.

    # What it promises.
    poison_proof: bool = True
    weighted: bool = False
    random: bool = False
    stateful: bool = False
    takes_f: bool = True  # Its factory takes num_byzantine, so too large an f raises.
    permutation: bool = True
    translation: bool = True
    scaling: bool = True
    hull: bool = True  # Each coordinate stays in the range of the honest ones, if
    # f rows are out of all range.
    kappa: Callable[[int, int], float] | None = None  # The proven (f, κ)-robustness.
    frozen: bool = False  # Derivatives hold weights constant that are not.
    promise: promises.Promise = promises.hull  # Where the result lies.
    honest_row: Callable[[int], int] | None = None  # m → a row it has to trust.

    # For the tests.
    tolerance: float = 1e-5  # Relative to the size of the rows, in float32.
    extra: Callable[[Any], dict[str, Any]] = lambda updates: {}  # Extra arguments.


def krum_most(m: int) -> int:
    return (m - 3) // 2


def buckets_of_two(most: Callable[[int], int]) -> Callable[[int], int]:
    """The largest f that a base with this `most` serves on ⌈m/2⌉ buckets."""
    return lambda m: most(-(-m // 2)) if m > 1 else -1


YIN = {"paper": "Yin, Chen, Ramchandran, Bartlett 2018", "arxiv": "1803.01498"}
PILLUTLA = {"paper": "Pillutla, Kakade, Harchaoui 2022", "arxiv": "1912.13445"}
BLANCHARD = {
    "paper": "Blanchard, El Mhamdi, Guerraoui, Stainer 2017",
    "arxiv": "1703.02757",
}
DAHAN = {"paper": "Dahan, Levy 2024", "arxiv": "2405.14759"}
ALLOUAH = {
    "paper": "Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023",
    "arxiv": "2302.01772",
}
BUCKETING = {"paper": "Karimireddy, He, Jaggi 2022", "arxiv": "2006.09365"}

RULES: list[Rule] = [
    Rule(
        "mean",
        lambda m, f: byzjax.mean(),
        ref.mean,
        lambda m: 0,
        constraint="m ≥ 1",
        breakdown="0",
        poison_proof=False,
        weighted=True,
        takes_f=False,
        promise=promises.undefended,
    ),
    Rule(
        "median",
        lambda m, f: byzjax.median(),
        ref.median,
        half,
        **YIN,
        breakdown="⌊(m−1)/2⌋/m",
        cost="O(dm log² m)",
        weighted=True,
        takes_f=False,
        kappa=ref.kappa_median,
    ),
    Rule(
        'median(even="lower")',
        lambda m, f: byzjax.median(even="lower"),
        ref.lower_median,
        half,
        variant=True,
        weighted=True,
        takes_f=False,
        kappa=ref.kappa_median,
    ),
    Rule(
        "trimmed_mean",
        lambda m, f: byzjax.trimmed_mean(f),
        ref.trimmed_mean,
        half,
        **YIN,
        cost="O(dm log² m)",
        weighted=True,
        kappa=ref.kappa_trimmed_mean,
    ),
    Rule(
        "geometric_median",
        lambda m, f: byzjax.geometric_median(),
        ref.geometric_median,
        half,
        **PILLUTLA,
        breakdown="⌊(m−1)/2⌋/m",
        cost="O(dm² + m²·iterations)",
        weighted=True,
        takes_f=False,
        kappa=ref.kappa_median,
        tolerance=1e-4,
        promise=promises.geometric_median,
    ),
    Rule(
        'geometric_median(smoothing=0.1, num_iterations=3, init="zeros")',
        lambda m, f: byzjax.geometric_median(
            smoothing=0.1, num_iterations=3, init="zeros"
        ),
        ref.smoothed_weiszfeld(0.1, 3),
        half,
        variant=True,
        weighted=True,
        takes_f=False,
        translation=False,
        scaling=False,
        promise=promises.weiszfeld_from_zero(0.1, 3),
    ),
    Rule(
        'geometric_median(num_iterations=100, init="median")',
        lambda m, f: byzjax.geometric_median(num_iterations=100, init="median"),
        ref.geometric_median,
        half,
        variant=True,
        weighted=True,
        takes_f=False,
        kappa=ref.kappa_median,
        tolerance=1e-4,
        promise=promises.descent_from_median,
    ),
    Rule(
        "krum",
        lambda m, f: byzjax.krum(f),
        ref.krum(),
        krum_most,
        **BLANCHARD,
        constraint="m ≥ 2f + 3",
        cost="O(dm² + m² log m)",
        kappa=ref.kappa_krum,
        promise=promises.krum(),
    ),
    Rule(
        "krum(num_neighbors=m-f-1)",
        # No fewer than f, which are refused before m is known.
        lambda m, f: byzjax.krum(f, num_neighbors=max(m - f - 1, f)),
        ref.krum(lambda m, f: m - f - 1),
        lambda m: half(m) if m > 1 else -1,
        variant=True,
        promise=promises.krum(neighbors=lambda m, f: m - f - 1),
    ),
    Rule(
        "krum(squared=False)",
        lambda m, f: byzjax.krum(f, squared=False),
        ref.krum(power=1),
        krum_most,
        variant=True,
        promise=promises.krum(power=1),
    ),
    Rule(
        'krum(squared="twice")',
        lambda m, f: byzjax.krum(f, squared="twice"),
        ref.krum(power=4),
        krum_most,
        variant=True,
        promise=promises.krum(power=4),
    ),
    Rule(
        "multi_krum",
        lambda m, f: byzjax.multi_krum(f),
        ref.multi_krum(),
        krum_most,
        **BLANCHARD,
        constraint="m ≥ 2f + 3",
        cost="O(dm² + m² log m)",
        promise=promises.krum(),
    ),
    Rule(
        "multi_krum(num_selected=2)",
        lambda m, f: byzjax.multi_krum(f, num_selected=2),
        ref.multi_krum(lambda m, f: 2),
        krum_most,
        variant=True,
        promise=promises.krum(),
    ),
    Rule(
        "centered_clipping",
        lambda m, f: byzjax.centered_clipping(2.0, num_iterations=3),
        ref.centered_clipping(2.0, 3),
        half,
        paper="Karimireddy, He, Jaggi 2021",
        arxiv="2012.10333",
        constraint="radius > 0",
        breakdown="1/2, over time",
        cost="O(dm² + m²·iterations)",
        stateful=True,
        takes_f=False,
        translation=False,
        scaling=False,
        hull=False,
        promise=promises.centered_clipping(2.0, 3),
    ),
    Rule(
        "ctma(median)",
        lambda m, f: byzjax.ctma(byzjax.median(), f),
        ref.ctma(ref.median),
        half,
        **DAHAN,
        breakdown="the base's",
        cost="base + O(dm + m log m)",
        weighted=True,
        kappa=ref.kappa_ctma(ref.kappa_median),
        promise=promises.ctma(promises.hull),
    ),
    Rule(
        "ctma(geometric_median)",
        lambda m, f: byzjax.ctma(byzjax.geometric_median(), f),
        ref.ctma(ref.geometric_median),
        half,
        **DAHAN,
        variant=True,
        weighted=True,
        kappa=ref.kappa_ctma(ref.kappa_median),
        promise=promises.ctma(promises.geometric_median),
    ),
    Rule(
        "nnm(median)",
        lambda m, f: byzjax.nnm(byzjax.median(), f),
        ref.nnm(ref.median),
        half,
        **ALLOUAH,
        breakdown="the base's",
        cost="base + O(dm²)",
        kappa=ref.kappa_nnm(ref.kappa_median),
        promise=promises.nnm(promises.hull),
    ),
    Rule(
        "nnm(krum)",
        lambda m, f: byzjax.nnm(byzjax.krum(f), f),
        ref.nnm(ref.krum()),
        krum_most,
        **ALLOUAH,
        variant=True,
        kappa=ref.kappa_nnm(ref.kappa_krum),
        promise=promises.nnm(promises.krum()),
    ),
    Rule(
        "ctma(nnm(median))",
        lambda m, f: byzjax.ctma(byzjax.nnm(byzjax.median(), f), f),
        ref.ctma(ref.nnm(ref.median)),
        half,
        **DAHAN,
        variant=True,
        kappa=ref.kappa_ctma(ref.kappa_nnm(ref.kappa_median)),
        promise=promises.ctma(promises.nnm(promises.hull)),
    ),
    Rule(
        "nnm(ctma(geometric_median))",
        lambda m, f: byzjax.nnm(byzjax.ctma(byzjax.geometric_median(), f), f),
        ref.nnm(ref.ctma(ref.geometric_median)),
        half,
        **ALLOUAH,
        variant=True,
        kappa=ref.kappa_nnm(ref.kappa_ctma(ref.kappa_median)),
        promise=promises.nnm(promises.ctma(promises.geometric_median)),
    ),
    Rule(
        "bucketing(median)",
        lambda m, f: byzjax.bucketing(byzjax.median(), 2),
        ref.bucketing(ref.median, 2),
        buckets_of_two(half),
        **BUCKETING,
        constraint="bucket_size ≤ m",
        breakdown="the base's, over the bucket size",
        cost="base + O(dm)",
        random=True,
        takes_f=False,
        promise=promises.bucketing(promises.hull),
    ),
    Rule(
        "bucketing(krum)",
        lambda m, f: byzjax.bucketing(byzjax.krum(f), 2),
        ref.bucketing(ref.krum(), 2),
        buckets_of_two(krum_most),
        **BUCKETING,
        variant=True,
        random=True,
        promise=promises.bucketing(promises.krum()),
    ),
]

RULES += [Rule(**row) for row in (*rules_catalogue.ROWS, *rules_clipped.ROWS)]

NAMES = [rule.name for rule in RULES]
assert len(set(NAMES)) == len(NAMES), "every row of the table needs a name of its own"

KEY = 0  # The seed that random rules are called with.


def arguments(rule: Rule, updates: Any) -> dict[str, Any]:
    """What `update` or `aggregate` of a row needs beside the updates."""
    extra = rule.extra(updates)
    return {"key": jax.random.key(KEY), **extra} if rule.random else extra
