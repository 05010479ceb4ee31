"""Forms of a convolution and its gradients, of which each kind of device takes one.

Images are `[b, h, w, c]`, kernels `[k, n, c, features]`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Spec(NamedTuple):
    """What a convolution is beside its images and kernel."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]  # Of the kernel.
    precision: Any


# --- forms of the convolution ---------------------------------------------------------


@functools.cache
def by_kernel(spec):
    """XLA's own; all images of one kernel at once, on a CPU one kernel after another.

    The kernels of a sweep's runs make a grouped convolution, as slow there as a
    gradient's.
    """

    def plainly(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            spec.strides,
            spec.pads,
            rhs_dilation=spec.dilation,
            dimension_numbers=LAYOUT,
            precision=spec.precision,
        )

    kernel_by_kernel = jax.custom_batching.custom_vmap(plainly)

    @kernel_by_kernel.def_vmap
    def batched(size, which, images, kernel):
        of_images, of_kernel = which
        if not of_kernel:
            n, b = images.shape[:2]
            outputs = kernel_by_kernel(images.reshape(n * b, *images.shape[2:]), kernel)
            return outputs.reshape(n, b, *outputs.shape[1:]), True

        def one_by_one(images, kernels):
            if of_images:
                return lax.map(lambda pair: kernel_by_kernel(*pair), (images, kernels))
            return lax.map(functools.partial(kernel_by_kernel, images), kernels)

        grouped = jax.vmap(plainly, (0 if of_images else None, 0))
        outputs = lax.platform_dependent(
            images, kernel, cpu=one_by_one, default=grouped
        )
        return outputs, True

    return kernel_by_kernel


def is_banded(shape, spec):
    """Whether few channels would leave the vectors of a CPU mostly empty."""
    k, r = shape[0], shape[0] // 2
    even = spec.strides == spec.dilation == (1, 1) and spec.pads == ((r, r), (r, r))
    return even and k == shape[1] and k % 2 == 1 and k > 1 and shape[2] < 8


def banded_product(images, kernel, precision):
    """Several outputs at once, as a product with a banded matrix.

    It has 2 (k - 1) / k times the arithmetic and no window for every output to lay out.
    """
    b, h, w, _ = images.shape
    k, features = kernel.shape[0], kernel.shape[3]
    product = jnp.matmul(_spans(images, k), _banded(kernel), precision=precision)
    return product.reshape(b, h, -1, features)[:, :, :w]


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


def spread(cotangent, kernel, size, spec):
    """The gradient of images read in steps: a product, its parts put where they go."""
    _, h, w, _ = cotangent.shape
    k, n, c, features = kernel.shape
    columns = kernel.transpose(3, 0, 1, 2).reshape(features, k * n * c)
    parts = jnp.matmul(cotangent, columns, precision=spec.precision)
    parts = parts.reshape(*parts.shape[:3], k, n, c)
    padded = [length + sum(pad) for length, pad in zip(size, spec.pads, strict=True)]
    zero = jnp.zeros((), parts.dtype)

    def widths(axis, index, count):
        step, low = spec.strides[axis], index * spec.dilation[axis]
        return low, padded[axis] - low - (count - 1) * step - 1, step - 1

    placed = [
        lax.pad(
            parts[:, :, :, i, j],
            zero,
            ((0, 0, 0), widths(0, i, h), widths(1, j, w), (0, 0, 0)),
        )
        for i in range(k)
        for j in range(n)
    ]
    total = functools.reduce(jnp.add, placed)
    (top, _), (left, _) = spec.pads
    return total[:, top : top + size[0], left : left + size[1]]


# --- forms of a kernel's gradient -----------------------------------------------------


def _shifted(padded, axis, index, count, spec, *, at=None):
    """Rows (axis 0) or columns (1), here `at`, that an entry of the kernel reads."""
    step, low = spec.strides[axis], index * spec.dilation[axis]
    high = low + (count - 1) * step + 1
    return lax.slice_in_dim(padded, low, high, step, axis + 1 if at is None else at)


def by_windows(images, cotangent, size, spec):
    """As windows of h rows over h + k - 1: shifts along the height then are no copies.

    XLA:CPU reads the windows of a convolution along one axis where they lie.
    """
    if spec.strides[0] != 1 or spec.dilation[0] != 1:
        return by_columns(images, cotangent, size, spec)
    b, h, w, features = cotangent.shape
    c, (k, n) = images.shape[3], size
    widths = (0, 0), spec.pads[0], (0, 0), spec.pads[1]
    padded = jnp.pad(images.transpose(3, 1, 0, 2), widths)
    wide = jnp.stack([_shifted(padded, 1, j, w, spec, at=3) for j in range(n)])
    product = lax.conv_general_dilated(
        wide.reshape(n * c, padded.shape[1], b * w),
        cotangent.swapaxes(0, 1).reshape(h, b * w, features),
        (1,),
        "VALID",
        dimension_numbers=("NHC", "HIO", "NHC"),
        precision=spec.precision,
    )
    return product.reshape(n, c, k, features).transpose(2, 0, 1, 3)


def by_columns(images, cotangent, size, spec):
    """As one matrix product with all that every output reads."""
    _, h, w, features = cotangent.shape
    c, (k, n) = images.shape[3], size
    padded = jnp.pad(images, ((0, 0), *spec.pads, (0, 0)))
    tall = [_shifted(padded, 0, i, h, spec) for i in range(k)]
    all_read = [_shifted(rows, 1, j, w, spec) for rows in tall for j in range(n)]
    columns = jnp.concatenate(all_read, -1).reshape(-1, k * n * c)
    rows = cotangent.reshape(-1, features)
    product = jnp.matmul(columns.T, rows, precision=spec.precision)
    return product.reshape(k, n, c, features)


def by_product(images, cotangent, size, spec):
    """As one matrix product, of as few shifted copies as will do."""
    c, features, (k, n) = images.shape[3], cotangent.shape[3], size
    w = cotangent.shape[2]
    along = spec.strides[0] == spec.dilation[0] == 1
    # Shifts along the height are taken of what is smaller, beside the other.
    if not along or (n - 1) * c < features:
        return by_columns(images, cotangent, size, spec)
    (top, bottom), _ = spec.pads
    if math.prod(images.shape[1:3]) == 0 or top >= k or bottom >= k:
        return by_columns(images, cotangent, size, spec)
    padded = jnp.pad(images, ((0, 0), (0, 0), spec.pads[1], (0, 0)))
    wide = jnp.concatenate([_shifted(padded, 1, j, w, spec) for j in range(n)], -1)
    around = k - 1 - top, k - 1 - bottom
    padded = jnp.pad(cotangent, ((0, 0), around, (0, 0), (0, 0)))
    h = images.shape[1]
    tall = jnp.concatenate([padded[:, i : i + h] for i in reversed(range(k))], -1)
    rows, columns = wide.reshape(-1, n * c), tall.reshape(-1, k * features)
    product = jnp.matmul(rows.T, columns, precision=spec.precision)
    return product.reshape(n, c, k, features).transpose(2, 0, 1, 3)
