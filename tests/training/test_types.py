"""The types of a step: batches that a poison keeps, states that a scan carries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

KEY = jax.random.key(0)


def step_with(poison, batches):
    def integer_loss(params, batch):
        return jnp.sum((params - jnp.mean(batch.astype(jnp.float32), axis=0)) ** 2)

    trainer = byzjax.trainer(
        integer_loss,
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=4,
        num_byzantine=1,
        poison=poison,
    )
    state = trainer.init(jnp.zeros(3))
    return jax.eval_shape(trainer.step, state, batches, KEY)


@pytest.mark.parametrize(
    "poison, error, match",
    [
        (
            lambda b: b / 2,
            TypeError,
            "keep the dtype int32, got float32 .*give float32",
        ),
        (lambda b: b[:1], ValueError, r"poison's batches .* rows need one shape"),
        (lambda b: (b, b), ValueError, r"poison's batches to have the structure"),
    ],
    ids=["dtype", "shape", "structure"],
)
def test_a_poison_keeps_types(poison, error, match):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(error, match=match):
        step_with(poison, jnp.ones((4, 2, 3), jnp.int32))


def test_a_poison_may_give_the_width_that_jax_has():
    step_with(lambda b: b + 1, np.ones((4, 2, 3), np.int64))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_a_step_keeps_every_width_with_x64(dtype):
    """With the standard promotion, which optax's own links need."""

    def loss_fn(params, batch):
        return jnp.sum((params[None] - batch) ** 2)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        trainer = byzjax.trainer(
            loss_fn,
            worker=byzjax.storm(),
            attack=byzjax.attacks.rop(aggregator=byzjax.centered_clipping(1.0)),
            aggregator=byzjax.ctma(byzjax.krum(1), 1),
            server=byzjax.anytime(optax.sgd(0.1)),
            num_workers=5,
            num_byzantine=1,
            max_grad_norm=np.float32(3),
        )
        state = trainer.init(jnp.zeros(3, dtype))
        batches = jnp.ones((5, 2, 3), dtype)
        after, _ = jax.eval_shape(trainer.step, state, batches, KEY)
    old, new = jax.tree.leaves(state), jax.tree.leaves(after)
    assert [(x.shape, x.dtype) for x in old] == [(x.shape, x.dtype) for x in new]
    assert after.params.dtype == dtype
