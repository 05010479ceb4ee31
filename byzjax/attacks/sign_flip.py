"""Sign flips: the negative of a message, or of enough to cancel the honest ones."""

from typing import Literal

import jax
import jax.typing

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.attacks.ipm import ipm


def sign_flip(
    *, of: Literal["own", "mean"] = "own", num_byzantine: int | None = None
) -> Attack:
    r"""Sign flip: the negative of an honest message.

    .. math:: b_i = -x_i \quad (\text{own}) \qquad\text{or}\qquad
      b_i = -\frac{1}{h} \sum_{j \text{ honest}} x_j \quad (\text{mean})

    with "own" each Byzantine worker follows the protocol and sends the negative of its
    message (the CTMA paper and its authors' code, Karimireddy et al.); with "mean" all
    send the negative of the honest mean (ByzFL). Equal to `ipm(1.0)` with "mean".

    Args:
      of: whose message is flipped. "own" reads the messages that the Byzantine workers
        would have sent; "mean" costs no Byzantine gradients.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: another word; `of="own"` where own messages are not known.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> print(byzjax.attacks.sign_flip().apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -5.]
      >>> flip = byzjax.attacks.sign_flip(of="mean")
      >>> print(flip.apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -2.]

    Reference:
      Li, Xu, Chen, Giannakis, Ling: RSA: Byzantine-Robust Stochastic Aggregation
      Methods for Distributed Learning from Heterogeneous Datasets, 2019,
      https://arxiv.org/abs/1811.03761; Dahan, Levy: Fault Tolerant ML, 2024,
      https://arxiv.org/abs/2405.14759
    """
    checks.word("sign_flip", ("own", "mean"), of=of)
    if of == "mean":
        return ipm(1.0, num_byzantine=num_byzantine)

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        if own is None:
            raise ValueError(
                "sign_flip with of='own' needs the Byzantine workers' own messages, "
                "got own=None: use of='mean' where they are not computed"
            )
        return jax.tree.map(lambda x: -x, own), state

    return Attack(forge, needs_own=True, num_byzantine=num_byzantine)


def scaled_sign_flip(
    scale: jax.typing.ArrayLike = 1.0, *, num_byzantine: int | None = None
) -> Attack:
    r"""Scaled sign flip: the Byzantine messages cancel the honest ones.

    .. math:: b_i = -c\, \frac{h}{f} \cdot \frac{1}{h} \sum_{j \text{ honest}} x_j

    With c = 1 the plain mean of all messages is zero and an averaging server stands
    still; with c > 1 it moves backwards. Equal to `ipm(c * h / f)`.

    Args:
      scale: c >= 0; may be traced.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a negative or non-finite c.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [5.0]])
      >>> attack = byzjax.attacks.scaled_sign_flip()
      >>> print(attack.apply(rows, num_byzantine=1).ravel())
      [ 1.  3. -4.]

    Reference:
      Xie, Koyejo, Gupta: Fall of Empires, 2020, https://arxiv.org/abs/1903.03936, with
      the strength that stops a mean.
    """
    checks.number("scaled_sign_flip", scale=scale)

    def message(honest, f):
        ratio = checks.num_workers(honest) / f

        def of_leaf(mu):
            return -(lift.number(scale, mu) * ratio * mu)

        return jax.tree.map(of_leaf, lift.mean(honest))

    return lift.one_message(message, num_byzantine=num_byzantine)
