"""A random key in a rule's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byzjax import base, checks
from byzjax.base import Aggregator


class WithKeyState(NamedTuple):
    """State of `with_key`.

    Attributes:
      key: a random key, that of the next step.
      inner_state: the state of the rule.
    """

    key: jax.Array  # The key of the next step.
    inner_state: Any


def with_key(rule: Aggregator, key: jax.Array) -> Aggregator:
    """Keeps a random key in a rule's state, for loops that cannot pass one.

    Each update splits the key in the state, uses one half and keeps the other, so a
    run is reproduced by the key alone.

    Args:
      rule: any aggregator, usually one with `bucketing` in it.
      key: the first key, from `jax.random.key`.

    Returns:
      An aggregator that needs no `key` argument. `aggregate` uses the first key.

    Raises:
      TypeError: if `rule` is no aggregator or `key` no random key.
      ValueError: if `key` is None.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, optax
      >>> rule = byzjax.bucketing(byzjax.median(), bucket_size=2)
      >>> rule = byzjax.with_key(rule, jax.random.key(0))
      >>> optimizer = optax.chain(rule, optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(3))
      >>> update, state = optimizer.update(jnp.ones((5, 3)), state)
      >>> print(update)
      [-0.1 -0.1 -0.1]
    """
    base.check_aggregator("with_key", rule)
    checks.key("with_key", key)

    def init(params):
        # A copy, so that a donated state does not take the caller's key with it.
        return WithKeyState(jnp.copy(key), rule.init(params))

    def update(updates, state, params=None, **extra):
        extra.pop("key", None)
        key, subkey = jax.random.split(state.key)
        out, inner = rule.inside(
            updates, state.inner_state, params, key=subkey, **extra
        )
        return out, WithKeyState(key, inner)

    return base.around(rule, init, update)
