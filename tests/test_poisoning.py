"""Poisons change exactly the entries they say, and nothing else about the batch."""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byzjax.poisoning import backdoor, label_flip

IMAGES = jnp.arange(4 * 3 * 3, dtype=jnp.float32).reshape(4, 3, 3)
LABELS = jnp.array([0, 3, 9, 5])
EXTRA = jnp.array([1.0, 2.0, 3.0, 4.0])
PATTERN = jnp.zeros((3, 3)).at[2, 2].set(-1.0)


class Pair(NamedTuple):
    image: jax.Array
    label: jax.Array


MODES = {
    "reverse": ({}, lambda y: 9 - y),
    "cyclic": ({}, lambda y: (y + 1) % 10),
    "targeted": ({"source": 3, "target": 7}, lambda y: 7 if y == 3 else y),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32]
)
def test_label_flip_of_every_label(mode, dtype):
    extra, flip = MODES[mode]
    labels = jnp.arange(10, dtype=dtype)
    poison = label_flip(10, mode=mode, **extra)
    for run in (poison, jax.jit(poison)):
        images, flipped = run((IMAGES, labels))
        assert flipped.dtype == dtype
        np.testing.assert_array_equal(flipped, [flip(y) for y in range(10)])
        np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("mode", ["reverse", "cyclic"])
def test_label_flip_uses_the_whole_range_of_the_dtype(mode):
    labels = jnp.arange(256, dtype=jnp.uint8)
    _, flipped = label_flip(256, mode=mode)((IMAGES, labels))
    y = np.arange(256)
    np.testing.assert_array_equal(
        flipped, 255 - y if mode == "reverse" else (y + 1) % 256
    )


@pytest.mark.parametrize("mode", MODES)
def test_padding_labels_stay(mode):
    labels = jnp.array([-1, -100, 10, 127, -128], jnp.int8)
    _, flipped = label_flip(10, mode=mode, **MODES[mode][0])((IMAGES, labels))
    np.testing.assert_array_equal(flipped, labels)


def test_reverse_and_full_cycle_return_to_the_start():
    reverse, cyclic = label_flip(10), label_flip(10, mode="cyclic")
    np.testing.assert_array_equal(reverse(reverse((IMAGES, LABELS)))[1], LABELS)
    batch = (IMAGES, LABELS)
    for _ in range(10):
        batch = cyclic(batch)
    np.testing.assert_array_equal(batch[1], LABELS)


@pytest.mark.parametrize("poison", [label_flip(10), backdoor(PATTERN, 7)])
def test_vmap_equals_a_loop(poison):
    images, labels = jnp.stack([IMAGES, -IMAGES]), jnp.stack([LABELS, LABELS[::-1]])
    stacked = jax.jit(jax.vmap(poison))((images, labels))
    for i in range(2):
        alone = poison((images[i], labels[i]))
        for a, b in zip(alone, stacked, strict=True):
            np.testing.assert_array_equal(a, b[i])


def test_every_kind_of_batch_keeps_its_type_and_its_other_entries():
    flip, expected = label_flip(10), 9 - np.asarray(LABELS)
    for batch in (
        (IMAGES, LABELS, EXTRA),
        [IMAGES, LABELS, EXTRA],
        Pair(IMAGES, LABELS),
    ):
        before = list(batch)
        poisoned = flip(batch)
        assert type(poisoned) is type(batch) and len(poisoned) == len(batch)
        np.testing.assert_array_equal(poisoned[1], expected)
        for i in range(len(batch)):
            assert batch[i] is before[i]
            assert i == 1 or poisoned[i] is before[i]
    for kind in (dict, collections.OrderedDict):
        batch = kind(x=IMAGES, y=LABELS, weight=EXTRA)
        poisoned = label_flip(10, labels="y")(batch)
        assert type(poisoned) is kind and list(poisoned) == ["x", "y", "weight"]
        assert batch["y"] is LABELS and poisoned["weight"] is EXTRA
        np.testing.assert_array_equal(poisoned["y"], expected)
    np.testing.assert_array_equal(
        label_flip(10, labels=-1)((IMAGES, LABELS))[1], expected
    )


def test_numpy_batches_are_not_modified():
    labels, images = np.array(LABELS), np.array(IMAGES)
    label_flip(10)((images, labels))
    backdoor(PATTERN, 7)((images, labels))
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_array_equal(images, IMAGES)


def test_backdoor_stamps_the_nonzero_entries():
    poison = backdoor(PATTERN, 7)
    for run in (poison, jax.jit(poison)):
        images, labels, extra = run((IMAGES, LABELS, EXTRA))
        expected = np.array(IMAGES)
        expected[:, 2, 2] = -1
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, 7)
        np.testing.assert_array_equal(extra, EXTRA)
        assert labels.dtype == LABELS.dtype and images.dtype == IMAGES.dtype


def test_backdoor_with_a_mask_also_stamps_zeros():
    mask = np.zeros((3, 3), bool)
    mask[0] = True
    images, _ = backdoor(0.0, 1, mask=mask)((IMAGES, LABELS))
    expected = np.array(IMAGES)
    expected[:, 0] = 0
    np.testing.assert_array_equal(images, expected)


def test_backdoor_in_a_dict_broadcasts_over_channels():
    images = jnp.ones((2, 3, 3, 2), jnp.bfloat16)
    poison = backdoor(PATTERN[..., None], 0, inputs="image", labels="label")
    batch = poison({"image": images, "label": LABELS[:2].astype(jnp.uint8)})
    assert batch["image"].dtype == jnp.bfloat16 and batch["label"].dtype == jnp.uint8
    np.testing.assert_array_equal(batch["image"][:, 2, 2].astype(jnp.float32), -1)
    assert (batch["image"] == 1).sum() == 2 * 2 * 8


def test_backdoor_of_a_single_example_and_of_integer_images():
    image, label = backdoor(PATTERN, 7)((IMAGES[0], LABELS[0]))
    assert image[2, 2] == -1 and label == 7
    bytes_ = jnp.zeros((2, 2, 2), jnp.uint8)
    stamp = jnp.array([[255, 0], [0, 0]])
    images, _ = backdoor(stamp, 7)((bytes_, LABELS[:2]))
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images[:, 0, 0], 255)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: label_flip(1), "num_classes >= 2, got num_classes=1"),
        (lambda: label_flip(10, mode="random"), "got mode='random'"),
        (lambda: label_flip(10, mode="targeted"), "source=None and target=None"),
        (
            lambda: label_flip(10, mode="targeted", source=1, target=10),
            "0 <= target < 10, got target=10",
        ),
        (
            lambda: label_flip(10, mode="targeted", source=-1, target=1),
            "0 <= source < 10, got source=-1",
        ),
        (
            lambda: label_flip(10, mode="targeted", source=1, target=1),
            "source != target",
        ),
        (lambda: label_flip(10, source=1), "only with mode='targeted'"),
        (lambda: backdoor(PATTERN, -1), "target >= 0, got target=-1"),
        (lambda: backdoor(PATTERN, 1, inputs=1), "inputs and labels to differ"),
        (lambda: backdoor(PATTERN, 1, mask=np.ones(2, bool)), "mask and pattern"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("poison", "batch", "message"),
    [
        (label_flip(10), (IMAGES,), "labels=1 and 1 entries"),
        (label_flip(10, labels="y"), (IMAGES, LABELS), "labels='y' and 2 entries"),
        (label_flip(10), {"x": IMAGES}, r"labels=1 and the keys \['x'\]"),
        (label_flip(300), (IMAGES, LABELS.astype(jnp.int8)), "num_classes - 1=299"),
        (backdoor(PATTERN, 300), (IMAGES, LABELS.astype(jnp.uint8)), "target=300"),
        (backdoor(PATTERN[:2], 1), (IMAGES, LABELS), r"shape \(2, 3\) for inputs"),
        (backdoor(IMAGES[None], 1), (IMAGES, LABELS), r"for inputs of shape \(4, 3"),
        (
            backdoor(jnp.array([[256]]), 1),
            (IMAGES.astype(jnp.uint8), LABELS),
            "pattern=256",
        ),
        (
            backdoor(jnp.array([[1]]), 1, inputs=-1),
            (IMAGES, LABELS),
            "inputs=-1 and labels=1",
        ),
    ],
)
def test_batches_that_do_not_fit(poison, batch, message):
    with pytest.raises(ValueError, match=message):
        poison(batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_flip(10)((IMAGES, EXTRA)), "integer class labels .* float32"),
        (lambda: backdoor(PATTERN, 1)((IMAGES, EXTRA)), "integer class labels"),
        (lambda: label_flip(10)(LABELS), "tuple, list or dict"),
        (lambda: label_flip(10.0), r"integer num_classes, got 10\.0"),
        (lambda: label_flip(True), "integer num_classes, got True"),
        (lambda: backdoor(PATTERN, 1, mask=PATTERN), "boolean mask, got dtype float32"),
        (lambda: backdoor(PATTERN > 0, 1), "real pattern, got dtype bool"),
        (
            lambda: backdoor(PATTERN, 1)((IMAGES.astype(jnp.uint8), LABELS)),
            "integer pattern for uint8 inputs, got float32",
        ),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()
