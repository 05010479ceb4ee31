"""What names stand for: optimizers and attacks written out in NumPy, splits of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from experiments.config import Config
from experiments.figures import bucketing, byzfl, mu2sgd_convex, mu2sgd_network
from experiments.names import ATTACKS, OPTIMIZERS, PARTITIONS, dishonesty, make

RATE, STEPS = 0.3, 7
CURVATURES, RADIUS = np.array([1.0, 3.0]), 0.8


def trained(optimizer):
    """x_2, x_3, … of one machine on noisy quadratics, and the noise of each step."""
    worker, server = make("optimizer", optimizer, OPTIMIZERS, learning_rate=RATE)
    trainer = byzjax.trainer(
        lambda x, z: 0.5 * jnp.sum(jnp.float32(CURVATURES) * (x - z[0]) ** 2),
        **dict(aggregator=byzjax.mean(), worker=worker, server=server, num_workers=1),
    )
    noise = np.random.default_rng(0).normal(size=(STEPS, 2)).astype(np.float32)
    state = trainer.init(jnp.array([2.0, -1.0]))
    step, found = jax.jit(trainer.step), []
    for z in noise:
        state, _ = step(state, z[None, None], jax.random.key(0))
        found.append(np.asarray(state.params))
    return np.array(found), noise


def gradient(x, z):
    return CURVATURES * (x - z)


def kept(x):
    return x * min(1, RADIUS / np.linalg.norm(x))


def written_out(noise, *, beta, gamma, decay=None, keep=kept):
    """The update rules as the papers write them, from t = 1."""
    x = w = before = np.array([2.0, -1.0])
    d, found = np.zeros(2), []
    for t, z in enumerate(noise, 1):
        g = gradient(x, z)
        if decay is not None:
            d = g if t == 1 else decay * d + (1 - decay) * g
        else:
            d = g + (1 - beta(t)) * (d - gradient(before, z)) if t > 1 else g
        before = x
        w = keep(w - RATE * d)
        x = gamma(t) * w + (1 - gamma(t)) * x
        found.append(x)
    return np.array(found)


def always(value):
    return lambda t: value


def as_it_is(x):
    return x


@pytest.mark.parametrize(
    ("optimizer", "want"),
    [
        ("mu2sgd_exact(radius=0.8)", dict(beta=lambda t: 1 / t, gamma="exact")),
        ("storm(radius=0.8)", dict(beta=lambda t: 1 / t, gamma=always(1))),
        ("anytime(radius=0.8)", dict(beta=always(1), gamma="exact")),
        ("momentum(radius=0.8)", dict(beta=None, gamma=always(1), decay=0.9)),
        ("sgd(radius=0.8)", dict(beta=always(1), gamma=always(1))),
        (
            "mu2sgd(beta=0.9, mixing=0.1)",
            dict(beta=always(0.9), gamma=always(0.1), keep=as_it_is),
        ),
        ("storm(beta=0.9)", dict(beta=always(0.9), gamma=always(1), keep=as_it_is)),
        ("anytime(mixing=0.1)", dict(beta=always(1), gamma=always(0.1), keep=as_it_is)),
    ],
)
def test_optimizers_of_the_authors_later_code(optimizer, want):
    if want["gamma"] == "exact":  # t / (1 + … + t)
        want = want | {"gamma": lambda t: t / sum(range(1, t + 1))}
    got, noise = trained(optimizer)
    np.testing.assert_allclose(got, written_out(noise, **want), rtol=2e-5, atol=1e-6)


def test_momenta_of_other_papers():
    got, noise = trained("heavy_ball(decay=0.9)")
    x, m, want = np.array([2.0, -1.0]), np.zeros(2), []
    for z in noise:
        m = 0.9 * m + gradient(x, z)
        x = x - RATE * m
        want.append(x)
    np.testing.assert_allclose(got, want, rtol=2e-5)

    got, noise = trained("ema(decay=0.9, weight_decay=0.01)")
    x, m, want = np.array([2.0, -1.0]), np.zeros(2), []
    for z in noise:
        m = 0.9 * m + 0.1 * gradient(x, z)
        x = x - RATE * (m + 0.01 * x)
        want.append(x)
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_attackers_without_momentum_send_gradients():
    """Among honest workers who do follow it, m ← 0.9 m + g."""
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(4, 5, 3)).astype(np.float32)  # Steps, workers.
    momenta, m = [], np.zeros((5, 3), np.float32)
    for g in gradients:
        m = np.float32(0.9) * m + g
        momenta.append(m)
    for name, sign in (("sign_flip", -1), ("label_flip", 1)):
        attack, poison = dishonesty(
            make(
                *("attack", f"without_momentum({name}, decay=0.9)", ATTACKS),
                **dict(num_byzantine=2, num_classes=10, aggregator=byzjax.mean()),
            )
        )
        assert attack.needs_own and (poison is None) == (name == "sign_flip")
        state = attack.init(jnp.zeros(3))
        for g, m in zip(gradients, momenta, strict=True):
            sent, state = attack.update(jnp.asarray(m), state, num_byzantine=2)
            np.testing.assert_allclose(sent[:3], m[:3])
            np.testing.assert_allclose(sent[3:], sign * g[3:], atol=1e-5)


def test_attacks_that_search_know_the_servers_rule():
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(9, 4)), jnp.float32)
    rule = byzjax.trimmed_mean(2)
    for text, want in (
        ("optimized(ipm)", byzjax.attacks.optimized(byzjax.attacks.ipm, rule)),
        (
            "optimized(alie(direction='positive'), num_evaluations=8)",
            byzjax.attacks.optimized(
                lambda z: byzjax.attacks.alie(z, direction="positive"),
                *(rule,),
                num_evaluations=8,
            ),
        ),
        ("adaptive", byzjax.attacks.adaptive(rule)),
        (
            "adaptive(ipm, num_steps=3)",
            byzjax.attacks.adaptive(rule, start=byzjax.attacks.ipm(), num_steps=3),
        ),
    ):
        config = Config(
            attack=text, rule="trimmed_mean", num_workers=9, num_byzantine=2
        )
        got = config.parts().attack
        assert got is not None
        np.testing.assert_array_equal(
            *(
                jax.jit(x.apply, static_argnames="num_byzantine")(rows, num_byzantine=2)
                for x in (got, want)
            )
        )


def test_splits_among_the_honest_and_in_turn():
    labels = np.random.default_rng(0).integers(0, 10, 600)
    split = make("partition", "among_honest(extreme)", PARTITIONS, num_byzantine=5)
    parts = split(labels, 25)
    assert len(parts) == 25
    np.testing.assert_array_equal(np.sort(np.concatenate(parts[:20])), np.arange(600))
    for i, part in enumerate(parts[:20]):  # Sorted by label, cut into 20 blocks.
        want = np.sort(labels)[30 * i : 30 * (i + 1)]
        np.testing.assert_array_equal(np.sort(labels[part]), want)
    for part in parts[20:]:
        np.testing.assert_array_equal(part, np.arange(600))
    assert all(
        len(part) == 600
        for part in make("partition", "among_honest", PARTITIONS, num_byzantine=1)(
            labels, 4
        )
    )
    counts = [
        np.bincount(labels[part], minlength=10)
        for part in make("partition", "strided", PARTITIONS)(labels, 20)
    ]
    assert np.ptp(counts, axis=0).max() <= 1 and np.sum(counts) == 600


# --- the figures of other papers ------------------------------------------------------


def test_bucketings_cells_are_its_codes():
    cells = bucketing.configs()
    assert len(cells) == 81 == len(set(cells))
    assert len({cell.attack for cell in cells[:16]}) == 5
    clipped = bucketing.cell("bit_flip", "centered_clipping", 0.9, 2)
    assert clipped.rule == (
        "bucketing(centered_clipping(num_iterations=3, radius=100.0), bucket_size=2)"
    )
    assert clipped.attack == "without_momentum(sign_flip, decay=0.9)"
    assert clipped.optimizer == "heavy_ball(decay=0.9)"
    plain = bucketing.cell("label_flip", "krum")
    assert (plain.attack, plain.optimizer) == ("label_flip", "sgd")
    rows, key = jnp.ones((25, 2)), jax.random.key(0)
    rules = {cell.rule: cell.parts().rule for cell in cells}
    assert len(rules) == 11
    for rule in rules.values():  # All bear 5 of their 13 buckets, or of 25 workers.
        jax.eval_shape(lambda x, k, rule=rule: rule.aggregate(x, key=k), rows, key)


def test_protocols_are_the_authors():
    for figure, optimizers in (
        (mu2sgd_convex, "radius=1.0"),
        (mu2sgd_network, "=0."),
    ):
        configs = figure.configs()
        assert len(configs) == 5 * 6 * 3
        alone = [config for config in configs if config.num_workers == 1]
        assert {config.batch_size for config in alone} == {64} and len(alone) == 30
        assert sum(optimizers in config.optimizer for config in alone) >= 18
        assert {config.max_grad_norm for config in configs} == {None}


def test_byzfls_attacks_search_through_the_whole_chain():
    configs = byzfl.configs()
    assert len(configs) == 4 * 4 * 2 * 3
    assert {config.num_workers - config.num_byzantine for config in configs} == {10}
    assert {byzfl.gamma(config) for config in configs} == {"0.0", "0.33", "0.66", "1.0"}
