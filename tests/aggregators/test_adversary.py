"""Every promise of the table, and of pairs of meta-rules, against drawn attackers.

A fixed draw of what `python -m tests.explore` looks for without end.
"""

import zlib

import jax
import numpy as np
import pytest

from tests import explore, promises
from tests.aggregators import adversary, trials
from tests.aggregators.adversary import SHAPES, Draw, random_draw, rows_of
from tests.aggregators.words import ATTACKS
from tests.rules import RULES

DRAWS = 80  # Through one compiled program, which takes longer than they do.
VARIANTS = {rule.name for rule in RULES if rule.variant}


def f_of(name: str, m: int) -> int:
    most = trials.SUBJECTS[name].most(m)
    return most if trials.SUBJECTS[name].work(m, most) < 1e6 else min(2, most)


def case(name, m=9, d=3, **how):
    marks = [pytest.mark.xdist_group(f"adversary {name}")]
    marks += [pytest.mark.slow] if name in trials.PAIRS or m > 11 else []
    words = "-".join(str(value) for value in (m, *how.values()))
    return pytest.param(name, m, d, how, id=f"{name}-{words}", marks=marks)


def served(names, m):
    return [name for name in names if trials.SUBJECTS[name].most(m) >= 1]


def cases():
    """What is quick; `tests.explore` draws for the rest of the pairs and sizes too."""
    for name in served(trials.SINGLE, 9):
        if name not in VARIANTS:
            yield case(name)
    for name in served(trials.PAIRS, 11):
        if name.endswith(("(median))", "(geometric_median))")):
            yield case(name, 11)
    for name in served(trials.SUBJECTS, 11):
        if trials.SUBJECTS[name].weighted and name not in VARIANTS:
            yield case(name, 11, weighted=True)
    # Where another way begins: pairs of rows to 48, networks to 64, 32 rows a word.
    for m in (25, 49, 65):
        for name in ("median", "trimmed_mean", "krum", "geometric_median", "cge"):
            yield case(name, m)
    for dtype in ("float16", "bfloat16"):
        for name in ("median", "krum", "geometric_median", "ctma(median)", "fltrust"):
            yield case(name, 11, dtype=dtype)
    for dtype in ("float32", "float64", adversary.TWO_WIDTHS):
        for name in (
            "median",
            "trimmed_mean",
            "krum",
            "geometric_median",
            "arc(median)",
            "nnm(median)",
            "dnc",
        ):
            yield case(name, 9, dtype=dtype, x64=True)


@pytest.mark.parametrize("name, m, d, how", list(cases()))
def test_no_draw_breaks_a_promise(name, m, d, how):
    first, f = zlib.crc32(name.encode()) % 10**6, f_of(name, m)
    draws = [random_draw(first + k, m, f, d, **how) for k in range(DRAWS)]
    broken = [v for v in (trials.tried(name, draw) for draw in draws) if v]
    worst = sorted(broken, key=lambda v: -v.excess)[:3]
    shown = "\n".join(str(trials.simplest(v)) for v in worst)
    assert not broken, f"{len(broken)} of {DRAWS} draws, such as\n{shown}"


# What draws have found, as simple as it gets: (rule, draw).
FOUND = [
    ("trimmed_mean", Draw(13, 6, 3, 1, attack="not finite", weights="ones")),
    ("ctma(median)", Draw(13, 6, 3, 1, power=17.0, weights="tenths")),
    *(
        (name, Draw(9, 1, 1, 0, scale=1e38, offset=1.0, shape="equal", power=1.0))
        for name in ("trimmed_mean", "meamed", "phocas", "bulyan")
    ),
    ("geometric_median", Draw(17, 8, 3, 1, power=10.0)),
    ("medoid", Draw(9, 4, 3, 3, attack="ladder", power=17.0)),
    (
        "centered_clipping",
        Draw(
            *(7, 3, 12, 1920926663),
            offset=8300.0,
            attack="beside the end",
            power=1.93,
        ),
    ),
    # Rows where v ends, beside far ones: only inner products around v tell them apart.
    (
        "centered_clipping",
        Draw(129, 64, 3, 192858975, 1.0, 1e4, attack="end+beside the end", power=9.0),
    ),
    (
        "clipping(krum)",
        Draw(13, 5, 12, 1912285260, 1.0, 1e4, "equal", attack="edge", power=3.0),
    ),
    # Two far rows in one bucket, whose mean is nearer than its distances can tell.
    *(
        (name, Draw(13, 2, 3, 136, attack="cancelling", power=12.0))
        for name in ("bucketing(krum)", "bucketing(ctma(geometric_median))")
    ),
    (
        "bucketing(krum)",
        Draw(
            25, 5, 1, 848832329, 0.025, 100.0, dtype="float16", attack="ring", power=9.0
        ),
    ),
    # Fourth powers of small distances are none, beside honest rows that are equal.
    (
        'krum(squared="twice")',
        Draw(7, 2, 70, 800260059, 3.7e-26, shape="equal", attack="axis", power=9.0),
    ),
    # Cut rows of one place, whose means are taken for sums of far ones that cancel.
    (
        "clipping(nnm(krum))",
        Draw(
            *(24, 2, 1, 676052331, 0.034, 1e4, "two camps"),
            attack="antipodal",
            power=4.02,
        ),
    ),
    # Cut twice, and nothing of far rows the first time.
    (
        "clipping(arc(geometric_median))",
        Draw(
            *(17, 8, 3, 1796112492, 1.3e-12, 7.31, "equal"),
            attack="ladder",
            power=9.0,
        ),
    ),
    # Most rows are equal, and the others cancel: no mean of them is lost for that.
    (
        "nnm(bucketing(krum))",
        Draw(
            *(11, 1, 1, 816077168, 8.4e23, 100.0),
            dtype="bfloat16",
            attack="subnormal",
            power=1.89,
        ),
    ),
    # An honest row a thousand times as long as the others, which are long.
    (
        "nnm(median)",
        Draw(13, 2, 70, 102344858, 1.7e17, shape="one astray", attack="ring"),
    ),
    # Rows of zeros beside a far one, in whose unit the smoothing is nearly nothing.
    (
        'geometric_median(smoothing=0.1, num_iterations=3, init="zeros")',
        Draw(
            *(9, 1, 12, 1696152615, 5.6e18, 0.0, "equal"),
            attack="axis",
            power=15.2,
        ),
    ),
    # An honest row 10^18 away from others that are equal, and longer than that.
    (
        "monna",
        Draw(
            *(5, 1, 1, 297393210, 3.4e20, 1e4, "one astray"),
            attack="cancelling",
            power=3.0,
        ),
    ),
    # Rows whose lengths are beyond the floats, and whose entries are not.
    *(
        (name, Draw(13, 2, 20, 1, 1e36, 447.0, attack=attack))
        for name in (
            *("krum", "geometric_median", "nnm(median)", "ctma(median)", "medoid"),
            *("bucketing(krum)", "arc(median)", "mda", "flame(noise=0)", "signguard"),
        )
        for attack in ("far", "subnormal")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, draw", FOUND)
def test_what_was_found_is_kept(name, draw):
    assert trials.tried(name, draw) is None, trials.tried(name, draw)


# --- the grammar itself ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "two widths"])
def test_a_draw_is_what_it_says(dtype):
    for seed in range(200):
        draw = random_draw(seed, 11, 4, 5, dtype=dtype, weighted=bool(seed % 2))
        stack = rows_of(draw, at=5)
        assert stack.rows.shape == (11, 5)
        assert str(stack.rows.dtype) == ("float64" if stack.narrow else dtype)
        assert stack.byzantine.sum() == 4 and not stack.byzantine[5]
        honest = stack.rows[~stack.byzantine].astype(np.float64)
        assert np.isfinite(honest).all(), draw
        assert rows_of(draw, at=5).rows.tobytes() == stack.rows.tobytes(), draw
        finite = np.isfinite(stack.rows.astype(np.float64)).all()
        assert finite or "not finite" in draw.attack, draw
        if stack.weights is not None:
            evil, total = stack.weights[stack.byzantine].sum(), stack.weights.sum()
            assert evil * 11 <= 4 * total * (1 + 1e-12), draw


def test_every_word_is_drawn():
    draws = [random_draw(seed, 9, 3, 3) for seed in range(2000)]
    words = {word for draw in draws for word in draw.attack.split("+")}
    assert words == set(ATTACKS) and {draw.shape for draw in draws} == set(SHAPES)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_draw_as_printed_is_the_draw(attack):
    draw = random_draw(3, 9, 3, 3)._replace(attack=attack)
    again = explore.parsed(repr(draw))
    np.testing.assert_array_equal(rows_of(draw).rows, rows_of(again).rows)


def broken(name, **changes):
    draw = Draw(9, 2, 3, seed=1)._replace(**changes)
    return trials.tried(name, draw)


def test_what_breaks_is_noticed(monkeypatch):
    """The mean keeps no promise of the median, nor the first row Krum's."""
    row = trials.SINGLE["median"]
    mean = trials.SINGLE["mean"]
    monkeypatch.setitem(trials.SUBJECTS, "mean", mean._replace(promise=row.promise))
    for attack in ("far", "axis", "antipodal+far"):
        assert broken("mean", attack=attack, f=3), attack
    promise = promises.krum()
    monkeypatch.setitem(trials.SUBJECTS, "mean", mean._replace(promise=promise))
    assert broken("mean", power=3.0) and not broken("mean", attack="copies")


def test_no_program_is_kept_for_another_precision():
    """x64 is a setting, and compiled programs know it."""
    draw = Draw(9, 2, 3, seed=1, dtype="float64", x64=True)
    assert trials.tried("median", draw) is None
    assert not jax.config.jax_enable_x64
    assert adversary.limits("float64")[0] > 1e300
