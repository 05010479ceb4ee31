"""Convolution and pooling, fast where every worker has a gradient of its own.

Workers share the parameters, so under `vmap` activations and their gradients are
ordinary convolutions over all workers' images. Only the gradient of the kernel differs
between workers, and becomes a grouped convolution, slow on CPUs: here it is written as
matrix products over shifted images instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def _convolution(strides):
    """Same padding, with odd kernels, as a custom derivative."""

    def plain(images, kernel):
        kh, kw = kernel.shape[:2]
        return lax.conv_general_dilated(
            images,
            kernel,
            (strides, strides),
            ((kh // 2, kh // 2), (kw // 2, kw // 2)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def forward(images, kernel):
        return plain(images, kernel), (images, kernel)

    def backward(saved, cotangent):
        images, kernel = saved
        kh, kw, channels, features = kernel.shape
        b, h, w, _ = cotangent.shape
        (of_images,) = jax.linear_transpose(lambda x: plain(x, kernel), images)(
            cotangent
        )
        around = ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0))
        padded = jnp.pad(images, around)
        # Shifts along the width side by side; those along the height are slices of it.
        shifts = [padded[:, :, j : j + strides * w : strides] for j in range(kw)]
        wide = jnp.concatenate([x[:, :, :w] for x in shifts], axis=-1)
        flat = cotangent.reshape(b * h * w, features)
        rows = [
            wide[:, i : i + strides * h : strides][:, :h].reshape(-1, kw * channels).T
            @ flat
            for i in range(kh)
        ]
        return of_images, jnp.stack(rows).reshape(kernel.shape)

    function = jax.custom_vjp(plain)
    function.defvjp(forward, backward)
    return function


class Conv(nn.Module):
    """`nn.Conv` with a square, odd kernel and the padding that keeps the size."""

    features: int
    size: int
    strides: int = 1
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, images):
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = _convolution(self.strides)(images, kernel)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            outputs += bias.reshape(1, 1, 1, -1)
        return outputs


def max_pool(images: jax.Array) -> jax.Array:
    """Windows of 2×2, by elementwise maxima, whose gradient is elementwise as well."""
    b, h, w, c = images.shape
    pairs = images.reshape(b, h // 2, 2, w // 2, 2, c)
    across = jnp.maximum(pairs[:, :, :, :, 0], pairs[:, :, :, :, 1])
    return jnp.maximum(across[:, :, 0], across[:, :, 1])
