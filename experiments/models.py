"""The networks of the experiments in Flax: `make_model`.

They start as PyTorch's modules do, whose defaults the paper's results rest on: weights
and biases uniform within 1/√(inputs of a unit), batch norm with ε = 10⁻⁵ that forgets
a tenth of its running statistics a step.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import byzjax
from experiments import layers


class Model(NamedTuple):
    """A network as pure functions. Batches are {"image": [b, ...], "label": [b]}.

    Images are float32, labels int32, and "key", where there is one, is the data of a
    random key, [2], for dropout. `model_state` holds running statistics, empty for a
    network that has none.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]  # key → params, model_state.
    loss: Callable[..., tuple[jax.Array, Any]]  # params, model_state, batch → loss, new
    logits: Callable[..., jax.Array]  # params, model_state, images → [b, classes].


# name: shape of an image, number of classes.
DATASETS = {
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "digits": ((8, 8, 1), 10),
}


def _within(fan_in: int) -> nn.initializers.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def dense(features: int, inputs: jax.Array) -> jax.Array:
    start = _within(inputs.shape[-1])
    return nn.Dense(features, kernel_init=start, bias_init=start)(inputs)


def convolve(
    images: jax.Array, kernel: jax.Array, strides: int = 1, pad: int | None = None
) -> jax.Array:
    """With so many zeros around, k // 2 by default."""
    r = kernel.shape[0] // 2 if pad is None else pad
    return byzjax.layers.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        ((r, r), (r, r)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Conv(nn.Module):
    """`nn.Conv` without bias, zeros around."""

    features: int
    size: int
    strides: int = 1
    pad: int | None = None

    @nn.compact
    def __call__(self, images):
        channels = images.shape[-1]
        shape = self.size, self.size, channels, self.features
        kernel = self.param("kernel", _within(math.prod(shape[:3])), shape)
        return convolve(images, kernel, self.strides, self.pad)


def norm(train: bool, inputs: jax.Array) -> jax.Array:
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5)(inputs)


class ConvNormPool(nn.Module):
    """Convolution 5×5 with bias, batch norm, ReLU, max-pool 2."""

    features: int

    @nn.compact
    def __call__(self, images, train):
        channels, each = images.shape[-1], ((self.features,), jnp.float32)
        start = _within(25 * channels)
        kernel = self.param("kernel", start, (5, 5, channels, self.features))
        bias = self.param("bias", start, *each)
        scale = self.param("scale", nn.initializers.ones, *each)
        shift = self.param("shift", nn.initializers.zeros, *each)
        mean = self.variable("batch_stats", "mean", jnp.zeros, *each)
        variance = self.variable("batch_stats", "variance", jnp.ones, *each)
        outputs = convolve(images, kernel)
        if not train:
            slope = scale * jax.lax.rsqrt(variance.value + layers.EPSILON)
            shift = (bias - mean.value) * slope + shift
            slope, shift = slope.reshape(1, 1, 1, -1), shift.reshape(1, 1, 1, -1)
            outputs = outputs * slope + shift
            return nn.max_pool(nn.relu(outputs), (2, 2), (2, 2))
        # Batch norm takes away what the bias adds: it moves the running mean only.
        outputs, new_mean, new_variance = layers.norm_relu_pool(outputs, scale, shift)
        if not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * (new_mean + bias)
            variance.value = 0.9 * variance.value + 0.1 * new_variance
        return outputs


class ConvNet(nn.Module):
    """Conv 5×5 (16), norm, ReLU, pool, conv 5×5 (32), norm, ReLU, pool, linear.

    The paper's network: 29 034 parameters on MNIST.
    """

    classes: int

    @nn.compact
    def __call__(self, images, train):
        for features in (16, 32):
            images = ConvNormPool(features)(images, train)
        return dense(self.classes, images.reshape(images.shape[0], -1))


class BasicBlock(nn.Module):
    """Two convolutions 3×3 beside a shortcut."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, images, train):
        inner = Conv(self.features, 3, self.strides)(images)
        inner = Conv(self.features, 3)(nn.relu(norm(train, inner)))
        inner = norm(train, inner)
        if inner.shape != images.shape:
            images = norm(train, Conv(self.features, 1, self.strides)(images))
        return nn.relu(inner + images)


class ResNet18(nn.Module):
    """The form for small images: a stem of 3×3, no first pooling."""

    classes: int

    @nn.compact
    def __call__(self, images, train):
        images = nn.relu(norm(train, Conv(64, 3)(images)))
        for stage, features in enumerate((64, 128, 256, 512)):
            for strides in (2 if stage else 1, 1):
                images = BasicBlock(features, strides)(images, train)
        return dense(self.classes, jnp.mean(images, axis=(1, 2)))


class Mlp(nn.Module):
    """One hidden layer of 64 units, without running statistics."""

    classes: int

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.relu(dense(64, images.reshape(images.shape[0], -1)))
        return dense(self.classes, hidden)


class Linear(nn.Module):
    """Logistic regression: 7 850 parameters on MNIST."""

    classes: int

    @nn.compact
    def __call__(self, images, train):
        return dense(self.classes, images.reshape(images.shape[0], -1))


class PlainConv(nn.Module):
    """`nn.Conv` with bias, without padding."""

    features: int
    size: int

    @nn.compact
    def __call__(self, images):
        start = _within(self.size**2 * images.shape[-1])
        bias = self.param("bias", start, (self.features,))
        outputs = Conv(self.features, self.size, pad=0)(images)
        return outputs + bias.reshape(1, 1, 1, -1)


class DropoutNet(nn.Module):
    """Conv 3×3 (32), conv 3×3 (64), pool, dense 128, with dropout; no padding.

    The network of *Bucketing* (arXiv 2006.09365), once PyTorch's MNIST example:
    1 199 882 parameters on MNIST. No ReLU follows the second convolution. Channels are
    dropped after the pool.

    With `same_masks` all workers drop the same units in all steps, a mask a place in
    the batch, as in the simulator of that paper's authors.
    """

    classes: int
    same_masks: bool = False

    @nn.compact
    def __call__(self, images, train):
        def drop(rate, inputs, axes=()):
            key = jax.random.key(len(axes)) if self.same_masks else None
            return nn.Dropout(rate, axes, deterministic=not train)(inputs, rng=key)

        images = nn.relu(PlainConv(32, 3)(images))
        images = layers.max_pool(PlainConv(64, 3)(images))
        images = drop(0.25, images, (1, 2))
        hidden = nn.relu(dense(128, images.reshape(images.shape[0], -1)))
        return dense(self.classes, drop(0.5, hidden))


class LeNet(nn.Module):
    """Conv 5×5 (20), ReLU, pool, conv 5×5 (50), ReLU, pool, dense; no padding.

    With a hidden layer of 50 behind batch norm the network of the authors' later code,
    with one of 500 and no batch norm ByzFL's.
    """

    classes: int
    hidden: int = 50
    norm: bool = True

    @nn.compact
    def __call__(self, images, train):
        for features in (20, 50):
            images = nn.relu(layers.max_pool(PlainConv(features, 5)(images)))
        hidden = dense(self.hidden, images.reshape(images.shape[0], -1))
        if self.norm:
            hidden = norm(train, hidden)
        return dense(self.classes, nn.relu(hidden))


# `classes` is the data set's.
NETWORKS = {
    "convnet": ConvNet,
    "resnet18": ResNet18,
    "mlp": Mlp,
    "linear": Linear,
    "dropout_net": DropoutNet,
    "lenet": LeNet,
}


def make_model(name: str, dataset: str) -> Model:
    """The network `name` for the images of `dataset`, both from the tables here.

    Raises:
      ValueError: a name that is in no table here.
    """
    if name not in NETWORKS:
        raise ValueError(f"make_model needs one of {list(NETWORKS)}, got name={name!r}")
    if dataset not in DATASETS:
        raise ValueError(
            f"make_model needs one of {list(DATASETS)}, got dataset={dataset!r}"
        )
    shape, classes = DATASETS[dataset]
    return functions(NETWORKS[name](classes), shape)


def functions(network: nn.Module, shape: tuple[int, ...]) -> Model:
    """A Flax module called with (images, train) as a `Model`."""

    def split(variables):
        return variables["params"], variables.get("batch_stats", {})

    def init(key):
        keys = {"params": key, "dropout": key}
        start = jnp.zeros((1, *shape), jnp.float32)
        return split(network.init(keys, start, train=True))

    def apply(params, model_state, images, **options) -> Any:
        variables = {"params": params, "batch_stats": model_state}
        return network.apply(variables, images, **options)

    def loss(params, model_state, batch):
        options = {}
        if "key" in batch:
            options["rngs"] = {"dropout": jax.random.wrap_key_data(batch["key"])}
        logits, changed = apply(
            *(params, model_state, batch["image"]),
            **dict(train=True, mutable=["batch_stats"]),
            **options,
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.mean(losses), changed.get("batch_stats", {})

    def logits(params, model_state, images):
        return apply(params, model_state, images, train=False)

    return Model(init, loss, logits)
