"""Configurations, data, and training as a pure function, on digits."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import data, models, train
from experiments.config import Config, grid
from experiments.figures import FIGURES
from experiments.names import ATTACKS, OPTIMIZERS, RULES

# --- configurations -------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    assert dataclasses.astuple(Config())[2:7] == (17, 8, 4, 882, 98)


def test_a_digest_is_the_same_in_every_process_and_however_values_are_given():
    code = "from experiments.config import Config; print(Config().digest())"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    root = pathlib.Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", code],
        **dict(cwd=root, env=environment, capture_output=True, text=True, check=True),
    )
    assert other.stdout.strip() == Config().digest()
    values = dataclasses.asdict(Config())
    assert Config(**dict(reversed(values.items()))).digest() == Config().digest()
    one = Config(attack="gaussian( std=1.0 , around = 'mean')", learning_rate=1)
    two = Config(attack="gaussian(around='mean', std=1.0)", learning_rate=1.0)
    assert one == two and one.digest() == two.digest()
    assert len({config.digest() for config in grid(rule=["mean", "median"])}) == 2


def test_every_name_makes_something():
    needs = {"centered_clipping": "(radius=1.0)", "gaussian": "(std=1.0)"}
    needs |= {"fang": "(against='krum')"}
    needs |= {"clipping": "(median, max_norm=1.0)", "constant": "(value=1.0)"}
    needs |= {"intermittent": "(sign_flip, probability=0.5)"}
    needs |= {"optimized": "(ipm)", "without_momentum": "(decay=0.9)"}
    for meta in ("ctma", "nnm", "bucketing", "arc"):
        needs[meta] = "(median)"
    for field, table in (("rule", RULES), ("attack", ATTACKS)):
        for name in table:
            Config(**{field: name + needs.get(name, "")}, num_byzantine=3)
    for name in OPTIMIZERS:
        Config(optimizer=name)
    for option in (
        dict(attack="empire(scale=0.1)"),
        dict(attack="label_flip(mode='cyclic')"),
        dict(rule="bucketing(nnm(geometric_median(num_iterations=8)), bucket_size=3)"),
        dict(rule="ctma(median, num_byzantine=2)"),
        dict(optimizer="mu2sgd(beta=0.9, mixing=0.1)"),
        dict(partition="shards(shards_per_worker=2)"),
        dict(partition="among_honest(gamma_similarity(gamma=0.5))"),
        dict(model="lenet(hidden=500, norm=False)"),
    ):
        Config(**option)


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(rule="crum"), ["'crum'", "krum", "median"]),
        (dict(rule="ctma(nnm(crum))"), ["'crum'", "krum"]),
        (dict(rule="ctma(median"), ["rule='ctma(median'"]),
        (dict(rule="median()"), ["brackets"]),
        (dict(rule="ctma"), ["rule='ctma'", "rule"]),
        (dict(attack="empire(epsilon=1)"), ["epsilon"]),
        (dict(attack="__import__('os')"), ["attack="]),
        (dict(attack="little(z=open)"), ["attack="]),
        (dict(dataset="imagenet"), ["digits", "'imagenet'"]),
        (dict(model="vit"), ["convnet", "'vit'"]),
        (dict(optimizer="momentum(decay=2.0)"), ["decay"]),
        (dict(partition="dirichlet"), ["alpha"]),
        (dict(steps=100), ["multiple", "steps=100", "eval_every=98"]),
        (dict(num_byzantine=17), ["num_byzantine=17"]),
        (dict(batch_size=0), ["batch_size=0"]),
        (dict(learning_rate=float("nan")), ["learning_rate=nan"]),
        (dict(max_grad_norm=-1), ["max_grad_norm=-1"]),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(bad, words):
    with pytest.raises(ValueError) as error:
        Config(**bad)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_figures_share_their_runs():
    digests = {
        name: {config.digest() for config in figure.configs()}
        for name, figure in FIGURES.items()
    }
    assert digests["fig1"] < digests["fig3"] and digests["fig2"] < digests["fig3"]
    for name, figure in FIGURES.items():
        assert len(digests[name]) == len(figure.configs())
        assert figure.CLAIM and "Claim:" in figure.__doc__


# --- data -----------------------------------------------------------------------------


def test_digits_need_no_download():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8 and digits.train_images.max() == 255
    assert len(digits.test_labels) == 360
    pixels = digits.train_images / 255
    mean, std = train.NORMALISATION["digits"]
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [*mean, *std], atol=1e-3)


def test_absent_data_are_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("BYZJAX_DATA", str(tmp_path / "data"))
    with pytest.raises(data.DataError) as error:
        data.load("mnist", cache_dir=tmp_path)
    message = str(error.value)
    for words in (str(tmp_path / "data"), "--download", "--data-dir", "dataset=digits"):
        assert words in message, message
    with pytest.raises(ValueError, match="'imagenet'"):
        data.load("imagenet")


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(data.DataError, match="ConnectionError: no network"):
        data.load("mnist", tmp_path, cache_dir=tmp_path, download=True)


def test_data_are_read_once(tmp_path, monkeypatch):
    """TFDS's mock data, from then on without TFDS."""
    import tensorflow_datasets as tfds

    arguments = dict(data_dir=tmp_path / "tfds", cache_dir=tmp_path / "cache")
    with tfds.testing.mock_data(num_examples=7):
        monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
        first = data.load("cifar10", **arguments)
    assert first.train_images.shape == (7, 32, 32, 3)
    assert first.train_images.dtype == np.uint8
    assert first.test_labels.dtype == np.int32
    (cached,) = (tmp_path / "cache").iterdir()
    assert cached.suffix == ".npz"
    monkeypatch.setattr(tfds, "builder", None)
    again = data.load("cifar10", **arguments)
    jax.tree.map(np.testing.assert_array_equal, first[1:], again[1:])


@pytest.mark.skipif("BYZJAX_DATA" not in os.environ, reason="needs prepared data")
def test_real_data_are_where_the_environment_says():
    import tensorflow_datasets as tfds

    for name, count in (("mnist", 60_000), ("cifar10", 50_000)):
        options = {"file_format": "array_record"}
        builder = tfds.builder(name, data_dir=data._resolve(None), **options)
        assert builder.is_prepared()
        rows = builder.as_data_source(split="train")
        assert len(rows) == count
        assert rows[0]["image"].shape == data.models.DATASETS[name][0]


# --- training -------------------------------------------------------------------------

SMALL = Config(
    dataset="digits",
    model="mlp",
    num_workers=5,
    num_byzantine=1,
    steps=60,
    eval_every=20,
    rule="median",
    optimizer="mu2sgd",
)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def run():
    """Its functions compiled once for all tests here."""
    run = train.make_run(SMALL, data.load("digits"))
    compiled = {name: jax.jit(getattr(run, name)) for name in ("init", "segment")}
    return run._replace(**compiled)


def test_segments_are_the_whole_run_and_train_is_pure(run):
    whole = train.make_train(SMALL, data.load("digits"))
    rows = whole(KEY)
    assert rows["step"].tolist() == [20, 40, 60]
    assert rows["test_accuracy"][-1] > 0.5 and rows["loss"][-1] < rows["loss"][0]
    jax.tree.map(np.testing.assert_array_equal, rows, whole(KEY))
    assert (whole(jax.random.key(4))["loss"] != rows["loss"]).all()

    state = run.init(KEY)
    for index in range(3):
        state, row = run.segment(run.data, state, KEY)
        for name, value in row.items():
            np.testing.assert_allclose(value, rows[name][index], rtol=1e-4)


def test_evaluation_counts_every_test_image_once(run):
    digits = data.load("digits")
    state, row = run.segment(run.data, run.init(KEY), KEY)
    model = models.make_model("mlp", "digits")
    mean, std = (np.float32(x[0]) for x in train.NORMALISATION["digits"])
    images = (digits.test_images.astype(np.float32) / 255 - mean) / std
    logits = np.asarray(model.logits(state.params, {}, images), np.float64)
    right = np.mean(logits.argmax(-1) == digits.test_labels)
    log_sum = np.log(np.exp(logits).sum(-1))
    loss = np.mean(log_sum - logits[np.arange(360), digits.test_labels])
    np.testing.assert_allclose(row["test_accuracy"], right, rtol=1e-6)
    np.testing.assert_allclose(row["test_loss"], loss, rtol=1e-5)


def test_workers_draw_from_what_they_hold():
    digits = data.load("digits")
    config = dataclasses.replace(SMALL, partition="extreme", batch_size=30)
    run = train.make_run(config, digits)
    drawn = train._batches(config, lambda x: x, run.data, jax.random.key(0))["label"]
    sorted_labels = np.array_split(np.sort(digits.train_labels), 5)
    for mine, held in zip(np.asarray(drawn), sorted_labels, strict=True):
        assert set(mine) <= set(held) and len(set(mine)) > 1


def test_augmentation_moves_and_flips():
    images = np.arange(4 * 9 * 32 * 32 * 3).reshape(4, 9, 32, 32, 3) % 251 + 1
    images = images.astype(np.uint8)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)))
    got = np.asarray(train._augment(jax.random.key(0), images))
    found = set()
    for index in np.ndindex(4, 9):
        for i, j, flip in np.ndindex(5, 5, 2):
            want = padded[index][i : i + 32, j : j + 32][:, :: 1 - 2 * flip]
            if np.array_equal(got[index], want):
                found.add((index, flip, i, j))
    assert {each[0] for each in found} == set(np.ndindex(4, 9))
    assert {each[1] for each in found} == {0, 1}
    assert len({each[2:] for each in found}) > 8


def test_another_data_set_is_refused():
    with pytest.raises(ValueError, match="dataset=mnist"):
        train.make_train(Config(), data.load("digits"))


def test_configurations_are_json():
    assert Config(**json.loads(json.dumps(dataclasses.asdict(SMALL)))) == SMALL
