"""Workers that do no work."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import lift
from byzjax.trees import Tree


class FreeRiderState(NamedTuple):
    """State of `free_rider`.

    Attributes:
      last: the honest mean of the step before, leaves `[...]`; zeros at first.
    """

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
    checks.word("free_rider", ("zeros", "stale"), send=send)
    if send == "zeros":
        return lift.filled(0, num_byzantine)

    def init(params):
        return FreeRiderState(jax.tree.map(jnp.zeros_like, params))

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        messages = lift.to_rows(state.last, honest, num_byzantine)
        mu = jax.tree.map(lambda c, x: c.astype(x.dtype), lift.mean(honest), state.last)
        return messages, FreeRiderState(mu)

    return Attack(forge, init=init, num_byzantine=num_byzantine)
