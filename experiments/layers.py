"""Layers for one gradient a worker, of parameters that all workers share.

Under `vmap` over the workers, activations and their gradients then are ordinary
convolutions over all workers' images. Only the gradient of a kernel differs between
workers, and becomes a grouped convolution, slow on CPUs: `convolve` takes it worker by
worker there, and a sweep's kernels run by run; elsewhere it is a matrix product each.
`norm_relu_pool` passes over its large input as few times as can be. Both are what
`flax.linen` computes, to rounding.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # Of batch norm, as in PyTorch.


def convolution(images: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """XLA's own, with k // 2 zeros around: `[b, h, w, c]`, `[k, k, c, features]`."""
    r = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        ((r, r), (r, r)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _few_channels(kernel):
    """Whether a convolution would leave the vectors of a CPU mostly empty."""
    return kernel.shape[0] > 1 and kernel.shape[2] < 8


def _spans(images, k):
    """What k - 1 neighbouring outputs read, `[b * h * tiles, k * 2 (k - 1) * c]`."""
    b, h, w, c = images.shape
    r, tile = k // 2, k - 1
    tiles = -(-w // tile)
    right = (tiles + 1) * tile - w - r
    padded = jnp.pad(images, ((0, 0), (r, r), (r, right), (0, 0)))
    split = padded.reshape(b, h + 2 * r, tiles + 1, tile * c)
    pairs = jnp.concatenate([split[:, :, :-1], split[:, :, 1:]], -1)
    spans = jnp.concatenate([pairs[:, i : i + h] for i in range(k)], -1)
    return spans.reshape(b * h * tiles, -1)


def _banded(kernel):
    """The kernel at each of k - 1 places, `[k * 2 (k - 1) * c, (k - 1) * features]`."""
    k, _, c, features = kernel.shape
    around = [((0, 0), (t, k - 2 - t), (0, 0), (0, 0)) for t in range(k - 1)]
    placed = jnp.stack([jnp.pad(kernel, widths) for widths in around], 3)
    return placed.reshape(k * 2 * (k - 1) * c, (k - 1) * features)


def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolution` in steps of one, k odd, with derivatives for many workers."""
    if _few_channels(kernel):
        return _convolve_few(images, kernel)
    return _convolve_many(images, kernel)


@jax.custom_batching.custom_vmap
def _by_kernel(images, kernel):
    return convolution(images, kernel)


@_by_kernel.def_vmap
def _by_kernel_batched(size, batched, images, kernel):
    """All images of one kernel at once; on a CPU one kernel after another.

    Those of a sweep's runs make a grouped convolution, as slow there as a gradient's.
    """
    of_images, of_kernel = batched
    if not of_kernel:
        n, b = images.shape[:2]
        outputs = _by_kernel(images.reshape(n * b, *images.shape[2:]), kernel)
        return outputs.reshape(n, b, *outputs.shape[1:]), True

    def one_by_one(images, kernels):
        if of_images:
            return lax.map(lambda pair: _by_kernel(*pair), (images, kernels))
        return lax.map(functools.partial(_by_kernel, images), kernels)

    grouped = jax.vmap(convolution, (0 if of_images else None, 0))
    outputs = lax.platform_dependent(images, kernel, cpu=one_by_one, default=grouped)
    return outputs, True


def _of_images(cotangent, kernel):
    """The convolution with the kernel turned round."""
    return _convolve_many(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _of_kernel(images, cotangent, k):
    """The gradient of a kernel of size k; on a CPU of one worker after another."""
    by_windows = functools.partial(_by_windows, k=k)
    return lax.platform_dependent(
        images,
        cotangent,
        cpu=jax.custom_batching.sequential_vmap(by_windows),
        default=functools.partial(_by_product, k=k),
    )


def _of_kernel_backward(k, saved, kernel):
    images, cotangent = saved
    return _of_images(cotangent, kernel), convolve(images, kernel)


_of_kernel.defvjp(lambda *args: (_of_kernel(*args), args[:2]), _of_kernel_backward)


def _by_windows(images, cotangent, k):
    """As windows of h rows over h + k - 1: shifts along the height then are no copies.

    XLA:CPU reads the windows of a convolution along one axis where they lie.
    """
    b, h, w, c = images.shape
    features, r = cotangent.shape[3], k // 2
    around = (r, r)
    padded = jnp.pad(images.transpose(3, 1, 0, 2), ((0, 0), around, (0, 0), around))
    wide = jnp.stack([padded[..., j : j + w] for j in range(k)])
    product = lax.conv_general_dilated(
        wide.reshape(k * c, h + 2 * r, b * w),
        cotangent.swapaxes(0, 1).reshape(h, b * w, features),
        (1,),
        "VALID",
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    return product.reshape(k, c, k, features).transpose(2, 0, 1, 3)


def _by_product(images, cotangent, k):
    """As one matrix product, of as few shifted copies as will do."""
    _, h, w, c = images.shape
    features, around = cotangent.shape[3], (k // 2, k // 2)
    padded = jnp.pad(images, ((0, 0), (0, 0), around, (0, 0)))
    wide = jnp.concatenate([padded[:, :, j : j + w] for j in range(k)], -1)
    # Shifts along the height are taken of what is smaller, beside the other.
    if (k - 1) * c < features:
        padded = jnp.pad(wide, ((0, 0), around, (0, 0), (0, 0)))
        wide = jnp.concatenate([padded[:, i : i + h] for i in range(k)], -1)
        rows, columns = wide.reshape(-1, k * k * c), cotangent.reshape(-1, features)
        return jnp.matmul(rows.T, columns).reshape(k, k, c, features)
    padded = jnp.pad(cotangent, ((0, 0), around, (0, 0), (0, 0)))
    tall = jnp.concatenate([padded[:, i : i + h] for i in reversed(range(k))], -1)
    rows, columns = wide.reshape(-1, k * c), tall.reshape(-1, k * features)
    product = jnp.matmul(rows.T, columns).reshape(k, c, k, features)
    return product.transpose(2, 0, 1, 3)


@jax.custom_vjp
def _convolve_few(images, kernel):
    """Of few channels: several outputs at once, as a product with a banded matrix.

    It has 2 (k - 1) / k times the arithmetic and no window for every output to lay out.
    """
    b, h, w, _ = images.shape
    k, features = kernel.shape[0], kernel.shape[3]
    outputs = jnp.matmul(_spans(images, k), _banded(kernel))
    return outputs.reshape(b, h, -1, features)[:, :, :w]


@jax.custom_vjp
def _convolve_many(images, kernel):
    return _by_kernel(images, kernel)


def _backward(saved, cotangent):
    images, kernel = saved
    return _of_images(cotangent, kernel), _of_kernel(images, cotangent, len(kernel))


_convolve_few.defvjp(lambda *both: (_convolve_few(*both), both), _backward)
_convolve_many.defvjp(lambda *both: (_convolve_many(*both), both), _backward)


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
