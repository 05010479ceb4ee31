"""Convolutions whose gradients are quick to take for many workers: a drop-in for Flax.

Under `vmap` over the workers, activations and their gradients are ordinary convolutions
over all workers' images, of the one kernel that all share. Only the gradient of the
kernel differs between workers, and XLA makes a grouped convolution of it, slow on CPUs.
Here it is taken worker by worker there, and as a matrix product each elsewhere.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byzjax.layers import forms


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with gradients that are quick for many workers.

    For the layers of Flax, whose argument of this name it is made for:

        nn.Conv(32, (3, 3), conv_general_dilated=byzjax.layers.conv_general_dilated)

    and `nnx.Conv(1, 32, (3, 3), conv_general_dilated=..., rngs=rngs)`.

    **Guarantee**: the same to rounding, as are all derivatives in reverse mode, of
    every order; forward mode (`jax.jvp`, `jax.jacfwd`) is refused by JAX, as always
    for functions with a derivative of their own. Convolutions of two axes, images
    `[b, h, w, c]` and kernels `[k, n, c, features]` of one floating dtype, with any
    strides, padding and dilation of the kernel are done here; all others, grouped,
    transposed (`lhs_dilation`), of one axis or three, or in another layout, are XLA's
    own, gradients included.

    On a CPU a step of 20 workers of 32 MNIST images each, two convolutions 3×3 and 1.2
    million parameters, took 0.83 s, and at least 2.5 s, up to 18 s, with XLA's own; see
    docs/performance.md.

    Args:
      lhs: images.
      rhs: kernel.
      window_strides: steps of the windows.
      padding: "SAME", "VALID" or a pair for each axis.
      lhs_dilation: see `jax.lax.conv_general_dilated`.
      rhs_dilation: dilation of the kernel, one for each axis.
      dimension_numbers: the layout; Flax's is served.
      feature_group_count: see `jax.lax.conv_general_dilated`.
      batch_group_count: see `jax.lax.conv_general_dilated`.
      precision: of products.
      **options: others of `jax.lax.conv_general_dilated`.

    Returns:
      The convolution, as `jax.lax.conv_general_dilated` gives it.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
      >>> outputs = byzjax.layers.conv_general_dilated(
      ...     images, kernel, (2, 2), "SAME",
      ...     dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> print(outputs.shape, outputs[0, 0, 0])
      (2, 4, 4, 4) [27. 27. 27. 27.]
    """
    options = {name: value for name, value in options.items() if value is not None}
    plain = (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and feature_group_count == batch_group_count == 1
        and lhs.shape[3] == rhs.shape[2]
        and all(d == 1 for d in lhs_dilation or ())
        and not options
        and _of_two_axes(window_strides, padding, rhs_dilation)
        and _is_the_layout(lhs, rhs, dimension_numbers)
    )
    if plain:
        spec = _spec(lhs, rhs, window_strides, padding, rhs_dilation, precision)
        if min(map(min, spec.pads)) >= 0 and min(_out_shape(lhs, rhs, spec)) > 0:
            return _convolve(lhs, rhs, spec)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        **options,
    )


def _of_two_axes(*given):
    """Else XLA's own says what is wrong."""
    return all(
        x is None or isinstance(x, str) or np.shape(x)[:1] == (2,) for x in given
    )


def _is_the_layout(lhs, rhs, dimension_numbers):
    if dimension_numbers is None:
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return given == lax.conv_dimension_numbers(lhs.shape, rhs.shape, forms.LAYOUT)


def _spec(images, kernel, strides, padding, dilation, precision):
    strides = tuple(int(s) for s in strides)
    dilation = (1, 1) if dilation is None else tuple(int(d) for d in dilation)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape, strict=False)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], reach, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return forms.Spec(strides, pads, dilation, precision)


def _out_shape(images, kernel, spec):
    """[h, w] of the outputs."""
    return tuple(
        (size + sum(pad) - d * (k - 1) - 1) // s + 1
        for size, pad, d, k, s in zip(
            images.shape[1:3],
            spec.pads,
            spec.dilation,
            kernel.shape[:2],
            spec.strides,
            strict=True,
        )
    )


# --- three functions, each of which is the others' derivative -------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images, kernel, spec):
    if forms.is_banded(kernel.shape, spec):
        return forms.banded_product(images, kernel, spec.precision)
    return forms.by_kernel(spec)(images, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _of_images(cotangent, kernel, size, spec):
    """The gradient of images of size [h, w]."""
    if spec.strides != (1, 1):
        return forms.spread(cotangent, kernel, size, spec)
    # The convolution with the kernel turned round.
    reach = [d * (k - 1) for d, k in zip(spec.dilation, kernel.shape, strict=False)]
    pads = tuple((r - p[0], r - p[1]) for r, p in zip(reach, spec.pads, strict=True))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return forms.by_kernel(spec._replace(pads=pads))(cotangent, turned)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _of_kernel(images, cotangent, size, spec):
    """The gradient of a kernel of size [k, n]; on a CPU of a worker after another."""
    by_windows = functools.partial(forms.by_windows, size=size, spec=spec)
    return lax.platform_dependent(
        images,
        cotangent,
        cpu=jax.custom_batching.sequential_vmap(by_windows),
        default=functools.partial(forms.by_product, size=size, spec=spec),
    )


def _convolve_backward(spec, saved, cotangent):
    images, kernel = saved
    return (
        _of_images(cotangent, kernel, images.shape[1:3], spec),
        _of_kernel(images, cotangent, kernel.shape[:2], spec),
    )


def _of_images_backward(size, spec, saved, images):
    cotangent, kernel = saved
    return (
        _convolve(images, kernel, spec),
        _of_kernel(images, cotangent, kernel.shape[:2], spec),
    )


def _of_kernel_backward(size, spec, saved, kernel):
    images, cotangent = saved
    return (
        _of_images(cotangent, kernel, images.shape[1:3], spec),
        _convolve(images, kernel, spec),
    )


_convolve.defvjp(lambda *args: (_convolve(*args), args[:2]), _convolve_backward)
_of_images.defvjp(lambda *args: (_of_images(*args), args[:2]), _of_images_backward)
_of_kernel.defvjp(lambda *args: (_of_kernel(*args), args[:2]), _of_kernel_backward)
