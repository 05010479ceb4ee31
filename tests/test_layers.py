"""`conv_general_dilated` is XLA's, as are its derivatives, for one worker and many."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from byzjax import layers
from byzjax.layers import convolution as module
from byzjax.layers import forms

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Kernel, strides, padding, dilation.
CASES = {
    "one by one": ((1, 1, 8, 4), (1, 1), "SAME", (1, 1)),
    "few channels": ((3, 3, 1, 4), (1, 1), "SAME", (1, 1)),
    "three channels": ((5, 5, 3, 4), (1, 1), "SAME", (1, 1)),
    "many channels": ((3, 3, 16, 4), (1, 1), "SAME", (1, 1)),
    "more channels than features": ((3, 3, 8, 16), (1, 1), "SAME", (1, 1)),
    "even": ((4, 2, 9, 3), (1, 1), "SAME", (1, 1)),
    "valid": ((3, 3, 9, 3), (1, 1), "VALID", (1, 1)),
    "far around": ((2, 3, 4, 4), (1, 1), ((5, 4), (3, 3)), (1, 1)),
    "in steps": ((3, 3, 4, 8), (2, 2), "SAME", (1, 1)),
    "in unequal steps": ((3, 2, 4, 8), (1, 3), ((0, 2), (1, 0)), (1, 1)),
    "dilated": ((3, 3, 4, 8), (1, 1), "SAME", (2, 2)),
    "all": ((3, 2, 4, 8), (3, 2), ((5, 4), (3, 3)), (1, 2)),
    "wide steps": ((1, 1, 4, 8), (2, 2), "VALID", (1, 1)),
}


def convolution(name, of=layers.conv_general_dilated):
    _, strides, padding, dilation = CASES[name]
    return functools.partial(
        of,
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=LAYOUT,
    )


def given(name, lead=(2,), seed=0):
    draw, shape = np.random.default_rng(seed), CASES[name][0]
    images = draw.normal(size=(*lead, 7, 8, shape[2]))
    return np.float32(images), np.float32(draw.normal(size=shape))


def close(got, want):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.shape(x) == np.shape(y)
        assert np.max(np.abs(x - y)) <= 1e-4 * max(1, np.max(np.abs(y)))


def both(function, images, kernel):
    outputs, pullback = jax.vjp(function, images, kernel)
    return outputs, *pullback(jnp.cos(outputs))


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name):
    ours, xlas = convolution(name), convolution(name, lax.conv_general_dilated)
    want = jax.jit(lambda *a: both(xlas, *a))(*given(name))
    close(jax.jit(lambda *a: both(ours, *a))(*given(name)), want)


@pytest.mark.parametrize("name", CASES)
def test_forms_of_a_kernels_gradient(name):
    """What each kind of device computes, whichever is there."""
    shape, strides, padding, dilation = CASES[name]
    images, kernel = given(name)
    xlas = convolution(name, lax.conv_general_dilated)
    spec = module._spec(images, kernel, strides, padding, dilation, None)

    def gradients(images, kernel):
        outputs, pullback = jax.vjp(functools.partial(xlas, images), kernel)
        cotangent = jnp.cos(outputs)
        found = [
            form(images, cotangent, shape[:2], spec)
            for form in (forms.by_windows, forms.by_columns, forms.by_product)
        ]
        return found, pullback(cotangent)[0]

    found, want = jax.jit(gradients)(images, kernel)
    for each in found:
        close(each, want)


@pytest.mark.parametrize("name", ["few channels", "valid", "in steps", "dilated"])
def test_many_workers(name):
    """Of one kernel; and of kernels of a sweep's runs, on shared and own images."""
    images, _ = given(name, (3, 2, 2))
    kernels = np.stack([given(name, seed=s)[1] for s in range(3)])

    def all_of(function):
        of_worker = jax.vmap(functools.partial(both, function), (0, None))
        return jax.jit(
            lambda images, kernels: (
                of_worker(images[0], kernels[0]),
                jax.vmap(of_worker)(images, kernels),
                jax.vmap(of_worker, (None, 0))(images[0], kernels),
            )
        )(images, kernels)

    xlas = convolution(name, lax.conv_general_dilated)
    close(all_of(convolution(name)), all_of(xlas))


@pytest.mark.parametrize("name", ["few channels", "many channels", "in steps"])
def test_second_derivatives(name):
    def of(function):
        def length(images, kernel):
            gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), (0, 1))
            return sum(jnp.sum(g * g) for g in gradient(images, kernel))

        return jax.jit(jax.grad(length, (0, 1)))(*given(name))

    close(of(convolution(name)), of(convolution(name, lax.conv_general_dilated)))


@pytest.mark.parametrize("name", ["few channels", "many channels", "in steps", "all"])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_workers_make_no_grouped_convolutions(platform, name):
    images, kernel = given(name, (3, 2))
    one = functools.partial(both, convolution(name))
    traced = jax.jit(jax.vmap(one, (0, None))).trace(images, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert set(re.findall(r"group_count = (\d+)", text)) <= {"1"}


OTHERS = {
    "grouped": dict(feature_group_count=2),
    "transposed": dict(lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
    "another layout": dict(dimension_numbers=("NCHW", "OIHW", "NCHW")),
    "no layout": dict(dimension_numbers=None),
    "cropped": dict(padding=((-1, 0), (0, 0))),
    "a type": dict(preferred_element_type=jnp.float32),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_served_is_xlas(name):
    arguments = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUT)
    arguments |= OTHERS[name]
    shape = (3, 3, 2, 4) if name == "grouped" else (4, 4, 4, 4)
    images, kernel = jnp.ones((2, 4, 4, 4)), jnp.ones(shape)
    ours = jax.make_jaxpr(functools.partial(layers.conv_general_dilated, **arguments))
    xlas = jax.make_jaxpr(functools.partial(lax.conv_general_dilated, **arguments))
    assert str(ours(images, kernel)) == str(xlas(images, kernel))


@pytest.mark.parametrize(
    "given",
    [{"window_strides": (1,)}, {"padding": [(1, 1)]}, {"rhs_dilation": (2,)}],
    ids=str,
)
def test_of_other_axes_xla_says_what_is_wrong(given):
    given = {"window_strides": (1, 1), "padding": "SAME"} | given
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    words = []
    for convolve in (lax.conv_general_dilated, layers.conv_general_dilated):
        with pytest.raises((TypeError, ValueError)) as error:
            convolve(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **given)
        words.append(str(error.value)[:150])  # Then come the places of the call.
    assert words[0] == words[1]


def test_one_axis_is_xlas():
    arguments = ((2,), "SAME", None, None, ("NHC", "HIO", "NHC"))
    out = layers.conv_general_dilated(
        jnp.ones((1, 4, 2)), jnp.ones((3, 2, 2)), *arguments
    )
    assert out.shape == (1, 2, 2)


@pytest.mark.parametrize(
    "strides, padding", [(1, "SAME"), (2, "VALID"), (1, "CIRCULAR")]
)
def test_is_a_drop_in_for_flax(strides, padding):
    images = jnp.asarray(given("three channels")[0])
    options = dict(strides=(strides, strides), padding=padding)
    fast = dict(conv_general_dilated=layers.conv_general_dilated)
    with jax.numpy_rank_promotion("allow"):  # Flax's layers promote ranks.
        plain = nn.Conv(4, (3, 3), **options)
        params = plain.init(jax.random.key(0), images)
        drop_in = nn.Conv(4, (3, 3), **options, **fast)

        def loss(model):
            return lambda p, x: jnp.sum(jnp.sin(model.apply(p, x)))

        close(
            jax.jit(jax.grad(loss(drop_in), (0, 1)))(params, images),
            jax.jit(jax.grad(loss(plain), (0, 1)))(params, images),
        )
        ours, theirs = (
            nnx.Conv(3, 4, (3, 3), **options, **each, rngs=nnx.Rngs(0))(images)
            for each in (fast, {})
        )
    close(ours, theirs)
