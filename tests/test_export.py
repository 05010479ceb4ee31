"""Every rule, every attack and a step lower for all platforms, whatever is here."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

import byzjax
from tests import rules, stacks
from tests.attacks_table import F, M, key_of, matrix, table

pytestmark = pytest.mark.slow
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def exported(function, *args):
    found = export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    assert found.platforms == PLATFORMS
    return found


@stacks.compiles
def test_a_rule_is_exported(rule):
    aggregator = rule.make(stacks.M, stacks.some_f(rule))
    x = jnp.asarray(stacks.gaussian())
    arguments = rules.arguments(rule, x)
    found = exported(lambda x, given: aggregator.aggregate(x, **given), x, arguments)
    assert [out.shape for out in found.out_avals] == [(stacks.D,)]


@table
def test_an_attack_is_exported(row):
    attack, key, x = row.make(), key_of(row), jnp.asarray(matrix())
    found = exported(lambda x: attack.apply(x, num_byzantine=F, key=key), x)
    assert [out.shape for out in found.out_avals] == [x.shape]


@pytest.mark.parametrize("with_layout", [False, True])
def test_a_step_is_exported(with_layout):
    layout = None
    if with_layout:
        mesh = jax.make_mesh((1,), ("workers",))
        layout = byzjax.sharding.Layout(mesh)

    def loss_fn(params, batch):
        return jnp.mean((params[None] - batch) ** 2)

    trainer = byzjax.trainer(
        loss_fn,
        worker=byzjax.storm(),
        attack=byzjax.attacks.alie(1.0),
        aggregator=byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
        server=byzjax.anytime(optax.sgd(0.1)),
        num_workers=M,
        num_byzantine=F,
        layout=layout,
    )
    state = trainer.init(jnp.zeros(5))
    batches = jnp.ones((M, 2, 5))
    found = exported(trainer.step, state, batches, jax.random.key(0))
    assert len(found.out_avals) == len(found.in_avals) - 2 + 3  # Metrics, no batches.


def test_many_rows_are_exported():
    x = jnp.ones((70, 130))
    for rule in (byzjax.median(), byzjax.nnm(byzjax.median(), 3)):
        exported(rule.aggregate, x)


def test_many_rows_are_planes_of_bits_where_words_compile_slowly():
    x = jnp.ones((70, 130))
    for platform, planes in (("cpu", False), ("cuda", True), ("tpu", True)):
        found = export.export(jax.jit(byzjax.median().aggregate), platforms=[platform])
        assert ("tensor<32x3x130xui32>" in found(x).mlir_module()) == planes, platform


def test_few_rows_are_mixed_by_a_product_where_that_reads_them_once():
    x, rule = jnp.ones((M, 1000)), byzjax.nnm(byzjax.median(), F)
    for platform, products in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        found = export.export(jax.jit(rule.aggregate), platforms=[platform])(x)
        lines = found.mlir_module().splitlines()
        shapes = f"(tensor<{M}x{M}xf32>, tensor<{M}x1000xf32>)"
        assert sum(shapes in line for line in lines) == products, platform
