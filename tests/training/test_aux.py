"""Metrics of one's own: what loss_fn returns beside the loss."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from tests.training.least_squares import (
    AVERAGE,
    BATCHES,
    KEYS,
    PARAMS,
    B,
    F,
    M,
    at,
    loss_fn,
    make,
    scanned,
    with_average,
)


def with_aux(params, batch):
    inputs, targets = batch
    errors = inputs @ params - targets
    return loss_fn(params, batch), {
        "worst": jnp.max(jnp.abs(errors)),
        "errors": errors,
        "count": jnp.int32(len(errors)),
    }


def with_both(params, average, batch):
    loss, new = with_average(params, average, batch)
    return loss, (new, with_aux(params, batch)[1])


SETTINGS = {
    "honest messages only": dict(attack=byzjax.attacks.alie()),
    "own messages": dict(attack=byzjax.attacks.sign_flip()),
    "storm": dict(worker=byzjax.storm()),
    "chunks": dict(workers_at_once=2),
    "poison": dict(poison=lambda batch: jax.tree.map(lambda x: 9 * x, batch)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_is_reported_for_every_honest_worker(name):
    setting = SETTINGS[name]
    plain, aux = make(**setting), make(loss_fn=with_aux, has_aux=True, **setting)
    (state, metrics), (wanted, other) = scanned(aux), scanned(plain)
    # Training goes on as it would without.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        (state, metrics[:3]),
        (wanted, other[:3]),
    )
    assert other.aux is None
    steps = len(metrics.loss)
    assert metrics.aux["errors"].shape == (steps, M - F, B)
    assert metrics.aux["count"].dtype == jnp.int32
    first = jax.vmap(with_aux, (None, 0))(PARAMS, at(0))[1]
    np.testing.assert_allclose(
        metrics.aux["worst"][0], first["worst"][: M - F], rtol=1e-6
    )
    squares = jnp.mean(metrics.aux["errors"][0] ** 2, axis=1)
    np.testing.assert_allclose(jnp.mean(squares), metrics.loss[0], rtol=1e-5)


def test_beside_a_model_state():
    trainer = make(loss_fn=with_both, has_aux=True, has_model_state=True)
    plain = make(loss_fn=with_average, has_model_state=True)
    state, metrics = scanned(trainer, model_state=AVERAGE)
    wanted, _ = scanned(plain, model_state=AVERAGE)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        state.model_state,
        wanted.model_state,
    )
    assert metrics.aux["worst"].shape == (len(metrics.loss), M - F)


@pytest.mark.parametrize(
    "loss, has_model_state, has_aux, form",
    [
        (with_aux, False, False, r"loss with"),
        (loss_fn, False, True, r"\(loss, aux\) with"),
        (with_average, True, True, r"\(loss, \(new model state, aux\)\) with"),
        (lambda p, s, b: loss_fn(p, b), True, False, r"\(loss, new model state\) with"),
    ],
    ids=["none", "aux", "both", "state"],
)
def test_another_form_is_refused(loss, has_model_state, has_aux, form):
    trainer = make(loss_fn=loss, has_model_state=has_model_state, has_aux=has_aux)
    given = (PARAMS, AVERAGE) if has_model_state else (PARAMS,)
    match = rf"trainer\.step needs loss_fn to return {form} .*has_aux={has_aux}, got"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(trainer.step, trainer.init(*given), at(0, BATCHES), KEYS[0])


def test_every_field_of_a_state_is_documented():
    states = (
        byzjax.TrainState,
        byzjax.Metrics,
        byzjax.WorkerMetrics,
        *(getattr(byzjax.transforms, f"{x}State") for x in ("Storm", "Momentum")),
        byzjax.transforms.AnytimeState,
    )
    for state in states:
        for field in state._fields:
            assert f"\n  {field}: " in inspect.getdoc(state), (state, field)
