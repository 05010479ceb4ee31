"""Random bits read as numbers."""

import jax
import jax.numpy as jnp

from byzjax.attack import Attack
from byzjax.attacks import lift


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
