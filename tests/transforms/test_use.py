"""The transforms in use: under jit, vmap and scan, with schedules and any leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byzjax.transforms import anytime, momentum, mu2sgd, mu2sgd_authors


def test_hyperparameters_can_be_vmapped():
    def final(learning_rate, beta, mixing):
        optimizer = mu2sgd(learning_rate, beta=beta, mixing=mixing)
        x, grad_fn = jnp.ones(3), jax.grad(lambda p: jnp.sum(p**2))
        state = optimizer.init(x)
        updates, state = optimizer.update(
            grad_fn(x), state, x, grad_fn=grad_fn, prev_params=x
        )
        return x + updates

    rates = jnp.array([0.1, 0.2])
    out = jax.vmap(final)(rates, jnp.array([0.5, 1.0]), jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(out, np.array([[0.98] * 3, [0.6] * 3]), rtol=1e-6)


def test_anytime_passes_extra_arguments_on():
    def update(updates, state, params=None, *, factor, **extra_args):
        return jax.tree.map(lambda u: -factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    server, x = anytime(inner, weight=1.0, mixing=1.0), jnp.zeros(2)
    updates, _ = server.update(jnp.ones(2), server.init(x), x, factor=3.0)
    np.testing.assert_array_equal(updates, -3.0)


def test_default_weights_do_not_drift_after_millions_of_steps():
    server, x = anytime(optax.sgd(1.0)), jnp.zeros(1)
    state = server.init(x)._replace(count=jnp.array(5_000_000, jnp.int32))
    updates, _ = server.update(jnp.ones(1), state, x)
    expected = -(5_000_001.0) * 2 / 5_000_003.0
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_warm_up_from_zero_weight_gives_no_nan():
    server, x = (
        anytime(optax.sgd(1.0), weight=lambda c: jnp.where(c > 3, 1.0, 0.0)),
        jnp.ones(2),
    )
    state = server.init(x)
    for _ in range(6):
        updates, state = server.update(jnp.ones(2), state, x)
        x = optax.apply_updates(x, updates)
    assert np.all(np.isfinite(x)) and np.all(np.asarray(x) < 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_leaves_and_states_keep_their_dtype(dtype):
    params = {"a": jnp.ones((2, 3), dtype), "b": [jnp.ones((), jnp.float32)]}

    def projection(tree):
        return jax.tree.map(lambda w: jnp.clip(w, -9.0, 9.0), tree)

    weight = optax.linear_schedule(1.0, 2.0, 10)
    for optimizer in (
        momentum(),
        mu2sgd(0.1, projection=projection, weight=weight),
        mu2sgd_authors(0.1),
    ):
        state = optimizer.init(params)
        updates, new_state = jax.jit(
            lambda s, p, o=optimizer: o.update(
                p, s, p, grad_fn=lambda q: q, prev_params=p
            )
        )(state, params)
        for got, want in ((updates, params), (new_state, state)):
            assert jax.tree.structure(got) == jax.tree.structure(want)
            assert jax.tree.map(_aval, got) == jax.tree.map(_aval, want)


def _aval(leaf):
    leaf = jnp.asarray(leaf)
    return (leaf.shape, leaf.dtype, leaf.aval.weak_type)


def test_python_floats_as_params_are_carried_by_scan():
    optimizer = mu2sgd(0.1)
    state = optimizer.init({"a": 1.0})
    assert not state[1].iterate["a"].aval.weak_type


def test_params_and_state_can_both_be_donated():
    optimizer = mu2sgd(0.1)
    params = {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}
    prev_params = jax.tree.map(jnp.zeros_like, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, prev_params):
        updates, state = optimizer.update(
            params, state, params, grad_fn=lambda p: p, prev_params=prev_params
        )
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state, prev_params)
    assert np.all(np.isfinite(params["a"]))
    assert step._cache_size() == 1


def test_a_projection_does_not_hide_an_infinite_direction():
    optimizer = mu2sgd(0.1, projection=lambda tree: jnp.clip(tree, -10, 10))
    before = params = jnp.array([1.0])
    state = optimizer.init(params)
    for slope in (1.0, jnp.inf, 1.0):
        updates, after = optimizer.update(
            params,
            state,
            params,
            grad_fn=functools.partial(jnp.multiply, slope),
            prev_params=before,
        )
        if slope == jnp.inf:
            np.testing.assert_array_equal(updates, 0)
            assert jax.tree.all(jax.tree.map(np.array_equal, after, state))
        before, params, state = params, optax.apply_updates(params, updates), after
    assert 0 < params[0] < 1
