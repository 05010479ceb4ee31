"""The repr of what a factory makes is code that makes the same."""

import importlib.metadata
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks, poisoning
from tests import attacks_table, rules
from tests.training import least_squares

NAMES = {name: getattr(byzjax, name) for name in byzjax.__all__} | {"jax": jax}
BASE = "ctma(median(), 1)"


@pytest.mark.parametrize("rule", [pytest.param(r, id=r.name) for r in rules.RULES])
def test_every_rule_is_written_as_it_was_made(rule):
    made = rule.make(11, 1)
    again = eval(repr(made), NAMES)
    assert repr(again) == repr(made) and type(again) is byzjax.Aggregator
    one, other = (
        jax.make_jaxpr(lambda x, r=r: r.aggregate(x, **rules.arguments(rule, x)))(
            jnp.ones((11, 3))
        )
        for r in (made, again)
    )
    assert len(one.eqns) == len(other.eqns)


@pytest.mark.parametrize(
    "attack", [pytest.param(a, id=a.name) for a in attacks_table.TABLE]
)
def test_every_attack_is_written_as_it_was_made(attack):
    made = repr(attack.make())
    assert made.startswith("attacks.") or "<" in made
    if "<" not in made:
        assert repr(eval(made, NAMES)) == made


@pytest.mark.parametrize(
    "text",
    [
        "mean()",
        "ctma(nnm(median(), 3), 3)",
        'ctma(median(even="lower"), 3, ties="all")'.replace('"', "'"),
        "krum(3, squared=False)",
        "multi_krum(3, num_selected=2)",
        "bucketing(arc(geometric_median(), 3), 2)",
        "geometric_median(smoothing=0.1, num_iterations=3)",
        "centered_clipping(2.0)",
        "with_key(bucketing(median(), 2), jax.random.key(7))",
        "momentum()",
        "momentum(0.5)",
        "storm(authors_beta)",
        "mu2sgd(0.1, beta=0.5)",
        "per_worker(momentum(0.5), 7)",
        "attacks.ipm(2.0, num_byzantine=3)",
        "attacks.optimized(attacks.ipm, nnm(median(), 2), start=1.0)",
        "poisoning.label_flip(10)",
    ],
)
def test_is_how_one_writes_it(text):
    made = eval(text, NAMES)
    # Poison is a function, which Python shows as such.
    assert (repr(made.written) if inspect.isfunction(made) else repr(made)) == text


def test_what_cannot_be_written_is_in_brackets():
    noise = byzjax.flame(noise=jnp.float32(0.5))
    assert repr(noise) == "flame(noise=0.5)"
    traced = []
    jax.make_jaxpr(lambda x: traced.append(repr(byzjax.clipping(byzjax.mean(), x))))(
        1.0
    )
    assert traced == ["clipping(mean(), <float32[]>)"]
    assert repr(byzjax.anytime(optax.sgd(0.1))) == "anytime(<optax.chain>)"
    batch_of_keys = jax.random.split(jax.random.key(0))[1]
    keyed = byzjax.with_key(byzjax.median(), batch_of_keys)
    assert repr(keyed) == "with_key(median(), <key<fry>[]>)"
    assert repr(attacks.constant(np.array(2.0))) == "attacks.constant(2.0)"


def test_a_trainer_is_written_too():
    trainer = least_squares.make(
        attack=attacks.alie(),
        poison=None,
        aggregator=byzjax.nnm(byzjax.median(), 2),
        server=byzjax.anytime(byzjax.momentum(0.5)),
    )
    assert repr(trainer) == (
        "trainer(loss_fn, aggregator=nnm(median(), 2), "
        "server=anytime(momentum(0.5)), num_workers=7, num_byzantine=2, "
        "worker=momentum(0.8), attack=attacks.alie())"
    )
    assert trainer._fields == ("init", "step")


def test_errors_show_rules_so():
    with pytest.raises(TypeError, match=r"got nnm\(median\(\), 2\)"):
        byzjax.attacks.optimized(byzjax.nnm(byzjax.median(), 2), byzjax.median())


def test_a_rule_made_by_hand_is_shown_without_addresses():
    made = byzjax.Aggregator(optax.init_empty_state, lambda u, s, p=None: (u, s))
    assert repr(made) == "<byzjax.Aggregator>"


def test_factories_stay_what_they_are():
    for module in (byzjax, attacks, poisoning):
        for name in getattr(module, "__all__", ("label_flip", "backdoor")):
            factory = getattr(module, name)
            if not inspect.isfunction(factory):
                continue
            made = inspect.unwrap(factory)
            assert inspect.signature(factory) == inspect.signature(made)
            assert (factory.__doc__, factory.__name__) == (made.__doc__, name)
            assert pickle.loads(pickle.dumps(factory)) is factory
    with pytest.raises(TypeError, match=r"^nnm\(\) missing 1 required .*'num_byz"):
        byzjax.nnm(byzjax.median())


def test_links_stay_links_of_optax():
    link = byzjax.momentum()
    assert isinstance(link, optax.GradientTransformationExtraArgs)
    init, update = link
    assert optax.chain(link, optax.sgd(0.1)) and (init, update) == tuple(link)


def test_the_version_is_that_of_the_package():
    assert byzjax.__version__ == importlib.metadata.version("byzjax")


def test_a_key_is_shown_in_a_trace():
    rule = byzjax.with_key(byzjax.mean(), jax.random.key(7))
    shown = []
    jax.make_jaxpr(lambda x: shown.append(repr(rule)))(1.0)
    assert shown == ["with_key(mean(), jax.random.key(7))"]
