"""Attacks without cunning: noise, constants, non-numbers and idleness."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.typing

from byzjax import base
from byzjax.attacks import lift
from byzjax.base import Attack, Tree


def gaussian(
    std: jax.typing.ArrayLike,
    *,
    around: Literal["zero", "mean"] = "zero",
    num_byzantine: int | None = None,
) -> Attack:
    r"""Gaussian noise instead of a message, drawn anew by each Byzantine worker.

    .. math:: b_i \sim \mathcal N(0, \sigma^2 I) \qquad\text{or}\qquad
      b_i \sim \mathcal N(\mu, \sigma^2 I)

    "zero" is Blanchard et al. (σ = 200) and ByzFL (σ = 1); "mean" adds the noise to the
    honest mean μ.

    Args:
      std: σ >= 0; may be traced.
      around: the centre.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` that needs a `key`.

    Raises:
      ValueError: a negative or non-finite σ, another word, a missing key.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> attack = byzjax.attacks.gaussian(200.0)
      >>> rows = attack.apply(
      ...     jnp.ones((3, 1000)), num_byzantine=1, key=jax.random.key(0)
      ... )
      >>> print(rows.std(axis=1).round(-1))
      [  0.   0. 200.]

    Reference:
      Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent, 2017, https://arxiv.org/abs/1703.02757
    """
    base.check_number("gaussian", std=std)
    lift.choice("gaussian", ("zero", "mean"), around=around)

    def drawn(honest, f, key):
        noise = lift.draw("gaussian", honest, f, key, jax.random.normal)
        noise = jax.tree.map(lambda x: lift.number(std, x) * x, noise)
        if around == "zero":
            return noise
        return jax.tree.map(lambda x, c: x + c[None], noise, lift.mean(honest))

    return lift.rows(drawn, num_byzantine=num_byzantine)


def constant(
    value: jax.typing.ArrayLike, *, num_byzantine: int | None = None
) -> Attack:
    r"""The same value in every coordinate.

    .. math:: b_i = c \mathbf 1

    Args:
      value: c, finite, of either sign; may be traced.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a value that is not finite.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = byzjax.attacks.constant(-7.0).apply(jnp.ones((3, 1)), num_byzantine=1)
      >>> print(rows.ravel())
      [ 1.  1. -7.]

    Reference:
      Li, Xu, Chen, Giannakis, Ling: RSA: Byzantine-Robust Stochastic Aggregation
      Methods for Distributed Learning from Heterogeneous Datasets, 2019,
      https://arxiv.org/abs/1811.03761 ("same-value attack")
    """
    lift.any_number("constant", value=value)
    return _filled(value, num_byzantine)


def random_garbage(*, num_byzantine: int | None = None) -> Attack:
    """Random bits read as numbers: what a faulty memory or a wrong decoder sends.

    Magnitudes from the smallest to the largest of the dtype, and now and then an
    infinity or a NaN (one value in 256 for float32 and bfloat16).

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` that needs a `key`.

    Raises:
      ValueError: a missing key.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> attack = byzjax.attacks.random_garbage()
      >>> rows = attack.apply(
      ...     jnp.ones((3, 4096)), num_byzantine=1, key=jax.random.key(0)
      ... )
      >>> print(jnp.isfinite(rows).all(axis=1))
      [ True  True False]
    """

    def bits(key, shape, dtype):
        width = jnp.dtype(dtype).itemsize * 8
        drawn = jax.random.bits(key, shape, jnp.dtype(f"uint{width}"))
        return jax.lax.bitcast_convert_type(drawn, dtype)

    def drawn(honest, f, key):
        return lift.draw("random_garbage", honest, f, key, bits, exact=True)

    return lift.rows(drawn, num_byzantine=num_byzantine)


class FreeRiderState(NamedTuple):
    """State of `free_rider`."""

    last: Tree  # Honest mean of the step before, leaves [...]; zeros at first.


def free_rider(
    send: Literal["zeros", "stale"] = "zeros", *, num_byzantine: int | None = None
) -> Attack:
    r"""Workers that do no work: they send zeros, or last step's news.

    .. math:: b_i = 0 \qquad\text{or}\qquad b_i^t = \mu^{t-1}

    "zeros" leaves the model as it was (the plain free rider of Lin et al.); "stale"
    returns the honest mean of the step before, which stands for the server's last move
    (their delta weights), so that it looks like work. The first stale message is zero.

    Args:
      send: "zeros" or "stale".
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`, with a `FreeRiderState` if stale.

    Raises:
      ValueError: another word.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> attack = byzjax.attacks.free_rider("stale", num_byzantine=1)
      >>> state = attack.init(jnp.zeros(1))
      >>> for step in range(2):
      ...     rows, state = attack.update(jnp.full((3, 1), 5.0 + step), state)
      >>> print(rows.ravel())
      [6. 6. 5.]

    Reference:
      Lin, Du, Liu: Free-riders in Federated Learning: Attacks and Defenses, 2019,
      https://arxiv.org/abs/1911.12560
    """
    lift.choice("free_rider", ("zeros", "stale"), send=send)
    if send == "zeros":
        return _filled(0, num_byzantine)

    def init(params):
        return FreeRiderState(jax.tree.map(jnp.zeros_like, params))

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        messages = lift.to_rows(state.last, honest, num_byzantine)
        mu = jax.tree.map(lambda c, x: c.astype(x.dtype), lift.mean(honest), state.last)
        return messages, FreeRiderState(mu)

    return Attack(forge, init=init, num_byzantine=num_byzantine)


def infinity(*, num_byzantine: int | None = None) -> Attack:
    """Sends +inf in every coordinate: the crudest test of a rule.

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = byzjax.attacks.infinity().apply(jnp.ones((3, 1)), num_byzantine=1)
      >>> print(rows.ravel())
      [ 1.  1. inf]
    """
    return _filled(jnp.inf, num_byzantine)


def nan(*, num_byzantine: int | None = None) -> Attack:
    """Sends NaN in every coordinate, as a broken worker may without any malice.

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = byzjax.attacks.nan().apply(jnp.ones((3, 1)), num_byzantine=1)
      >>> print(rows.ravel())
      [ 1.  1. nan]
    """
    return _filled(jnp.nan, num_byzantine)


def _filled(value: jax.typing.ArrayLike, num_byzantine: int | None) -> Attack:
    def filled(honest, f, key):
        return jax.tree.map(
            lambda x: jnp.full((f, *x.shape[1:]), value, x.dtype), honest
        )

    return lift.rows(filled, num_byzantine=num_byzantine)
