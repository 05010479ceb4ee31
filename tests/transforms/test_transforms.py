"""Momentum, storm, anytime and mu2sgd against float64 transcriptions of the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byzjax.transforms import (
    anytime,
    authors_beta,
    authors_mixing,
    momentum,
    mu2sgd,
    mu2sgd_authors,
    storm,
)

DIM, STEPS = 5, 40
_rng = np.random.default_rng(0)
CURVATURE = np.linspace(0.2, 2.0, DIM)
CENTRES = 1.0 + _rng.normal(size=(STEPS, DIM))  # sample z_t; f(x; z) quadratic
SLOPES = CURVATURE * (1 + 0.3 * _rng.normal(size=(STEPS, DIM)))  # noisy curvature too
START = _rng.normal(size=DIM)


def noisy_gradient(x, t):
    """Gradient of the t-th sample's quadratic; the noise depends on x."""
    return SLOPES[t] * (x - CENTRES[t])


def reference(learning_rate, beta, weight, gamma=None, project=lambda w: w):
    """The algorithm as the paper writes it: float64, t = 1, 2, ..., explicit sums."""
    x, w, d, x_prev, path = START.copy(), START.copy(), None, None, [START.copy()]
    for t in range(1, STEPS + 1):
        g = noisy_gradient(x, t - 1)
        if d is None:
            d = g
        else:
            d = g + (1 - beta(t)) * (d - noisy_gradient(x_prev, t - 1))
        w = project(w - learning_rate * weight(t) * d)
        x_prev = x
        if gamma is None:
            so_far = sum(weight(s) for s in range(1, t + 1))
            x = (so_far * x + weight(t + 1) * w) / (so_far + weight(t + 1))
        else:
            x = (1 - gamma(t)) * x + gamma(t) * w
        path.append(x)
    return np.array(path)


def run(optimizer, dtype=jnp.float32, jit=True):
    """All iterates of an optimizer on the same samples, in one scan."""
    centres, slopes = jnp.asarray(CENTRES, dtype), jnp.asarray(SLOPES, dtype)
    params = jnp.asarray(START, dtype)

    def step(carry, sample):
        params, prev_params, state = carry
        centre, slope = sample

        def grad_fn(x):
            return slope * (x - centre)

        updates, state = optimizer.update(
            grad_fn(params), state, params, grad_fn=grad_fn, prev_params=prev_params
        )
        new_params = optax.apply_updates(params, updates)
        return (new_params, params, state), new_params

    def everything(params):
        carry = (params, params, optimizer.init(params))
        if jit:
            return jax.lax.scan(step, carry, (centres, slopes))[1]
        path = []
        for sample in zip(centres, slopes, strict=True):
            carry, x = step(carry, sample)
            path.append(x)
        return jnp.stack(path)

    path = (jax.jit(everything) if jit else everything)(params)
    return np.concatenate([np.asarray(params)[None], np.asarray(path)])


def ball(radius):
    """Both sides' projection onto an l2 ball around 0."""
    ours = functools.partial(optax.projections.projection_l2_ball, scale=radius)
    return ours, lambda w: w * min(1.0, radius / np.linalg.norm(w))


def step_of(count):
    """The paper's t as a float, from optax's count."""
    return jnp.asarray(count + 1, jnp.result_type(float))


def authors_round(numerator, denominator):
    return max(round(numerator / denominator, 3), 0.01)


CASES = {
    "paper": (
        lambda: mu2sgd(0.05),
        lambda: reference(0.05, lambda t: 1 / t, lambda t: t),
    ),
    "fixed beta": (
        lambda: mu2sgd(0.05, beta=0.3),
        lambda: reference(0.05, lambda t: 0.3, lambda t: t),
    ),
    "sgd": (
        lambda: mu2sgd(0.05, beta=1.0),
        lambda: reference(0.05, lambda t: 1.0, lambda t: t),
    ),
    "scheduled beta": (
        lambda: mu2sgd(0.05, beta=lambda count: step_of(count) ** -0.5),
        lambda: reference(0.05, lambda t: t**-0.5, lambda t: t),
    ),
    "constant weight": (
        lambda: mu2sgd(0.2, weight=2.5),
        lambda: reference(0.2, lambda t: 1 / t, lambda t: 2.5),
    ),
    "scheduled weight": (
        lambda: mu2sgd(0.01, weight=lambda count: step_of(count) ** 1.5),
        lambda: reference(0.01, lambda t: 1 / t, lambda t: t**1.5),
    ),
    "weight keeps its step under mixing": (
        lambda: mu2sgd(0.05, mixing=0.25),
        lambda: reference(0.05, lambda t: 1 / t, lambda t: t, lambda t: 0.25),
    ),
    "scheduled mixing": (
        lambda: mu2sgd(0.05, mixing=lambda count: 1 / step_of(count)),
        lambda: reference(0.05, lambda t: 1 / t, lambda t: t, lambda t: 1 / t),
    ),
    "projection": (
        lambda: mu2sgd(0.3, projection=ball(0.9)[0]),
        lambda: reference(0.3, lambda t: 1 / t, lambda t: t, project=ball(0.9)[1]),
    ),
    "authors": (
        lambda: mu2sgd_authors(0.1),
        lambda: reference(
            0.1,
            lambda t: authors_round(1, t),
            lambda t: 1.0,
            lambda t: authors_round(t, t * (t + 1) // 2),
        ),
    ),
    "authors, fixed": (
        lambda: mu2sgd(0.1, beta=0.9, weight=1.0, mixing=0.1),
        lambda: reference(0.1, lambda t: 0.9, lambda t: 1.0, lambda t: 0.1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_iterates_equal_the_paper(case):
    ours, oracle = CASES[case]
    np.testing.assert_allclose(run(ours()), oracle(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_iterates_equal_the_paper_in_float64(case):
    ours, oracle = CASES[case]
    with jax.enable_x64(True):
        path = run(ours(), jnp.float64)
    assert path.dtype == np.float64
    np.testing.assert_allclose(path, oracle(), rtol=1e-11, atol=1e-12)


def test_eager_equals_jit():
    eager, jitted = run(mu2sgd(0.05), jit=False), run(mu2sgd(0.05))
    np.testing.assert_allclose(eager, jitted, rtol=1e-5, atol=1e-6)


def test_authors_code_order_of_passes():
    """Their loop: step with d, then both passes of the same batch around the step."""

    class Worker:
        def __init__(self):
            self.t, self.momentum, self.old_gradient = 1, None, None

        def second_pass(self, gradient):
            beta = max(round(1 / self.t, 3), 0.01)
            self.t += 1
            if self.momentum is None:
                self.momentum = gradient
            else:
                drift = (1 - beta) * (self.momentum - self.old_gradient)
                self.momentum = gradient + drift

    x, w, worker, total = START.copy(), START.copy(), Worker(), 0
    worker.second_pass(noisy_gradient(x, 0))  # a batch of its own, before the loop
    path = [x]
    for t in range(1, STEPS):
        worker.old_gradient = noisy_gradient(x, t)
        total += t
        w = w - 0.1 * worker.momentum
        gamma = max(round(t / total, 3), 0.01)
        x = (1 - gamma) * x + gamma * w
        worker.second_pass(noisy_gradient(x, t))
        path.append(x)
    ours = run(mu2sgd_authors(0.1))[:STEPS]
    np.testing.assert_allclose(ours, np.array(path), rtol=1e-5, atol=1e-6)


def test_authors_schedules_are_pythons_rounding_to_the_last_step():
    counts = np.arange(600)
    beta = [authors_round(1, t) for t in range(1, 601)]
    mixing = [authors_round(t, sum(range(t + 1))) for t in range(1, 601)]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(authors_beta(counts), beta)
        np.testing.assert_array_equal(jax.vmap(authors_mixing)(counts), mixing)
    assert jnp.asarray(authors_beta(0)).dtype == jnp.float32


def test_momentum_starts_from_the_first_gradient():
    worker = momentum(0.9)
    state, expected = worker.init(jnp.zeros(DIM)), None
    for t in range(STEPS):
        g = CENTRES[t]
        expected = g if expected is None else 0.9 * expected + 0.1 * g
        sent, state = worker.update(jnp.asarray(g, jnp.float32), state)
        np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-6)
    first, _ = momentum(0.0).update(jnp.ones(2), momentum(0.0).init(jnp.zeros(2)))
    np.testing.assert_array_equal(first, 1.0)


def test_storm_averages_exactly_for_a_linear_gradient_noise():
    """With noise that does not depend on x, d_t is the gradient plus the mean noise."""
    worker, noise = storm(), CENTRES
    x_prev = x = jnp.asarray(START, jnp.float32)
    state = worker.init(x)
    for t in range(STEPS):
        z = jnp.asarray(noise[t], jnp.float32)

        def grad_fn(p, z=z):
            return 2 * p + z

        d, state = worker.update(
            grad_fn(x), state, x, grad_fn=grad_fn, prev_params=x_prev
        )
        expected = 2 * np.asarray(x) + noise[: t + 1].mean(axis=0)
        np.testing.assert_allclose(d, expected, rtol=1e-4, atol=1e-5)
        x_prev, x = x, x + 0.1 * jnp.sin(t + jnp.arange(DIM, dtype=jnp.float32))


def test_storm_vmapped_over_workers_equals_a_loop():
    worker, m = storm(0.4), 4
    old, new = jnp.ones(DIM), jnp.full(DIM, 0.5)
    batches = jnp.asarray(CENTRES[: 2 * m].reshape(2, m, DIM), jnp.float32)

    def grad(x, z):
        return 0.5 * x**2 - z

    def one(state, z, x, x_prev):
        return worker.update(
            grad(x, z), state, x, grad_fn=lambda p: grad(p, z), prev_params=x_prev
        )

    stacked = jax.vmap(lambda _: worker.init(old))(jnp.arange(m))
    assert stacked.momentum.shape == (m, DIM)
    every = jax.vmap(one, in_axes=(0, 0, None, None))
    _, stacked = every(stacked, batches[0], old, old)
    sent, _ = every(stacked, batches[1], new, old)
    for i in range(m):
        _, state = one(worker.init(old), batches[0, i], old, old)
        alone, _ = one(state, batches[1, i], new, old)
        np.testing.assert_allclose(sent[i], alone, rtol=1e-6)


@pytest.mark.parametrize("beta", [None, 0.3, 1.0])
def test_storm_first_step_ignores_a_non_finite_previous_gradient(beta):
    worker, x = storm(beta), jnp.ones(3)
    d, _ = worker.update(
        x, worker.init(x), x, grad_fn=lambda p: p * jnp.inf, prev_params=x
    )
    np.testing.assert_array_equal(d, x)


@pytest.mark.usefixtures("standard_promotion")
def test_anytime_hands_alpha_times_the_direction_to_adam():
    """The inner optimizer sees alpha_t d_t as gradient and w_t as params."""
    inner = optax.adamw(0.1, weight_decay=0.5)
    server = anytime(inner)
    x = w = jnp.asarray(START, jnp.float32)
    state, inner_state = server.init(x), inner.init(x)
    for t in range(1, 6):
        d = jnp.asarray(CENTRES[t], jnp.float32)
        updates, state = server.update(d, state, x)
        x_next = optax.apply_updates(x, updates)
        step, inner_state = inner.update(t * d, inner_state, w)
        w = w + step
        np.testing.assert_allclose(state.iterate, w, rtol=1e-6)
        np.testing.assert_allclose(
            x_next, (t * x + 2 * w) / (t + 2), rtol=1e-5, atol=1e-6
        )
        x = x_next


def test_projection_keeps_both_iterates_inside():
    radius = 0.7
    server = anytime(optax.sgd(5.0), projection=ball(radius)[0])
    x = jnp.asarray(START / np.linalg.norm(START) * 0.5, jnp.float32)
    state = server.init(x)
    for t in range(STEPS):
        updates, state = server.update(jnp.asarray(CENTRES[t], jnp.float32), state, x)
        x = optax.apply_updates(x, updates)
        assert np.linalg.norm(state.iterate) <= radius * (1 + 1e-6)
        assert np.linalg.norm(x) <= radius * (1 + 1e-6)


def test_a_bad_batch_costs_mu2sgd_a_step_and_not_its_memory():
    optimizer, params = mu2sgd(0.1), jnp.ones(2)
    good = {"grad_fn": lambda x: jnp.ones(2), "prev_params": params}
    bad = {"grad_fn": lambda x: jnp.full(2, jnp.nan), "prev_params": params}
    step = lambda g, s, how: optimizer.update(g, s, params, **how)  # noqa: E731
    _, state = step(jnp.ones(2), optimizer.init(params), good)
    moved, after = step(jnp.full(2, jnp.nan), state, bad)
    np.testing.assert_array_equal(moved, 0)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    moved, _ = step(jnp.ones(2), after, good)
    assert (moved < 0).all()
