"""Wrong bits in a lane that is stuck: every so many coordinates."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import checks
from byzjax.attack import Attack
from byzjax.numerics import stacked

_WIDEST = 64


def bit_flips(
    bits: int | Sequence[int] = (6, 8),
    *,
    period: int = 128,
    offset: int = 0,
    how: Literal["flip", "one", "zero"] = "flip",
    num_byzantine: int | None = None,
) -> Attack:
    r"""Wrong bits in a lane that is stuck, in otherwise honest messages.

    .. math:: (b_i)_j = (x_i)_j \text{ with some bits wrong, for } j \equiv
      \text{offset} \pmod{\text{period}}

    as a vector unit sends it one of whose lanes computes wrongly, each Byzantine worker
    of its own message. Bits are counted in the float's own form from its front: bit 0
    is the sign, and then come the exponent's, largest first, and the mantissa's. Of a
    float32 the bits 1 to 8 are the exponent's, as of a bfloat16; of a float16 1 to 5,
    of a float64 1 to 11.

    Coordinates are counted through all leaves in tree order, so that the same ones are
    wrong on one device and on many, in a tree and its ravelled matrix.

    Args:
      bits: which bits are wrong, one or several. The default makes of a float32 or a
        bfloat16 one 32, 8, 1/8 or 1/32 times as large.
      period: from one wrong coordinate to the next, at least 1 (then all are).
      offset: the first wrong coordinate, less than `period`.
      how: "flip" them, or as if stuck at "one" or "zero".
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a number out of range, no bits, another word; at trace time a bit
        that a leaf's floats do not have, or no messages of the Byzantine workers' own.
      TypeError: numbers that are no static ints.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> attack = byzjax.attacks.bit_flips(0, period=2, offset=1)
      >>> print(attack.apply(jnp.ones((3, 5)), num_byzantine=1)[-1])
      [ 1. -1.  1. -1.  1.]
      >>> attack = byzjax.attacks.bit_flips((7, 8), period=5)
      >>> print(attack.apply(jnp.ones((3, 5)), num_byzantine=1)[-1])
      [0.125 1.    1.    1.    1.   ]

    Reference:
      Dixit et al.: Silent Data Corruptions at Scale, 2021,
      https://arxiv.org/abs/2102.11245, for cores that compute some values wrongly.
    """
    name = "bit_flips"
    given = list(bits) if isinstance(bits, Sequence) else [bits]
    which = [checks.count(name, bits=bit) for bit in given]
    if not which or max(which) >= _WIDEST:
        raise ValueError(f"{name} needs bits from 0 to {_WIDEST - 1}, got {bits=}")
    period = checks.count(name, period=period, minimum=1)
    offset = checks.count(name, offset=offset)
    if not offset < period <= 2**32 - 1:
        raise ValueError(
            f"{name} needs offset < period < 2**32, got {offset=} and {period=}"
        )
    checks.word(name, ("flip", "one", "zero"), how=how)

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        if own is None:
            raise ValueError(
                f"{name} needs the Byzantine workers' own messages, got own=None"
            )
        one = jax.tree.map(lambda x: x[0], own)

        def of_leaf(x, numbers):
            stuck = numbers % np.uint32(period) == np.uint32(offset)
            return jnp.where(stuck[None], _wrong(x, which, how), x)

        return jax.tree.map(of_leaf, own, stacked.coordinates(one)), state

    return Attack(forge, needs_own=True, num_byzantine=num_byzantine)


def _wrong(x, bits, how):
    """The same floats with some bits wrong."""
    width = x.dtype.itemsize * 8
    if max(bits) >= width:
        raise ValueError(
            f"bit_flips needs bits < {width} for {x.dtype}, got {max(bits)}"
        )
    word = np.dtype(f"uint{width}")
    mask = np.array(sum(1 << (width - 1 - bit) for bit in set(bits)), word)
    words = jax.lax.bitcast_convert_type(x, word)
    if how == "flip":
        words = words ^ mask
    elif how == "one":
        words = words | mask
    else:
        words = words & ~mask
    return jax.lax.bitcast_convert_type(words, x.dtype)
