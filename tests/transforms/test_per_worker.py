"""`per_worker` is a loop over the workers, whatever it maps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax

M, STEPS = 5, 6
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
RNG = np.random.default_rng(0)


def gradients(t):
    rng = np.random.default_rng(t)
    return jax.tree.map(
        lambda p: jnp.asarray(3 * rng.normal(size=(M, *p.shape)), jnp.float32), PARAMS
    )


def row(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def mask(params):
    return {"w": True, "b": False}


TRANSFORMS = {
    "momentum": byzjax.momentum(0.9),
    "ema": optax.ema(0.9),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "masked": optax.masked(optax.trace(0.5), mask),
    "weight decay": optax.add_decayed_weights(0.1),
    "MultiSteps": optax.MultiSteps(optax.sgd(1.0), 2),
    "MultiSteps of a link": optax.MultiSteps(
        optax.identity(), 3
    ).gradient_transformation(),
    "chain": optax.chain(optax.clip(0.5), optax.scale_by_rss()),
    "per leaf": optax.partition(
        {"a": optax.sgd(0.1), "b": byzjax.momentum(0.5)}, {"w": "a", "b": "b"}
    ),
}


@pytest.mark.usefixtures("standard_promotion")  # Which optax's links need.
@pytest.mark.parametrize("name", TRANSFORMS)
def test_is_a_loop_over_the_workers(name):
    one = TRANSFORMS[name]
    many = byzjax.per_worker(one, M)
    state, update = many.init(PARAMS), jax.jit(many.update)
    states = [one.init(PARAMS) for _ in range(M)]
    for t in range(STEPS):
        sent, state = update(gradients(t), state, PARAMS)
        for i in range(M):
            wanted, states[i] = one.update(row(gradients(t), i), states[i], PARAMS)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
                row(sent, i),
                wanted,
            )
    assert update._cache_size() == 1
    assert jax.tree.map(jnp.shape, sent) == jax.tree.map(jnp.shape, gradients(0))


def test_each_worker_draws_noise_of_its_own():
    one = optax.add_noise(1.0, 0.5, jax.random.key(0))
    many = byzjax.per_worker(one, M)
    zeros = jax.tree.map(jnp.zeros_like, gradients(0))
    with jax.numpy_dtype_promotion("standard"):
        sent, _ = many.update(zeros, many.init(PARAMS), PARAMS)
    assert len(np.unique(sent["w"])) == sent["w"].size


def test_storm_is_given_its_workers_gradients():
    data = jnp.asarray(RNG.normal(size=(M, 4)), jnp.float32)
    grad = jax.grad(lambda x, z: jnp.sum((x - z) ** 2))

    def grad_fn(at):
        return jax.vmap(grad, (None, 0))(at, data)

    storm = byzjax.storm(0.5)
    many = byzjax.per_worker(storm, M)
    points = [jnp.full(4, v) for v in (3.0, 2.0, 1.5)]
    state, states = many.init(points[0]), [storm.init(points[0])] * M
    for before, now in zip([points[0], *points], points, strict=False):
        sent, state = many.update(
            grad_fn(now), state, now, grad_fn=grad_fn, prev_params=before
        )
        for i in range(M):
            wanted, states[i] = storm.update(
                grad(now, data[i]),
                states[i],
                now,
                grad_fn=lambda at, i=i: grad(at, data[i]),
                prev_params=before,
            )
            np.testing.assert_allclose(sent[i], wanted, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_a_bad_row_is_its_own_only_and_forgotten():
    many = byzjax.per_worker(optax.ema(0.9), M)
    state = many.init(PARAMS)
    rows = gradients(0)
    _, state = many.update(rows, state, PARAMS)
    bad = jax.tree.map(lambda x: x.at[2].set(jnp.nan), gradients(1))
    sent, after = many.update(bad, state, PARAMS)
    assert np.isfinite(sent["w"]).all(axis=(1, 2)).tolist() == [1, 1, 0, 1, 1]
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[2], y[2]), after.ema, state.ema
    )


@pytest.mark.usefixtures("standard_promotion")
def test_a_chain_with_history_before_the_rule_learns_under_attack():
    optimizer = optax.chain(
        byzjax.per_worker(optax.clip_by_global_norm(2.0), M),
        byzjax.per_worker(byzjax.momentum(0.9), M),
        byzjax.attacks.constant(1e9, num_byzantine=1),
        byzjax.nnm(byzjax.median(), 1),
        optax.sgd(0.1),
    )
    target = jnp.arange(3.0)

    def step(carry, key):
        x, state = carry
        rows = (x - target)[None] + 0.1 * jax.random.normal(key, (M, 3))
        updates, state = optimizer.update(rows, state, x)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.ones(3)
    keys = jax.random.split(jax.random.key(0), 200)
    carry = start, optimizer.init(start)
    (x, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))(carry)
    np.testing.assert_allclose(x, target, atol=0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_are_kept(dtype):
    rows = jnp.ones((M, 3), dtype)
    many = byzjax.per_worker(byzjax.momentum(0.9), M)
    state = many.init(rows[0])
    sent, after = jax.eval_shape(many.update, rows, state)
    assert sent.dtype == rows.dtype
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_what_is_refused():
    momentum = byzjax.momentum()
    for bad in (byzjax.median(), byzjax.attacks.ipm()):
        with pytest.raises(TypeError, match=r"per_worker needs transform to be of one"):
            byzjax.per_worker(bad, M)
    for bad in (None, byzjax.momentum, lambda x: x):
        with pytest.raises(TypeError, match=r"transform to be an optax\.Gradient"):
            byzjax.per_worker(bad, M)
    with pytest.raises(ValueError, match=r"per_worker needs num_workers >= 1, got .*0"):
        byzjax.per_worker(momentum, 0)
    many = byzjax.per_worker(momentum, M)
    state = many.init(PARAMS)
    with pytest.raises(ValueError, match=r"of num_workers=5 rows, got 4"):
        many.update(jax.tree.map(lambda x: x[:4], gradients(0)), state, PARAMS)
    with pytest.raises(ValueError, match=r"updates need to be stacked.*jax\.vmap"):
        many.update({"w": jnp.ones((5, 2)), "b": jnp.ones(5)}, state, PARAMS)
    with pytest.raises(ValueError, match=r"same number of workers.*jax\.vmap"):
        many.update(PARAMS, state)


# --- steps that a worker misses -------------------------------------------------------


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("missed", ["absent", "nan"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_all_workers_accumulate_in_step(missed, at):
    """Else who missed one step would send zeros whenever the others send gradients."""
    optimizer = optax.chain(
        byzjax.per_worker(optax.MultiSteps(optax.identity(), 2), 5),
        byzjax.median(),
        optax.sgd(0.1),
    )

    @jax.jit
    def step(params, state, i):
        out = (i == at) & (jnp.arange(5) < 1)
        rows = jnp.broadcast_to(params - 1, (5, 1))
        rows = jnp.where(out[:, None], jnp.nan, rows)
        present = ~out if missed == "absent" else None
        updates, state = optimizer.update(rows, state, params, present=present)
        return optax.apply_updates(params, updates), state

    params, state = jnp.zeros(1), optimizer.init(jnp.zeros(1))
    for i in range(40):
        params, state = step(params, state, i)
    np.testing.assert_array_equal(state[0].mini_step, 0)
    np.testing.assert_array_equal(state[0].gradient_step, 20)
    assert params[0] > 0.85  # 1 - 0.9**20


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_keep_what_was_accumulated():
    """The mean of the steps that a worker was there for, or their sum."""
    many = byzjax.per_worker(optax.MultiSteps(optax.identity(), 3), 2)
    state = many.init(jnp.zeros(1))
    for i, here in enumerate([True, True, False, True, False, True]):
        present = jnp.array([True, here])
        rows = jnp.array([[1.0], [2.0 if here else jnp.nan]])
        out, state = many.update(rows, state, present=present)
        if i == 5:
            np.testing.assert_allclose(out, [[1], [2]])


def test_storm_begins_anew_after_an_absence():
    """d belongs to the point where the worker was, which others have left since."""
    many = byzjax.per_worker(byzjax.storm(), 3)

    def grad_fn(at):
        return jnp.broadcast_to(at - 1, (3, 1))

    def run(gone):
        state, params = many.init(jnp.zeros(1)), jnp.zeros(1)
        before, sent = params, []
        for i in range(8):
            present = jnp.arange(3) < (2 if i in gone else 3)
            out, state = many.update(
                grad_fn(params),
                state,
                params,
                grad_fn=grad_fn,
                prev_params=before,
                present=present,
            )
            before, params = params, params - 0.1 * out[0]
            sent.append(out)
        return np.stack(sent), state

    sent, state = run(gone=(2, 3, 4))
    assert list(state.count) == [8, 8, 3]
    np.testing.assert_allclose(sent[5:, 2], sent[5:, 0], atol=1e-6)
    _, state = run(gone=())
    assert list(state.count) == [8, 8, 8]


@pytest.mark.usefixtures("standard_promotion")
def test_one_huge_gradient_costs_a_worker_one_step():
    """Its square is none that Adam could remember."""
    many = byzjax.per_worker(optax.scale_by_adam(), 3)
    state = many.init(jnp.zeros(1))
    for last in (1.0, 1e20, 1.0, 1.0):
        rows = jnp.array([[1.0], [1.0], [last]])
        out, state = many.update(rows, state)
    np.testing.assert_allclose(out, 1, atol=1e-3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
