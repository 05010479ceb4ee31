"""The MNIST network of the paper's experiments, fast for one gradient a worker.

Under `vmap` the weight gradient of a convolution becomes a grouped convolution, slow
on CPUs. `Conv` is `flax.linen.Conv` (odd kernels, stride one, same padding) with
that gradient written as matrix products over shifted images; what is shared by all
workers stays one convolution over all their images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[b, h, w, c]`, `[kh, kw, c, features]` → `[b, h, w, features]`."""
    return lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT
    )


def _forward(images, kernel):
    return convolve(images, kernel), (images, kernel)


def _backward(saved, cotangent):
    images, kernel = saved
    # Of images: the same convolution with the kernel turned round.
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    kh, kw, channels, features = kernel.shape
    b, h, w, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    # Shifts along the width side by side; those along the height are slices of it.
    wide = jnp.concatenate([padded[:, :, j : j + w] for j in range(kw)], axis=-1)
    flat = cotangent.reshape(b * h * w, features)
    rows = [
        wide[:, i : i + h].reshape(b * h * w, kw * channels).T @ flat for i in range(kh)
    ]
    of_kernel = jnp.stack(rows).reshape(kernel.shape)
    return convolve(cotangent, turned), of_kernel


convolve.defvjp(_forward, _backward)


class Conv(nn.Module):
    """A drop-in for `nn.Conv` with odd kernels, stride one and same padding."""

    features: int
    kernel_size: tuple[int, int]

    @nn.compact
    def __call__(self, images):
        shape = (*self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve(images, kernel) + bias.reshape(1, 1, 1, -1)


def max_pool(images: jax.Array) -> jax.Array:
    """Windows of 2×2, by elementwise maxima, whose gradient is elementwise as well."""
    b, h, w, c = images.shape
    pairs = images.reshape(b, h // 2, 2, w // 2, 2, c)
    across = jnp.maximum(pairs[:, :, :, :, 0], pairs[:, :, :, :, 1])
    return jnp.maximum(across[:, :, 0], across[:, :, 1])


class MnistNet(nn.Module):
    """Conv 5×5 (16), norm, ReLU, pool, conv 5×5 (32), norm, ReLU, pool, linear 10."""

    conv: Any = Conv

    @nn.compact
    def __call__(self, images, train: bool = True):
        for features in (16, 32):
            images = self.conv(features, (5, 5))(images)
            images = nn.BatchNorm(not train, momentum=0.9)(images)
            images = max_pool(nn.relu(images))
        return nn.Dense(10)(images.reshape(images.shape[0], -1))


def loss_for(model: nn.Module):
    """`loss(params, statistics, (images, labels))` → loss, new statistics."""

    def loss(params, statistics, batch):
        images, labels = batch
        logits, new = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), new["batch_stats"]

    return loss
