"""Batch norm, ReLU and max-pool in one pass or two, as `flax.linen` computes them.

Under `vmap` over the workers they pass over their large input as few times as can be.
Convolutions are `byzjax.layers.conv_general_dilated`.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # Of batch norm, as in PyTorch.


@jax.custom_vjp
def norm_relu_pool(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch norm in training, ReLU, maxima of windows 2×2.

    Args:
      inputs: `[b, h, w, c]`, h and w even.
      scale: `[c]`.
      bias: `[c]`.

    Returns:
      The outputs `[b, h / 2, w / 2, c]`; mean and variance `[c]` of the inputs.
    """
    return _pool_forward(inputs, scale, bias)[0]


def _channels(x):
    return x.reshape(1, 1, 1, -1)


def _windows(x):
    """The four entries of each window, in reading order."""
    b, h, w, c = x.shape
    split = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return [split[:, :, i, :, j] for i in range(2) for j in range(2)]


def _larger(a, b):
    # jnp.maximum takes a CPU several instructions to let NaN through, as the mean does.
    return jnp.where(a < b, b, a)


def _pool_forward(inputs, scale, bias):
    count = math.prod(inputs.shape[:3])
    mean = jnp.sum(inputs, (0, 1, 2)) / count
    variance = jnp.sum(inputs * inputs, (0, 1, 2)) / count - mean * mean
    variance = jnp.maximum(variance, 0)
    slope = scale * lax.rsqrt(variance + EPSILON)
    # The largest output of a window comes from its largest input, or its smallest.
    sign = _channels(jnp.where(slope < 0, -1, 1).astype(inputs.dtype))
    first, second, third, fourth = (sign * x for x in _windows(inputs))
    largest = _larger(_larger(first, second), _larger(third, fourth))
    at = jnp.where(third == largest, 2, 3)
    at = jnp.where(second == largest, 1, at)
    at = jnp.where(first == largest, 0, at).astype(jnp.uint8)
    chosen = sign * largest
    outputs = (chosen - _channels(mean)) * _channels(slope) + _channels(bias)
    outputs = jnp.where(outputs < 0, 0, outputs)
    return (outputs, mean, variance), (
        inputs,
        scale,
        mean,
        variance,
        chosen,
        at,
        outputs,
    )


def _pool_backward(saved, cotangents):
    inputs, scale, mean, variance, chosen, at, outputs = saved
    of_outputs, of_mean, of_variance = cotangents
    count = math.prod(inputs.shape[:3])
    inverse = lax.rsqrt(variance + EPSILON)
    passed = jnp.where(outputs > 0, of_outputs, 0)
    of_bias = jnp.sum(passed, (0, 1, 2))
    of_scale = jnp.sum(passed * (chosen - _channels(mean)), (0, 1, 2)) * inverse
    # What flows back through mean and variance, a + b (x - mean) for each channel.
    slope = scale * inverse
    a = (of_mean - slope * of_bias) / count
    b = (2 * of_variance - slope * inverse * of_scale) / count
    place = jnp.arange(4, dtype=at.dtype).reshape(1, 1, 2, 1, 2, 1)
    wins = at[:, :, None, :, None] == place
    spread = jnp.where(wins, (passed * _channels(slope))[:, :, None, :, None], 0)
    of_inputs = spread.reshape(inputs.shape) + (
        _channels(a) + _channels(b) * (inputs - _channels(mean))
    )
    return of_inputs, of_scale, of_bias


norm_relu_pool.defvjp(_pool_forward, _pool_backward)


def max_pool(inputs: jax.Array) -> jax.Array:
    """Maxima of windows 2×2 of `[b, h, w, c]`, h and w even.

    Its gradient is quicker on a CPU than that of `flax.linen.max_pool`, and is shared
    by equal maxima instead of given to the first.
    """
    b, h, w, c = inputs.shape
    return jnp.max(inputs.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
