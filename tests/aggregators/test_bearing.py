"""How many attackers a rule bears, and that a wrapper is told no more."""

import jax
import jax.numpy as jnp
import optax
import pytest

import byzjax
from byzjax import rules as own
from tests.rules import RULES

KEY = jax.random.key(0)
TOLD = {"ctma": byzjax.ctma, "nnm": byzjax.nnm, "arc": byzjax.arc}
# What bears nobody, or nobody knows how many.
UNKNOWN = "mean", "fltrust", "foolsgold", "signguard", "clipped_clustering", "flame"
TABLE = [pytest.param(rule, id=rule.name) for rule in RULES]


@pytest.mark.parametrize("rule", TABLE)
def test_a_rule_bears_what_it_is_told(rule):
    for m, f in ((11, 2), (15, 3), (27, 1)):
        made = rule.make(m, f)
        if rule.name.startswith(UNKNOWN):
            assert made.bears is None
        elif rule.takes_f:
            assert made.bears(m) == f or "bucketing" in rule.name
        if made.bears is not None:
            assert f <= made.bears(m) <= (m - 1) // 2
            assert made.bears(m) <= made.bears(2 * m)


@pytest.mark.parametrize("rule", TABLE)
def test_a_meta_rule_is_told_no_more_than_its_base(rule):
    m, f = 11, 2
    base = rule.make(m, f)
    for name, meta in TOLD.items():
        meta(base, f)
        meta(base, f - 1)
        if not rule.takes_f:
            continue
        wrapped_ones = [base, byzjax.clipping(base, 1.0), byzjax.nnm(base, 1)]
        if not base.trusted:
            wrapped_ones.append(byzjax.with_key(byzjax.bucketing(base, 1), KEY))
        for wrapped in wrapped_ones:
            match = rf"^{name} needs a rule that bears its num_byzantine=3, got .*: rai"
            with pytest.raises(ValueError, match=match):
                meta(wrapped, f + 1)


@pytest.mark.parametrize("outer", TOLD)
@pytest.mark.parametrize("inner", TOLD)
def test_a_meta_rule_bears_what_it_is_told_itself(outer, inner):
    base = TOLD[inner](byzjax.median(), 1)
    match = rf"got {inner}\(median\(\), 1\), which bears 1 at most"
    with pytest.raises(ValueError, match=match):
        TOLD[outer](base, 2)
    of_buckets = TOLD[inner](byzjax.bucketing(byzjax.median(), 4), 3)
    assert (of_buckets.bears(11), of_buckets.bears(99)) == (1, 3)


def test_a_base_without_a_number_bears_what_so_many_workers_allow():
    rule = byzjax.nnm(byzjax.median(), 3)
    rows = jnp.ones((7, 2))
    rule.aggregate(rows)
    assert rule.enough(jnp.ones(7, bool)) and not rule.enough(jnp.arange(7) < 6)


def test_a_rule_of_ones_own_says_what_it_bears():
    def typical(geometry):
        return jnp.full((geometry.num_workers,), 1 / geometry.num_workers)

    def bears(m):
        return 1

    lifted = {
        "coordinatewise": own.coordinatewise("first", lambda x: x[0], bears=bears),
        "geometric": own.geometric("typical", typical, bears=bears),
        "prescaled": own.prescaled(
            "short", byzjax.median(), lambda g: jnp.ones(g.num_workers), bears=bears
        ),
        "premixed": own.premixed(
            "same", byzjax.median(), lambda g: jnp.eye(g.num_workers), bears=bears
        ),
        "by hand": byzjax.Aggregator(
            optax.init_empty_state, lambda u, s, p=None: (u[0], s), bears=bears
        ),
    }
    for rule in lifted.values():
        byzjax.nnm(rule, 1)
        with pytest.raises(ValueError, match="which bears 1 at most"):
            byzjax.nnm(rule, 2)
    byzjax.nnm(own.coordinatewise("first", lambda x: x[0]), 2)  # It does not say.


def test_what_is_legal_runs():
    rows = jnp.ones((11, 3))
    for rule in (
        byzjax.nnm(byzjax.trimmed_mean(3), 1),
        byzjax.ctma(byzjax.nnm(byzjax.median(), 3), 2),
        byzjax.nnm(byzjax.mean(), 2),
        byzjax.arc(byzjax.mean(), 2),
        byzjax.nnm(byzjax.fltrust(), 2),
    ):
        extra = {"reference": rows[0]} if "reference" in rule.takes else {}
        jax.eval_shape(lambda rule=rule, extra=extra: rule.aggregate(rows, **extra))
