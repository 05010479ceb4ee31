"""μ²-SGD on one machine, with the paper's schedules or the authors'."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, trees
from byzjax.transforms.anytime import anytime, check_averaging
from byzjax.transforms.schedules import authors_beta, authors_mixing
from byzjax.transforms.storm import check_beta, storm


def mu2sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: optax.ScalarOrSchedule | None = None,
    weight: optax.ScalarOrSchedule | None = None,
    mixing: optax.ScalarOrSchedule | None = None,
    projection: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """mu^2-SGD on one machine: `storm`, then `anytime` around SGD.

        d_t     = g_t + (1 - beta_t) (d_{t-1} - g~_{t-1})
        w_{t+1} = projection(w_t - learning_rate alpha_t d_t)
        x_{t+1} = (alpha_{1:t} x_t + alpha_{t+1} w_{t+1}) / alpha_{1:t+1}

    with the paper's alpha_t = t and beta_t = 1/t by default. Call `update(grads, state,
    params, grad_fn=..., prev_params=...)`; see `storm`. On many machines give
    `storm()` to the workers and `anytime(optax.sgd(learning_rate))` to the server.

    **Guarantee** (Theorem 4.2 of the paper): for convex smooth losses one learning rate
    serves every noise level, horizon and fraction of Byzantine workers. Gradients that
    are not finite, or an update, leave parameters and state as they are.

    Args:
      learning_rate: eta >= 0, a float or a schedule of the 0-based count.
      beta: see `storm`.
      weight: see `anytime`.
      mixing: see `anytime`.
      projection: see `anytime`.

    Returns:
      An optax transformation whose updates are x_{t+1} - x_t.

    Raises:
      ValueError: if a number is out of range, or an argument of `update` is missing.
      TypeError: if a leaf is not real floating point.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from byzjax.transforms import mu2sgd
      >>> optimizer = mu2sgd(0.1)
      >>> grad_fn = jax.grad(lambda x: 0.5 * jnp.sum(x**2))
      >>> params = prev_params = jnp.array([1.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(20):
      ...     updates, state = optimizer.update(
      ...         grad_fn(params), state, params,
      ...         grad_fn=grad_fn, prev_params=prev_params)
      ...     prev_params, params = params, optax.apply_updates(params, updates)
      >>> bool(jnp.abs(params[0]) < 0.05)
      True

    Reference:
      Dahan, Levy, *Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous
      Training* (arXiv 2405.14759); Levy (arXiv 2304.04172).
    """
    _check_rate("mu2sgd", learning_rate)
    check_beta("mu2sgd", beta)
    check_averaging("mu2sgd", weight, mixing, projection)
    server = anytime(
        optax.sgd(learning_rate), weight=weight, mixing=mixing, projection=projection
    )
    workers = storm(beta)

    def update(updates, state, params=None, **extra):
        of_storm, of_server = state
        direction, of_storm = workers.update(updates, of_storm, params, **extra)
        moved, of_server = server.update(direction, of_server, params, **extra)
        # A bad batch costs this step, and not what is remembered. The direction is
        # looked at itself, as a projection may lead back from an infinite one.
        good = trees.all_finite((updates, direction, moved))
        moved = jax.tree.map(lambda x: jnp.where(good, x, 0), moved)
        return moved, trees.kept(good, (of_storm, of_server), state)

    init = optax.chain(workers, server).init
    return optax.GradientTransformationExtraArgs(init, update)


def mu2sgd_authors(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """mu^2-SGD as the CTMA authors' published code runs it.

        beta_t  = max(round(1/t, 3), 0.01)
        gamma_t = max(round(t / (1 + ... + t), 3), 0.01)
        w_{t+1} = w_t - learning_rate d_t

    Differs from the paper in the rounding, in the floors, in gamma_t, which is one step
    ahead (2/(t+1), so that x_2 = w_2), and in w, which moves without alpha_t. Their
    first direction is the gradient on a sample of its own; every later step takes both
    gradients on one fresh sample: the same as calling this with the samples in that
    order. Spelled out, to put the server on its own: `storm(authors_beta)` for the
    workers, `anytime(optax.sgd(learning_rate), weight=1.0, mixing=authors_mixing)`.
    Their fixed variant is `mu2sgd(learning_rate, beta=0.9, weight=1.0, mixing=0.1)`.

    Args:
      learning_rate: eta >= 0, a float (0.1 in their experiments) or a schedule.

    Returns:
      An optax transformation, called as `mu2sgd` is.

    Raises:
      ValueError, TypeError: as `mu2sgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from byzjax.transforms import mu2sgd_authors
      >>> optimizer = mu2sgd_authors(0.1)
      >>> params = jnp.array([1.0])
      >>> updates, _ = optimizer.update(
      ...     params, optimizer.init(params), params,
      ...     grad_fn=lambda x: x, prev_params=params)
      >>> print(updates.round(3))
      [-0.1]

    Reference:
      Dahan, Levy (arXiv 2405.14759), the code published with the paper.
    """
    _check_rate("mu2sgd_authors", learning_rate)
    return mu2sgd(learning_rate, beta=authors_beta, weight=1.0, mixing=authors_mixing)


def _check_rate(owner, learning_rate):
    checks.coefficient(
        owner,
        "0 <= learning_rate < inf",
        lambda v: 0 <= v < math.inf,
        learning_rate=learning_rate,
    )
