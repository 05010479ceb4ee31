"""What newcomers hand to rules, and functions of theirs: refused, or read as meant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import rules
from byzjax.testing import check_rule

ROWS = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
ARRAYS = [np.ones((3, 2), np.float32), np.ones(3, np.float32)]
LISTS = {
    "with numbers of samples": [(ARRAYS, 10)] * 5,
    "of numbers": [[1.0, 2.0], [3.0, 4.0]],
    "of one": [{"w": jnp.ones(7), "b": jnp.ones(2)}],
    "of unequal trees": [{"w": jnp.ones(7), "b": jnp.ones(2)}, {"w": jnp.ones(7)}],
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_clients_is_told_how_to_stack(name):
    with pytest.raises(
        (TypeError, ValueError), match=r"byzjax\.stack\(trees\), and num"
    ):
        byzjax.median().aggregate(LISTS[name])


def test_what_stands_beside_arrays_is_not_stacked():
    with pytest.raises(TypeError, match="number of samples, stays out of the trees"):
        byzjax.stack(LISTS["with numbers of samples"])


def test_a_rule_of_an_ordinary_update_of_optax():
    ordinary = byzjax.Aggregator(lambda p: (), lambda u, s, p=None: (u.mean(0), s))
    np.testing.assert_array_equal(ordinary.aggregate(ROWS), ROWS.mean(0))
    chain = optax.chain(ordinary, optax.sgd(1.0))
    at = jnp.zeros(ROWS.shape[1])
    out, _ = chain.update(ROWS, chain.init(at), at, present=None, value=1.0)
    np.testing.assert_array_equal(out, -ROWS.mean(0))
    assert byzjax.nnm(ordinary, 1).aggregate(ROWS).shape == at.shape
    with pytest.raises(TypeError, match="a rule of your own takes"):
        ordinary.aggregate(ROWS, weights=np.ones(len(ROWS), np.float32))


def test_an_attack_that_names_what_it_reads():
    def forge(honest, own, state, *, num_byzantine):
        return jnp.zeros((num_byzantine, honest.shape[1])), state

    sent = byzjax.Attack(forge).apply(ROWS, num_byzantine=2, key=jax.random.key(0))
    assert not sent[-2:].any() and sent[:-2].all()


@pytest.mark.parametrize("keyword", ["bears", "check"])
def test_numbers_in_the_place_of_functions(keyword):
    with pytest.raises(TypeError, match=f"{keyword} to be a function, got {keyword}=1"):
        rules.coordinatewise("own", lambda r: jnp.median(r, axis=0), **{keyword: 1})


def test_per_worker_once():
    each = byzjax.per_worker(byzjax.momentum(0.9), 6)
    with pytest.raises(TypeError, match=r"got per_worker\(.*once is enough"):
        byzjax.per_worker(each, 6)
    with pytest.raises(TypeError, match="give it without per_worker"):
        byzjax.trainer(
            lambda params, batch: jnp.sum(params * batch),
            worker=each,
            aggregator=byzjax.median(),
            server=optax.sgd(0.1),
            num_workers=6,
        )


def test_cap_weights_is_around_no_rule():
    for given in (byzjax.mean(), optax.sgd(0.1)):
        with pytest.raises(TypeError, match="it is no meta-rule"):
            byzjax.cap_weights(given, 0.2)


def test_a_rule_that_cannot_be_traced_fails_by_a_property():
    own = rules.coordinatewise("own", lambda r: np.median(r, axis=0))
    with pytest.raises(AssertionError, match="jit is eager: it cannot be traced"):
        check_rule(own, num_workers=5, num_byzantine=2)


def test_two_numbers_of_attackers():
    inner, rule = byzjax.attacks.ipm(num_byzantine=2), byzjax.median()

    def around(f):
        yield lambda: byzjax.attacks.intermittent(inner, 0.5, num_byzantine=f)
        yield lambda: byzjax.attacks.adaptive(rule, start=inner, num_byzantine=f)
        yield lambda: byzjax.attacks.optimized(lambda z: inner, rule, num_byzantine=f)

    for make in around(3):
        with pytest.raises(ValueError, match="one num_byzantine, got num_byzantine=3"):
            make()
    for make in (*around(2), *around(None)):
        assert make().num_byzantine == 2
