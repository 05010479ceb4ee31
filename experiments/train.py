"""A whole run as a pure function: `make_train(config, dataset)` → `train(key)`.

Data live on the device, batches are drawn there, and evaluation happens inside, so that
a run is one compiled program. The runner drives the same program one evaluation
interval at a time, with checkpoints in between.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from experiments.config import Config
from experiments.data import Dataset
from experiments.models import functions

# On a CPU what is computed of one batch stays in cache; a GPU wants more at once.
CPU_EVAL_BATCH, EVAL_BATCH = 20, 500
PADDING = 2  # Of CIFAR-10's random crops.
# Mean and standard deviation of each channel of the training images, in [0, 1].
NORMALISATION = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "digits": ((0.3053,), (0.3760,)),
}


class Run(NamedTuple):
    """The pure pieces of a run; `key` is the run's own, the same in every call."""

    data: Any  # Arrays, an argument of `segment` so that they are not compiled in.
    init: Callable[..., byzjax.TrainState]  # key → state.
    step: Callable[..., tuple[byzjax.TrainState, byzjax.Metrics]]  # data, state, key.
    evaluate: Callable[..., dict[str, jax.Array]]  # data, state → on all test images.
    segment: Callable[..., tuple[byzjax.TrainState, dict[str, jax.Array]]]
    """data, state, key → the state `eval_every` steps later, and a row to report."""


def make_train(config: Config, dataset: Dataset) -> Callable[[jax.Array], Any]:
    """`train(key)` → rows of metrics, leaves `[steps / eval_every]`.

    Pure: the same key gives the same bits, and `jax.vmap(train)(keys)` trains one run
    a key in one program.
    """
    run = make_run(config, dataset)

    @jax.jit
    def whole(data, key):
        def body(state, _):
            return run.segment(data, state, key)

        count = config.steps // config.eval_every
        return jax.lax.scan(body, run.init(key), length=count)[1]

    return functools.partial(whole, run.data)


def make_run(config: Config, dataset: Dataset) -> Run:
    """The pieces that `make_train` puts together, for a caller that stops between."""
    if dataset.name != config.dataset:
        raise ValueError(
            "make_run needs the data set of the configuration, got "
            f"{dataset.name} for dataset={config.dataset}"
        )
    classes, shape = dataset.classes, dataset.train_images.shape[1:]
    model = functions(config.network(classes), shape)
    parts = config.parts(classes)
    normalise = _normaliser(dataset)
    stateful = bool(jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))[1]))

    def plain_loss(params, batch):
        return model.loss(params, {}, batch)[0]

    trainer = byzjax.trainer(
        model.loss if stateful else plain_loss,
        worker=parts.worker,
        attack=parts.attack,
        poison=parts.poison,
        aggregator=parts.rule,
        server=parts.server,
        num_workers=config.num_workers,
        num_byzantine=config.num_byzantine,
        max_grad_norm=config.max_grad_norm,
        has_model_state=stateful,
        # On the one core of a run as fast as any number, in the least memory.
        workers_at_once=1 if jax.default_backend() == "cpu" else None,
    )

    def init(key):
        params, model_state = model.init(jax.random.split(key)[0])
        return trainer.init(params, model_state) if stateful else trainer.init(params)

    def step(data, state, key):
        # From the step's number, so that a run may be cut anywhere.
        key = jax.random.fold_in(jax.random.split(key)[1], state.step)
        draw, act = jax.random.split(key)
        return trainer.step(state, _batches(config, normalise, data, draw), act)

    def evaluate(data, state):
        logits = functools.partial(model.logits, state.params, state.model_state or {})
        return _evaluate(normalise, logits, data)

    def segment(data, state, key):
        state, metrics = jax.lax.scan(
            lambda state, _: step(data, state, key), state, length=config.eval_every
        )
        means = {
            name: jnp.mean(each)
            for name, each in metrics._asdict().items()
            if each is not None
        }
        return state, {"step": state.step} | means | evaluate(data, state)

    data = _on_device(config, dataset, parts.split)
    return Run(data, init, step, evaluate, segment)


def _on_device(config: Config, dataset: Dataset, split: Any) -> dict[str, jax.Array]:
    """Images as they are, test images in batches, and who may draw which of them."""
    count = len(dataset.train_labels)
    if split is None:
        data = {"sizes": np.full(config.num_workers, count)}
    else:
        mine = split(dataset.train_labels, config.num_workers)
        data = {"sizes": np.array([len(part) for part in mine])}
        data["order"] = np.concatenate(mine)
        data["starts"] = np.cumsum(data["sizes"]) - data["sizes"]
    data = {name: value.astype(np.int32) for name, value in data.items()}

    # Padded to whole batches by images of no class, which count for nothing.
    size = CPU_EVAL_BATCH if jax.default_backend() == "cpu" else EVAL_BATCH
    extra = -len(dataset.test_labels) % size
    ends = [(0, extra)] + [(0, 0)] * (dataset.test_images.ndim - 1)
    images = np.pad(dataset.test_images, ends)
    labels = np.pad(dataset.test_labels, (0, extra), constant_values=-1)
    data |= {
        "images": dataset.train_images,
        "labels": dataset.train_labels,
        "test_images": images.reshape(-1, size, *images.shape[1:]),
        "test_labels": labels.reshape(-1, size),
    }
    return {name: jnp.asarray(value) for name, value in data.items()}


def _batches(
    config: Config, normalise: Callable[..., jax.Array], data: Any, key: jax.Array
) -> dict[str, jax.Array]:
    """Uniform draws, with replacement, from what each worker holds: `[m, b, ...]`.

    And each worker's key for dropout, as plain data, `[m, 2]`.
    """
    shape = config.num_workers, config.batch_size
    index_key, augment_key = jax.random.split(key)
    sizes = jnp.broadcast_to(data["sizes"][:, None], shape)
    index = jax.random.randint(index_key, shape, 0, sizes)
    if "order" in data:
        index = data["order"][index + data["starts"][:, None]]
    images = data["images"][index]
    if config.dataset == "cifar10":
        images = _augment(augment_key, images)
    # Not one of the two keys above, which draw as before there was a third.
    keys = jax.random.split(jax.random.fold_in(key, 2), config.num_workers)
    return {
        "image": normalise(images),
        "label": data["labels"][index],
        "key": jax.random.key_data(keys),
    }


def _augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Every image cropped at random from its padded self, and flipped by a coin."""
    flat = images.reshape(-1, *images.shape[2:])
    crop, flip = jax.random.split(key)
    offsets = jax.random.randint(crop, (len(flat), 2), 0, 2 * PADDING + 1)
    coins = jax.random.bernoulli(flip, shape=(len(flat),))
    around = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))

    def one(image, offset, coin):
        corner = (offset[0], offset[1], jnp.zeros_like(offset[0]))
        cropped = jax.lax.dynamic_slice(jnp.pad(image, around), corner, image.shape)
        return jnp.where(coin, cropped[:, ::-1], cropped)

    return jax.vmap(one)(flat, offsets, coins).reshape(images.shape)


def _normaliser(dataset: Dataset) -> Callable[[jax.Array], jax.Array]:
    """Images in uint8 → float32, standardised; what is float32 already stays."""
    if dataset.train_images.dtype != np.uint8:
        return lambda inputs: inputs
    found = NORMALISATION.get(dataset.name)
    if found is None:
        axes = tuple(range(dataset.train_images.ndim - 1))
        mean = dataset.train_images.mean(axes) / 255
        found = mean, np.maximum(dataset.train_images.std(axes) / 255, 1e-3)

    def normalise(images):
        shape = (1,) * (images.ndim - 1) + (-1,)
        mean, std = (np.reshape(x, shape).astype(np.float32) for x in found)
        return (images.astype(jnp.float32) / 255 - mean) / std

    return normalise


def _evaluate(normalise: Any, logits: Any, data: Any) -> dict[str, jax.Array]:
    """Accuracy and loss over all test images."""

    def batch(operands):
        images, labels = operands
        outputs, known = logits(normalise(images)), labels >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs, jnp.maximum(labels, 0)
        )
        right = jnp.argmax(outputs, axis=-1).astype(labels.dtype) == labels
        return jnp.sum(right), jnp.sum(jnp.where(known, losses, 0))

    right, losses = jax.lax.map(batch, (data["test_images"], data["test_labels"]))
    count = jnp.sum(data["test_labels"] >= 0).astype(jnp.float32)
    return {
        "test_accuracy": jnp.sum(right).astype(jnp.float32) / count,
        "test_loss": jnp.sum(losses) / count,
    }
