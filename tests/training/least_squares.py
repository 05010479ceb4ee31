"""Least squares shared by the tests of the trainer: 7 workers, 2 of them Byzantine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

M, F, B, D = 7, 2, 4, 3  # Workers, Byzantine ones, samples of a batch, coordinates.
H = M - F
STEPS = 12
_rng = np.random.default_rng(0)
INPUTS = _rng.normal(size=(STEPS, M, B, D))
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5]) + 0.3 * _rng.normal(size=(STEPS, M, B))
START = _rng.normal(size=D)
BATCHES = jnp.asarray(INPUTS, jnp.float32), jnp.asarray(TARGETS, jnp.float32)
KEYS = jax.random.split(jax.random.key(0), STEPS)
PARAMS = jnp.asarray(START, jnp.float32)


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.dot(inputs, params, precision="highest") - targets) ** 2)


def with_average(params, average, batch):
    """Least squares that keep a moving average of their inputs."""
    new = jax.tree.map(lambda a: 0.5 * a + 0.5 * jnp.mean(batch[0], axis=0), average)
    return loss_fn(params, batch), new


AVERAGE = {"mean": jnp.ones(D)}


def gradient(x, t, i):
    """Of the squares above, for worker i in step t."""
    return 2 / B * INPUTS[t, i].T @ (INPUTS[t, i] @ x - TARGETS[t, i])


def make(**changed):
    """A trainer of the least squares above, some of its arguments changed."""
    arguments = dict(
        worker=byzjax.momentum(0.8),
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        attack=byzjax.attacks.sign_flip(),
        num_workers=M,
        num_byzantine=F,
    )
    return byzjax.trainer(changed.pop("loss_fn", loss_fn), **arguments | changed)


def at(t, batches=BATCHES):
    return jax.tree.map(lambda x: x[t], batches)


def scanned(trainer, params=PARAMS, batches=BATCHES, keys=KEYS, **given):
    """The last state and the metrics of all steps, in one program."""

    def body(state, inputs):
        return trainer.step(state, *inputs)

    def everything(params):
        return jax.lax.scan(body, trainer.init(params, **given), (batches, keys))

    return jax.jit(everything)(params)


def close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, want)
