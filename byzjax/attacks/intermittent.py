"""An attack now and then: what a broken worker sends, and an honest message else."""

import jax
import jax.core
import jax.numpy as jnp
import jax.typing

from byzjax import checks
from byzjax.attack import Attack
from byzjax.attacks import search


def intermittent(
    attack: Attack,
    probability: jax.typing.ArrayLike,
    *,
    num_byzantine: int | None = None,
) -> Attack:
    r"""Now and then an attack, and in the other steps an honest message.

    .. math:: b_i = \begin{cases} \text{what the attack sends} & \text{with probability
      } p \\ x_i & \text{else} \end{cases}

    drawn in every step by each Byzantine worker for itself, as hardware fails that
    computes wrongly when it is hot. Each step of the attack counts for its state,
    whether or not its messages are sent.

    Args:
      attack: what is sent now and then, such as `bit_flips()`.
      probability: p in [0, 1]; may be traced.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack` with the state of `attack`, that needs a `key` and the Byzantine
      workers' own messages.

    Raises:
      TypeError: `attack` is none.
      ValueError: a p outside [0, 1], a missing key, or no messages of their own.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> now_and_then = byzjax.attacks.intermittent(byzjax.attacks.nan(), 0.25)
      >>> rows = now_and_then.apply(
      ...     jnp.ones((9, 1)), num_byzantine=8, key=jax.random.key(0)
      ... )
      >>> print(rows.ravel())
      [ 1.  1. nan nan  1.  1.  1. nan nan]

    Reference:
      Dixit et al.: Silent Data Corruptions at Scale, 2021,
      https://arxiv.org/abs/2102.11245, for hardware that does so.
    """
    name = "intermittent"
    search.check_attack(name, attack, "attack")
    chance = checks.number(name, probability=probability)
    if not isinstance(chance, jax.core.Tracer) and chance > 1:
        raise ValueError(f"{name} needs probability <= 1, got {probability=}")

    def draw(key, worker):
        return jax.random.uniform(jax.random.fold_in(key, worker), (), jnp.float32)

    def forge(honest, own, state, *, num_byzantine, key=None, **extra):
        if own is None:
            raise ValueError(
                f"{name} needs the Byzantine workers' own messages, which they send "
                "in the other steps, got own=None"
            )
        now, inner = jax.random.split(checks.key(name, key))
        sent, state = attack.forge(
            honest, own, state, num_byzantine=num_byzantine, key=inner, **extra
        )
        # A draw a worker, which does not depend on how many there are.
        bad = jax.vmap(draw, (None, 0))(now, jnp.arange(num_byzantine))
        bad = bad < jnp.asarray(chance, jnp.float32)

        def of_leaf(b, x):
            return jnp.where(bad.reshape((-1,) + (1,) * (x.ndim - 1)), b, x)

        return jax.tree.map(of_leaf, sent, own), state

    return Attack(
        forge,
        init=attack.init,
        needs_own=True,
        num_byzantine=search.one_number(name, num_byzantine, attack),
        takes=attack.takes,
    )
