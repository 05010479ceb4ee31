"""Models of the experiments: what is fast equals what Flax computes plainly."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import layers, models


class PlainConvNet(nn.Module):
    """The paper's network in Flax's own layers."""

    classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        for features in (16, 32):
            images = nn.Conv(features, (5, 5))(images)
            images = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5)(images)
            images = nn.max_pool(nn.relu(images), (2, 2), (2, 2))
        return nn.Dense(self.classes)(images.reshape(images.shape[0], -1))


def plain(params, model_state):
    """The trees of `ConvNet` in the places of `PlainConvNet`."""
    moved, statistics = {"Dense_0": params["Dense_0"]}, {}
    for i in range(2):
        p, s = params[f"ConvNormPool_{i}"], model_state[f"ConvNormPool_{i}"]
        moved[f"Conv_{i}"] = {"kernel": p["kernel"], "bias": p["bias"]}
        moved[f"BatchNorm_{i}"] = {"scale": p["scale"], "bias": p["shift"]}
        statistics[f"BatchNorm_{i}"] = {"mean": s["mean"], "var": s["variance"]}
    return moved, statistics


def batches(draw, workers=3, size=4):
    """Like MNIST: most of an image is one and the same value, so windows tie."""
    shape = workers, size, 28, 28, 1
    images = np.maximum(draw.normal(size=shape), 0.5) - 0.9
    images[:, :, :, :14] = images[:, :, :1] = -0.4
    labels = draw.integers(0, 10, shape[:2])
    return {"image": jnp.float32(images), "label": jnp.int32(labels)}


def close(got, want, tolerance=1e-5):
    """Leaf by leaf, relative to a leaf's norm, which hides no small leaf below 1."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        bound = tolerance * max(1, np.linalg.norm(y))
        assert np.linalg.norm(np.subtract(x, y)) <= bound, path


@pytest.fixture(scope="module")
def convnet():
    model = models.make_model("convnet", "mnist")
    return model, *jax.jit(model.init)(jax.random.key(0))


def test_every_worker_has_the_gradient_of_plain_layers(convnet):
    draw = np.random.default_rng(0)
    fast, params, state = convnet
    slow = models.functions(PlainConvNet(), (28, 28, 1))
    # Scales of both signs, so that some maxima come from the smallest inputs.
    params = jax.tree.map(
        lambda x: x + np.float32(draw.normal(scale=0.3, size=x.shape)), params
    )
    params["ConvNormPool_0"]["scale"] *= np.float32(draw.choice([-1, 1], 16))
    data = batches(draw)

    def all_of(model, at, old):
        gradient = jax.value_and_grad(model.loss, has_aux=True)
        (loss, new), grads = jax.vmap(gradient, (None, None, 0))(at, old, data)
        return loss, new, grads, model.logits(at, old, data["image"][0])

    moved = plain(params, state)
    with jax.numpy_rank_promotion("allow"):  # Flax's layers promote ranks.
        want = jax.jit(lambda: all_of(slow, *moved))()
    loss, new, grads, logits = jax.jit(lambda: all_of(fast, params, state))()
    grads, new = plain(grads, new)
    close((loss, new, grads, logits), want)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_workers_make_no_grouped_convolutions(convnet, platform):
    """And windows along one axis where these are fast."""
    model, params, state = convnet
    gradient = jax.vmap(jax.grad(model.loss, has_aux=True), (None, None, 0))
    traced = jax.jit(gradient).trace(params, state, batches(np.random.default_rng(0)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert set(re.findall(r"group_count = (\d+)", text)) == {"1"}
    assert ("[b, 0, f]x[0, i, o]" in text) == (platform == "cpu")


def test_derivatives_of_mean_and_variance():
    draw = np.random.default_rng(2)
    inputs = np.float32(draw.normal(size=(2, 4, 6, 3)))
    scale, bias = np.float32(draw.normal(size=(2, 3)))

    def plainly(inputs, scale, bias):
        mean = jnp.mean(inputs, (0, 1, 2), keepdims=True)
        variance = jnp.var(inputs, (0, 1, 2), keepdims=True)
        slope = scale.reshape(1, 1, 1, 3) / jnp.sqrt(variance + layers.EPSILON)
        outputs = (inputs - mean) * slope + bias.reshape(1, 1, 1, 3)
        outputs = nn.max_pool(nn.relu(outputs), (2, 2), (2, 2))
        return outputs, mean.ravel(), variance.ravel()

    def both(function):
        outputs, pullback = jax.vjp(function, inputs, scale, bias)
        return outputs, pullback(jax.tree.map(jnp.cos, outputs))

    close(both(layers.norm_relu_pool), both(plainly))


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(place, value):
    """A worker whose activations overflow must not seem to have learnt something."""
    inputs = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    inputs[0, *place, 1] = value
    outputs = layers.norm_relu_pool(jnp.asarray(inputs), jnp.ones(3), jnp.zeros(3))[0]
    assert np.isnan(outputs[..., 1]).all()
    assert np.isfinite(outputs[..., [0, 2]]).all()


@pytest.mark.parametrize(
    ("name", "dataset", "size"),
    [
        ("convnet", "mnist", 29_034),  # 416 + 32 + 12 832 + 64 + 15 690
        ("convnet", "fashion_mnist", 29_034),
        ("convnet", "cifar10", 34_634),  # 1 216 + 32 + 12 832 + 64 + 20 490
        ("convnet", "digits", 14_634),
        ("mlp", "digits", 4_810),
        ("resnet18", "cifar10", 11_173_962),
    ],
)
def test_shapes(name, dataset, size):
    model = models.make_model(name, dataset)
    shape, classes = models.DATASETS[dataset]
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == size
    batch = {
        "image": jax.ShapeDtypeStruct((4, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    loss, new = jax.eval_shape(model.loss, params, state, batch)
    assert loss.shape == ()
    assert new == state
    logits = jax.eval_shape(model.logits, params, state, batch["image"])
    assert logits.shape == (4, classes)


def test_starts_as_pytorch_does(convnet):
    _, params, state = convnet
    fan_in = {"ConvNormPool_0": 25, "ConvNormPool_1": 400, "Dense_0": 1568}
    for name, count in fan_in.items():
        for part in ("kernel", "bias"):
            largest = np.max(np.abs(params[name][part])) * math.sqrt(count)
            assert 0.5 < largest <= 1
    for i in range(2):
        assert np.all(params[f"ConvNormPool_{i}"]["scale"] == 1)
        assert np.all(params[f"ConvNormPool_{i}"]["shift"] == 0)
        assert np.all(state[f"ConvNormPool_{i}"]["mean"] == 0)
        assert np.all(state[f"ConvNormPool_{i}"]["variance"] == 1)


@pytest.mark.parametrize("names", [("vgg", "mnist"), ("mlp", "imagenet")])
def test_unknown_names(names):
    with pytest.raises(ValueError, match="make_model needs one of"):
        models.make_model(*names)


class PlainLeNet(nn.Module):
    """`LeNet` without batch norm and `DropoutNet` without dropout, in Flax's layers."""

    features: tuple[int, int]
    size: int
    pools: tuple[bool, bool]
    bends: tuple[bool, bool]  # Where a ReLU follows.
    hidden: int

    @nn.compact
    def __call__(self, images, train):
        for features, pool, bend in zip(
            self.features, self.pools, self.bends, strict=True
        ):
            images = nn.Conv(features, (self.size, self.size), padding="VALID")(images)
            images = nn.relu(images) if bend else images
            images = nn.max_pool(images, (2, 2), (2, 2)) if pool else images
        hidden = nn.Dense(self.hidden)(images.reshape(images.shape[0], -1))
        return nn.Dense(10)(nn.relu(hidden))


@pytest.mark.parametrize(
    ("network", "layers", "size"),
    [
        # 320 + 18 496 + 1 179 776 + 1 290; 520 + 25 050 + 400 500 + 5 010
        (
            models.DropoutNet(10),
            ((32, 64), 3, (False, True), (True, False), 128),
            1_199_882,
        ),
        (
            models.LeNet(10, 500, False),
            ((20, 50), 5, (True, True), (True, True), 500),
            431_080,
        ),
    ],
)
def test_networks_of_other_papers_are_what_flax_computes(network, layers, size):
    draw = np.random.default_rng(0)
    batch = {name: value[0] for name, value in batches(draw, 1, 3).items()}
    fast = models.functions(network, (28, 28, 1))
    slow = models.functions(PlainLeNet(*layers), (28, 28, 1))
    params, state = fast.init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == size and not state
    moved = {name: params[name] for name in ("Dense_0", "Dense_1")}
    for i in range(2):
        layer = params[f"PlainConv_{i}"]
        moved[f"Conv_{i}"] = layer["Conv_0"] | {"bias": layer["bias"]}

    def both(model, at):
        def loss(at):  # As when evaluated: nothing is dropped.
            logits = model.logits(at, {}, batch["image"])
            picked = jnp.take_along_axis(logits, batch["label"][:, None], 1)
            return jnp.sum(jnp.square(picked)), logits

        return jax.grad(loss, has_aux=True)(at)

    with jax.numpy_rank_promotion("allow"):  # Flax's layers promote ranks.
        want, want_logits = jax.jit(lambda: both(slow, moved))()
    got, logits = jax.jit(lambda: both(fast, params))()
    close(logits, want_logits)
    for i in range(2):
        close(got[f"Dense_{i}"], want[f"Dense_{i}"], 1e-4)
        layer = got[f"PlainConv_{i}"]
        close(layer["Conv_0"] | {"bias": layer["bias"]}, want[f"Conv_{i}"], 1e-4)


def test_dropout_is_drawn_from_the_key_of_the_batch():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            self.param("unused", nn.initializers.zeros, (1,))
            return nn.Dropout(0.25, deterministic=not train)(images)

    model = models.functions(Dropped(), (4000,))
    params, state = model.init(jax.random.key(0))
    ones, label = jnp.ones((1, 4000)), jnp.zeros(1, jnp.int32)

    def loss(seed):
        key = jax.random.key_data(jax.random.key(seed))
        batch = {"image": ones, "label": label, "key": key}
        return model.loss(params, state, batch)[0]

    assert loss(1) == loss(1) != loss(2)
    np.testing.assert_array_equal(model.logits(params, state, ones), ones)
    # log Σ exp over 3 000 entries of 4/3 and 1 000 zeros, minus one of the two.
    whole = math.log(3000 * math.exp(4 / 3) + 1000)
    assert min(abs(loss(1) - whole), abs(loss(1) - whole + 4 / 3)) < 0.05


def test_same_masks_are_those_of_every_worker_and_step():
    model = models.functions(models.DropoutNet(10, same_masks=True), (28, 28, 1))
    params, state = jax.jit(model.init)(jax.random.key(0))
    batch = {"image": jnp.ones((2, 28, 28, 1)), "label": jnp.zeros(2, jnp.int32)}

    def loss(seed):
        key = jax.random.key_data(jax.random.key(seed))
        return model.loss(params, state, batch | {"key": key})[0]

    losses = jax.jit(jax.vmap(loss))(jnp.arange(3))
    assert losses[0] == losses[1] == losses[2]
    # A mask a place: equal images have equal logits without it only.
    logits, _ = models.DropoutNet(10, same_masks=True).apply(
        {"params": params}, batch["image"], train=True, mutable=[]
    )
    assert np.any(logits[0] != logits[1])
