"""`byzjax.trainer` with model state, and with models of both of Flax's APIs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import byzjax
from tests.training.least_squares import (
    AVERAGE,
    INPUTS,
    KEYS,
    PARAMS,
    F,
    H,
    M,
    at,
    close,
    make,
    scanned,
    with_average,
)

# --- model state ----------------------------------------------------------------------


OWN = 0.5 + 0.5 * INPUTS[0].mean(axis=1)  # New state of each worker, step 0.


def model_state_after_one_step(**changed):
    trainer = make(loss_fn=with_average, has_model_state=True, **changed)
    state = trainer.init(PARAMS, AVERAGE)
    return jax.jit(trainer.step)(state, at(0), KEYS[0])[0].model_state["mean"]


ONE_STEP = {
    "median of what all computed": (dict(), np.median(OWN, axis=0)),
    "copies of the honest": (
        dict(attack=byzjax.attacks.ipm(0.5)),
        np.median(np.concatenate([OWN[:H], OWN[:F]]), axis=0),
    ),
    "flipped": (
        dict(model_state_attack=byzjax.attacks.sign_flip()),
        np.median(np.concatenate([OWN[:H], -OWN[H:]]), axis=0),
    ),
    "flipped, though gradients are not computed": (
        dict(
            attack=byzjax.attacks.ipm(0.5),
            model_state_attack=byzjax.attacks.sign_flip(),
            model_state_aggregator=byzjax.mean(),
        ),
        np.concatenate([OWN[:H], -OWN[H:]]).mean(axis=0),
    ),
    "forged from the honest": (
        dict(
            attack=byzjax.attacks.ipm(0.5),
            model_state_attack=byzjax.attacks.ipm(2.0),
            model_state_aggregator=byzjax.trimmed_mean(F),
        ),
        np.sort(np.concatenate([OWN[:H], [-2 * OWN[:H].mean(axis=0)] * F]), axis=0)[
            F:-F
        ].mean(axis=0),
    ),
    "a rule that draws": (
        dict(model_state_aggregator=byzjax.bucketing(byzjax.mean(), 1), attack=None),
        OWN.mean(axis=0),
    ),
}


@pytest.mark.parametrize("case", ONE_STEP)
def test_model_state_is_aggregated_robustly(case):
    changed, want = ONE_STEP[case]
    close(model_state_after_one_step(**changed), want)


def test_model_state_of_workers_in_chunks():
    changed, want = ONE_STEP["flipped"]
    close(model_state_after_one_step(**changed, workers_at_once=2), want)


@pytest.mark.parametrize("bad", [byzjax.attacks.nan(), byzjax.attacks.infinity()])
def test_garbage_as_model_state_is_harmless_and_stops_a_mean(bad):
    got = model_state_after_one_step(model_state_attack=bad)
    assert np.all(got >= OWN[:H].min(axis=0)) and np.all(got <= OWN[:H].max(axis=0))
    got = model_state_after_one_step(
        model_state_attack=bad, model_state_aggregator=byzjax.mean()
    )
    np.testing.assert_array_equal(got, jax.tree.leaves(AVERAGE)[0])  # As before.


def test_a_model_may_have_no_state_at_all():
    def loss_fn(params, model_state, batch):
        return with_average(params, AVERAGE, batch)[0], model_state

    trainer = make(loss_fn=loss_fn, has_model_state=True)
    state, _ = jax.jit(trainer.step)(trainer.init(PARAMS, {}), at(0), KEYS[0])
    other = make(loss_fn=with_average, has_model_state=True)
    want, _ = jax.jit(other.step)(other.init(PARAMS, AVERAGE), at(0), KEYS[0])
    assert state.model_state == {}
    close(state.params, want.params)


def test_a_rule_for_model_state_counts_on_all_workers():
    m, f = 7, 3  # The honest alone would be too few for the rule.
    trainer = make(
        loss_fn=with_average,
        has_model_state=True,
        num_byzantine=f,
        attack=byzjax.attacks.ipm(0.5),
        model_state_aggregator=byzjax.ctma(byzjax.trimmed_mean(f), f),
    )
    state = trainer.init(PARAMS, AVERAGE)
    state, _ = jax.jit(trainer.step)(state, at(0), KEYS[0])
    honest, got = OWN[: m - f], state.model_state["mean"]
    assert np.all(got >= honest.min(axis=0)) and np.all(got <= honest.max(axis=0))


# --- models of both of Flax's APIs ----------------------------------------------------

POINTS = np.random.default_rng(1).normal(size=(240, 2)).astype(np.float32)
CLASSES = (POINTS[:, 0] * POINTS[:, 1] > 0).astype(
    np.int32
)  # No line tells them apart.


def batches_of(seed, steps=80, batch=16):
    """Batches [steps, M, batch, ...] of the points above."""
    rows = np.random.default_rng(seed).integers(0, 240, size=(steps, M, batch))
    return POINTS[rows], CLASSES[rows]


def cross_entropy(logits, labels):
    return jnp.mean(
        optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    )


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(16)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return linen.Dense(2)(linen.relu(x))


def linen_model():
    """Its parameters, batch statistics, loss of a batch, and logits when trained."""
    model = Linen()
    variables = model.init(jax.random.key(0), POINTS[:1], train=False)

    def loss_fn(params, batch_stats, batch):
        inputs, labels = batch
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), changed["batch_stats"]

    def predict(params, batch_stats, inputs):
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, inputs, train=False)

    return variables["params"], variables["batch_stats"], loss_fn, predict


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(2, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def nnx_model():
    graph, params, batch_stats = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)

    def loss_fn(params, batch_stats, batch):
        inputs, labels = batch
        model = nnx.merge(graph, params, batch_stats)
        model.train()
        loss = cross_entropy(model(inputs), labels)
        return loss, nnx.state(model, nnx.BatchStat)

    def predict(params, batch_stats, inputs):
        model = nnx.merge(graph, params, batch_stats)
        model.eval()
        return model(inputs)

    return params, batch_stats, loss_fn, predict


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("model", [linen_model, nnx_model])
def test_a_flax_model_with_batch_norm_learns_under_attack(model):
    params, batch_stats, loss_fn, predict = model()
    arguments = dict(
        worker=byzjax.momentum(0.9),
        attack=byzjax.attacks.sign_flip(),
        model_state_attack=byzjax.attacks.ipm(100.0),
        server=optax.sgd(0.5),
        has_model_state=True,
        num_workers=M,
        num_byzantine=3,
    )
    batches = batches_of(seed=1)
    keys = jax.random.split(jax.random.key(0), len(batches[0]))

    def accuracy(**rules):
        trainer = byzjax.trainer(loss_fn, **arguments, **rules)
        state, metrics = scanned(
            trainer, params, batches, keys, model_state=batch_stats
        )
        answers = predict(state.params, state.model_state, POINTS).argmax(axis=-1)
        return np.mean(answers == CLASSES), metrics

    robust = byzjax.ctma(byzjax.median(), num_byzantine=3)
    accurate, metrics = accuracy(aggregator=robust)
    assert accurate > 0.9, accurate
    assert metrics.loss[-5:].mean() < 0.5 * metrics.loss[0]
    # Statistics averaged blindly spoil a model whose weights are protected.
    spoilt, _ = accuracy(aggregator=robust, model_state_aggregator=byzjax.mean())
    assert spoilt < 0.8, spoilt


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("attack", [None, byzjax.attacks.sign_flip(num_byzantine=3)])
def test_an_existing_flax_loop_with_one_line_changed(attack):
    """A rule, and an attack in front of it, as links of the optimizer's chain."""
    model = linen.Sequential([linen.Dense(16), linen.relu, linen.Dense(2)])
    links = [byzjax.ctma(byzjax.median(), num_byzantine=3), optax.adam(1e-2)]
    optimizer = optax.chain(*links) if attack is None else optax.chain(attack, *links)
    params = model.init(jax.random.key(0), POINTS[:1])
    state = optimizer.init(params)

    def loss_of(params, inputs, labels):
        return cross_entropy(model.apply(params, inputs), labels)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, inputs, labels):
        grads = jax.vmap(jax.grad(loss_of), (None, 0, 0))(params, inputs, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for inputs, labels in zip(*batches_of(seed=2, steps=150), strict=True):
        params, state = step(params, state, inputs, labels)
    assert step._cache_size() == 1
    assert np.mean(model.apply(params, POINTS).argmax(axis=-1) == CLASSES) > 0.9


@pytest.mark.usefixtures("standard_promotion")
def test_a_chain_inside_the_trainer_equals_its_links_in_their_places():
    rule = byzjax.nnm(byzjax.median(), F)
    apart = make(attack=byzjax.attacks.ipm(0.5), aggregator=rule)
    chain = optax.chain(byzjax.attacks.ipm(0.5, num_byzantine=F), rule)
    inside = make(attack=None, aggregator=chain)
    close(scanned(inside)[0].params, scanned(apart)[0].params)
