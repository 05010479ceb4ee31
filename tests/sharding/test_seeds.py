"""One run a device: rules, attacks and the trainer inside `jax.shard_map` over seeds.

With its default check of what varies by device, which one device has as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import byzjax
from byzjax import attacks
from tests import rules, stacks
from tests.attacks_table import F, M, key_of, matrix, table

pytestmark = pytest.mark.slow
SEEDS = PartitionSpec("seeds")


def one_a_device(function):
    """`function` of one seed's arrays, of those `[seeds, ...]`, one on each device."""

    def of_one(*args):
        found = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], found)

    mesh = jax.make_mesh((1,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(of_one, mesh=mesh, in_specs=SEEDS, out_specs=SEEDS))


@pytest.fixture
def forgotten():
    """Traces of many workers are long, and JAX keeps them: gigabytes in all."""
    yield
    jax.clear_caches()


def traced(rule, m):
    aggregator = rule.make(m, stacks.some_f(rule, m))
    x = jnp.ones((m, 70))
    arguments = rules.arguments(rule, x)
    keep = {k: jax.tree.map(lambda v: v[None], v) for k, v in arguments.items()}
    function = one_a_device(lambda x, given: aggregator.aggregate(x, **given))
    return function.trace(x[None], keep)


@stacks.every
def test_a_rule_may_run_on_each_device_by_itself(rule):
    traced(rule, stacks.M)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("m", [3, 70])
@stacks.compiles
def test_a_rule_of_few_and_of_many_workers_may(rule, m):
    if stacks.some_f(rule, m) <= rule.most(m):
        traced(rule, m)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "meamed", "nnm(median)"])
def test_a_rule_of_512_workers_may(name):
    traced(rules.RULES[rules.NAMES.index(name)], 512)


@table
def test_an_attack_may(row):
    attack, key = row.make(), key_of(row)
    x = jnp.asarray(matrix())
    assert x.shape[0] == M
    if key is None:
        one_a_device(lambda x: attack.apply(x, num_byzantine=F)).trace(x[None])
    else:
        function = one_a_device(lambda x, k: attack.apply(x, num_byzantine=F, key=k))
        function.trace(x[None], key[None])


def test_a_run_is_what_it_is_without_a_mesh():
    def loss_fn(params, batch):
        return jnp.mean((params[None] - batch) ** 2)

    trainer = byzjax.trainer(
        loss_fn,
        worker=byzjax.storm(),
        attack=attacks.optimized(attacks.alie, byzjax.geometric_median()),
        aggregator=byzjax.ctma(byzjax.geometric_median(), 3),
        server=byzjax.anytime(optax.sgd(0.1)),
        num_workers=9,
        num_byzantine=3,
    )

    def train(key):
        def step(state, key):
            batches = jax.random.normal(key, (9, 2, 5))
            return trainer.step(state, batches, key)

        start = trainer.init(jnp.zeros(5))
        keys = jax.random.split(key, 3)
        for key in keys:
            start, metrics = step(start, key)
        return start.params, metrics

    keys = jax.random.split(jax.random.key(0), 1)
    got = one_a_device(train)(keys)
    want = jax.jit(jax.vmap(train))(keys)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
