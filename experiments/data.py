"""The data sets as NumPy arrays: `load`. Read once through TFDS, then from a cache."""

import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import models

ENVIRONMENT = "BYZJAX_DATA"  # A folder whose tfds/ is a data_dir of TFDS.


class Dataset(NamedTuple):
    """Inputs `[n, ...]` and labels `[n]` in int32, 0, 1, ….

    Inputs in uint8 are standardised, channel by channel; those in float32 are taken as
    they are. The data sets here are images `[n, h, w, c]` in uint8.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        """How many; labels are smaller."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


class DataError(RuntimeError):
    """The data are not there, or are none; the message says what to do."""


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Dataset:
    """A data set in memory, which costs half a minute once and a second later.

    Args:
      name: "mnist", "fashion_mnist", "cifar10" (through tensorflow-datasets),
        "digits", which comes with scikit-learn, or one that was registered.
      data_dir: the data_dir of TFDS, or a folder with it as tfds/. By default
        $BYZJAX_DATA if set, else TFDS's own default.
      cache_dir: where arrays are kept as .npz, by default ~/.cache/byzjax.
      download: whether TFDS may download and prepare what is not there.

    Raises:
      ValueError: another name.
      DataError: data that are not prepared, or cannot be.
    """
    if name not in SETS:
        raise ValueError(f"load needs one of {', '.join(SETS)}; got name={name!r}")
    read = SETS[name]
    if read is not None:
        return read()
    folder = _resolve(data_dir)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = pathlib.Path(cache_dir or pathlib.Path(home, "byzjax")).expanduser()
    origin = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    path = cache / f"{name}-{origin}.npz"
    if path.is_file():
        with np.load(path) as arrays:
            return Dataset(name, *(arrays[field] for field in Dataset._fields[1:]))
    dataset = _read(name, folder, download)
    cache.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, whoever else writes it at the same time.
    arrays: dict[str, Any] = dataset._asdict()
    del arrays["name"]
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.replace(path)
    return dataset


def _resolve(data_dir: str | os.PathLike[str] | None) -> pathlib.Path | None:
    given = data_dir or os.environ.get(ENVIRONMENT)
    if not given:
        return None
    folder = pathlib.Path(given).expanduser().resolve()
    return folder / "tfds" if (folder / "tfds").is_dir() else folder


def _digits() -> Dataset:
    """Shuffled once with a fixed seed, 360 held out; 17 shades of grey."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)[order]
    labels = labels.astype(np.int32)[order]
    return Dataset("digits", images[360:], labels[360:], images[:360], labels[:360])


# name → how to make it; None: through TFDS.
SETS: dict[str, Callable[[], Dataset] | None] = dict.fromkeys(models.DATASETS)
SETS["digits"] = _digits


def named(name: str, given: Dataset | Callable[[], Dataset]) -> Callable[[], Dataset]:
    """A data set of one's own, or what makes it, checked when it is read."""

    def read() -> Dataset:
        made = given if isinstance(given, Dataset) else given()
        if not isinstance(made, Dataset):
            raise DataError(f"data set {name} needs to be a Dataset, got {type(made)}")
        return _checked(made._replace(name=name))

    return read


def _checked(made: Dataset) -> Dataset:
    """The same with arrays as training wants them."""
    arrays = {}
    for part in ("train", "test"):
        inputs = np.asarray(getattr(made, f"{part}_images"))
        labels = np.asarray(getattr(made, f"{part}_labels"))
        where = f"data set {made.name} needs {part}"
        if inputs.dtype != np.uint8 and not np.issubdtype(inputs.dtype, np.floating):
            raise DataError(f"{where} inputs in uint8 or floats, got {inputs.dtype}")
        if inputs.ndim < 2 or labels.shape != inputs.shape[:1] or not labels.size:
            raise DataError(
                f"{where} inputs [n, ...] and labels [n], got shapes {inputs.shape} "
                f"and {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise DataError(f"{where} labels to be integers 0, 1, …, got {labels}")
        if inputs.dtype != np.uint8:
            inputs = inputs.astype(np.float32)
            if not np.isfinite(inputs).all():
                raise DataError(f"{where} inputs to be finite, got NaN or Inf")
        arrays[f"{part}_images"] = inputs
        arrays[f"{part}_labels"] = labels.astype(np.int32)
    made = made._replace(**arrays)
    if made.train_images.shape[1:] != made.test_images.shape[1:]:
        raise DataError(
            f"data set {made.name} needs training and test inputs of one shape, got "
            f"{made.train_images.shape[1:]} and {made.test_images.shape[1:]}"
        )
    return made


def _read(name: str, folder: pathlib.Path | None, download: bool) -> Dataset:
    # Imported here: it takes a while, and the digits and the cache do without.
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is read by tensorflow-datasets, which is not there ({error}): "
            "pip install -e '.[experiments]', or train on the digits, which need no "
            "download, with --set dataset=digits."
        ) from error

    # Prepared as anything else, it could not be read without TensorFlow.
    options: Any = {"file_format": "array_record"}
    builder: Any = tfds.builder(name, data_dir=folder, **options)
    root = folder or pathlib.Path(builder.data_dir).parents[1]
    if not builder.is_prepared():
        advice = (
            f"Say where it is with --data-dir or ${ENVIRONMENT}, or train on the "
            "digits, which need no download, with --set dataset=digits."
        )
        if not download:
            raise DataError(
                f"{name} is not prepared in {root}. Add --download to "
                "download and prepare it there (needs tensorflow or tensorflow-cpu, "
                f"for this step only). {advice}"
            )
        try:
            builder.download_and_prepare()
        except ImportError as error:
            raise DataError(
                f"{name} could not be prepared: {error}. Preparing needs tensorflow "
                f"or tensorflow-cpu: pip install tensorflow-cpu. {advice}"
            ) from error
        except Exception as error:  # Whatever a network can do.
            raise DataError(
                f"{name} could not be downloaded and prepared in {root}: "
                f"{type(error).__name__}: {error}. {advice}"
            ) from error

    def split(which):
        rows = builder.as_data_source(split=which)
        images, labels = zip(
            *((row["image"], row["label"]) for row in rows), strict=True
        )
        return np.stack(images), np.array(labels, np.int32)

    return Dataset(name, *split("train"), *split("test"))
