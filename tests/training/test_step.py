"""`byzjax.trainer`: runs equal their transcriptions, and are pure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from tests.training.least_squares import (
    INPUTS,
    KEYS,
    PARAMS,
    START,
    STEPS,
    TARGETS,
    D,
    F,
    H,
    M,
    at,
    close,
    gradient,
    loss_fn,
    make,
    scanned,
)

# --- against transcriptions -----------------------------------------------------------


def transcribed(worker, rule, attack, server, clip=np.inf, poisoned=None):
    """The run in float64: x, the losses, ‖A‖ and the distance from the honest mean.

    `worker(t, g, g_before, d)` is a message, `server(t, x, w, A)` the new x and w.
    """
    x = x_before = w = START
    messages, metrics = [None] * M, []

    def clipped(g):
        return g * min(1, clip / np.linalg.norm(g))

    for t in range(STEPS):
        losses, sent = [], []
        for i in range(M):
            residual = INPUTS[t, i] @ x - TARGETS[t, i]
            losses.append(np.mean(residual**2))
            g, before = clipped(gradient(x, t, i)), clipped(gradient(x_before, t, i))
            messages[i] = worker(t + 1, g, before, messages[i])
            sent.append(messages[i])
        sent = np.array(attack(sent))
        out, center = rule(sent), np.mean(messages[:H], axis=0)
        metrics.append(
            (np.mean(losses[:H]), np.linalg.norm(out), np.linalg.norm(out - center))
        )
        x_before, (x, w) = x, server(t + 1, x, w, out)
    return x, np.array(metrics).T


def flipped(sent):
    return sent[:H] + [-d for d in sent[H:]]


def heavy(t, g, before, d):
    return g if d is None else 0.8 * d + 0.2 * g


def corrected(t, g, before, d):
    return g if d is None else g + (1 - 1 / t) * (d - before)


def sgd(t, x, w, out):
    return x - 0.1 * out, w


def mu2(t, x, w, out):
    w = w - 0.02 * t * out
    so_far = t * (t + 1) / 2
    return (so_far * x + (t + 1) * w) / (so_far + t + 1), w


def trimmed_around_the_median(rows):
    center = np.median(rows, axis=0)
    nearest = np.argsort(np.linalg.norm(rows - center, axis=1), kind="stable")
    return rows[nearest[:H]].mean(axis=0)


RUNS = {
    "momentum, median": (
        dict(),
        (heavy, lambda rows: np.median(rows, axis=0), flipped, sgd),
    ),
    "storm, anytime, ctma": (
        dict(
            worker=byzjax.storm(),
            aggregator=byzjax.ctma(byzjax.median(), F),
            server=byzjax.anytime(optax.sgd(0.02)),
        ),
        (corrected, trimmed_around_the_median, flipped, mu2),
    ),
    "plain gradients, clipped": (
        dict(worker=None, aggregator=byzjax.mean(), max_grad_norm=0.7),
        (lambda t, g, before, d: g, lambda r: r.mean(axis=0), flipped, sgd, 0.7),
    ),
    "storm, clipped at both points": (
        dict(worker=byzjax.storm(), max_grad_norm=0.7),
        (corrected, lambda rows: np.median(rows, axis=0), flipped, sgd, 0.7),
    ),
    "honest mean of the others": (
        dict(attack=byzjax.attacks.ipm(0.5), aggregator=byzjax.mean()),
        (
            heavy,
            lambda rows: rows.mean(axis=0),
            lambda sent: sent[:H] + [-0.5 * np.mean(sent[:H], axis=0)] * F,
            sgd,
        ),
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_equals_its_transcription(case):
    changed, arguments = RUNS[case]
    state, metrics = scanned(make(**changed))
    x, (loss, norm, distance) = transcribed(*arguments)
    close(state.params, x)
    close(metrics, byzjax.Metrics(loss, norm, distance), 1e-4, 1e-5)
    assert state.step == STEPS


def test_a_run_in_double_precision():
    changed, arguments = RUNS["storm, anytime, ctma"]
    with jax.enable_x64(True):
        state, metrics = scanned(make(**changed), jnp.asarray(START), (INPUTS, TARGETS))
    x, (loss, norm, distance) = transcribed(*arguments)
    close(state.params, x, 1e-11)
    close(metrics, byzjax.Metrics(loss, norm, distance), 1e-10, 1e-10)


def test_leaves_of_several_dtypes_train_and_are_measured_together():
    params = {"half": PARAMS.astype(jnp.bfloat16), "single": PARAMS}

    def both(params, batch):
        return loss_fn(params["half"].astype(jnp.float32) + params["single"], batch)

    trainer = make(loss_fn=both, aggregator=byzjax.mean(), max_grad_norm=1e-3)
    state, metrics = scanned(trainer, params)
    dtypes = jax.tree.map(lambda x: x.dtype, state.params)
    assert dtypes == {"half": jnp.bfloat16, "single": jnp.float32}
    assert metrics.aggregate_norm.dtype == jnp.float32
    assert np.all(metrics.aggregate_norm > 0)
    assert np.all(metrics.aggregate_norm <= 1e-3 * 1.01)


# --- a pure function of its arguments -------------------------------------------------


def test_many_steps_are_traced_once_and_nothing_is_kept():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    trainer = make(
        loss_fn=counted, worker=byzjax.storm(), server=byzjax.anytime(optax.sgd(0.02))
    )
    step = jax.jit(trainer.step)
    state = first = trainer.init(PARAMS)
    counts = []
    for t in range(STEPS):
        state, metrics = step(state, at(t), KEYS[t])
        counts.append(len(traces))
    assert step._cache_size() == 1 and len(set(counts)) == 1
    assert all(x.ndim == 0 for x in jax.tree.leaves(metrics))
    # Again from the first state: the same, so neither init nor step keeps anything.
    again = trainer.init(PARAMS)
    close(first, again, 0, 0)
    for t in range(STEPS):
        again, _ = step(again, at(t), KEYS[t])
    close(state, again, 0, 0)
    eager, _ = trainer.step(first, at(0), KEYS[0])
    close(eager, step(first, at(0), KEYS[0])[0])


def test_scan_equals_a_loop_of_steps():
    trainer = make(attack=byzjax.attacks.gaussian(1.0))
    step, state, losses = jax.jit(trainer.step), trainer.init(PARAMS), []
    for t in range(STEPS):
        state, metrics = step(state, at(t), KEYS[t])
        losses.append(metrics.loss)
    last, metrics = scanned(trainer)
    close(last, state)
    close(metrics.loss, np.array(losses))


def test_vmap_over_seeds_equals_a_loop():
    rule = byzjax.bucketing(byzjax.median(), 2)
    trainer = make(attack=byzjax.attacks.gaussian(1.0), aggregator=rule)

    def run(seed):
        start, *keys = jax.random.split(jax.random.key(seed), STEPS + 1)
        return scanned(trainer, jax.random.normal(start, (D,)), keys=jnp.stack(keys))

    together, alone = jax.jit(jax.vmap(run))(jnp.arange(3)), jax.jit(run)
    for seed in range(3):
        close(jax.tree.map(lambda x, i=seed: x[i], together), alone(seed))
    assert len(np.unique(together[0].params[:, 0])) == 3


STATEFUL = {
    "momentum, centered clipping, adam": dict(
        aggregator=byzjax.centered_clipping(1.0), server=optax.adam(0.1)
    ),
    "storm, with_key, anytime": dict(
        worker=byzjax.storm(),
        aggregator=byzjax.with_key(
            byzjax.bucketing(byzjax.median(), 2), jax.random.key(1)
        ),
        server=byzjax.anytime(optax.sgd(0.02)),
    ),
    "mimic": dict(attack=byzjax.attacks.mimic(warmup=3)),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("case", STATEFUL)
def test_a_donated_state_leaves_the_callers_arrays_alive(case):
    trainer = make(**STATEFUL[case])
    params = jnp.array(START, jnp.float32)
    donated = jax.jit(trainer.step, donate_argnums=0)
    step = jax.jit(trainer.step)
    state, kept = trainer.init(params), trainer.init(params)
    for t in range(3):
        before = state
        state, _ = donated(state, at(t), KEYS[t])
        kept, _ = step(kept, at(t), KEYS[t])
        assert before.params.is_deleted()
    close(state.params, kept.params)
    np.testing.assert_array_equal(params, START.astype(np.float32))
    trainer.init(params)  # The rule's own key, if it has one, is alive as well.
