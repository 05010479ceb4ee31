"""What momentum, storm, anytime and mu2sgd say of bad input."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byzjax.transforms import anytime, momentum, mu2sgd, mu2sgd_authors, storm


def test_storm_outside_the_trainer_says_what_is_missing():
    worker, x = storm(), jnp.ones(2)
    state = worker.init(x)
    with pytest.raises(ValueError, match=r"needs grad_fn.*got no grad_fn, prev_params"):
        worker.update(x, state, x)
    with pytest.raises(ValueError, match="got no prev_params;"):
        worker.update(x, state, x, grad_fn=lambda p: p)
    with pytest.raises(ValueError, match="got no params;"):
        worker.update(x, state, grad_fn=lambda p: p, prev_params=x)
    with pytest.raises(ValueError, match="got no grad_fn, prev_params"):
        mu2sgd(0.1).update(x, mu2sgd(0.1).init(x), x)
    with pytest.raises(ValueError, match="needs the result of grad_fn"):
        worker.update(x, state, x, grad_fn=lambda p: p[None], prev_params=x)
    with pytest.raises(ValueError, match="needs the result of grad_fn"):
        worker.update(x, state, x, grad_fn=lambda p: (p, {}), prev_params=x)


def test_anytime_without_params():
    server = anytime(optax.sgd(0.1))
    with pytest.raises(ValueError, match="anytime needs params"):
        server.update(jnp.ones(2), server.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="needs updates to have"):
        server.update(jnp.ones((1, 2)), server.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: momentum(1.0), r"momentum needs 0 <= decay < 1, got decay=1\.0"),
        (lambda: momentum(-0.1), r"got decay=-0\.1"),
        (lambda: storm(0.0), r"storm needs 0 < beta <= 1, got beta=0\.0"),
        (lambda: storm(1.5), r"got beta=1\.5"),
        (lambda: storm(float("nan")), "got beta=nan"),
        (lambda: anytime(optax.sgd(1.0), weight=0.0), r"got weight=0\.0"),
        (lambda: anytime(optax.sgd(1.0), weight=np.inf), "got weight=inf"),
        (lambda: anytime(optax.sgd(1.0), mixing=1.1), r"got mixing=1\.1"),
        (lambda: mu2sgd(-1.0), r"got learning_rate=-1\.0"),
        (lambda: mu2sgd(0.1, beta=2), "got beta=2"),
        (lambda: mu2sgd_authors(-0.5), r"got learning_rate=-0\.5"),
    ],
)
def test_numbers_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("optimizer", [momentum(), storm(), mu2sgd(0.1)])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, jnp.bool_])
def test_leaves_that_are_not_real_floats(optimizer, dtype):
    with pytest.raises(TypeError, match=r"floating-point leaves, got .* at \['b'\]"):
        optimizer.init({"a": jnp.ones(2), "b": jnp.ones(2, dtype)})


@pytest.mark.parametrize(
    "build",
    [
        lambda: storm("0.5"),
        lambda: storm(True),
        lambda: momentum([0.9]),
        lambda: anytime(0.1),
        lambda: anytime(optax.sgd(0.1), projection=1.0),
    ],
)
def test_wrong_types(build):
    with pytest.raises(TypeError, match="needs"):
        build()


def test_a_schedule_must_be_a_scalar():
    worker, x = storm(lambda count: jnp.ones(2)), jnp.ones(2)
    with pytest.raises(ValueError, match="scalar"):
        worker.update(x, worker.init(x), x, grad_fn=lambda p: p, prev_params=x)
