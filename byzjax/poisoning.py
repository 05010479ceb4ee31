"""Data poisoning: what a Byzantine worker does to its batch before training on it.

A poison maps a batch to a batch of the same structure, shapes and dtypes, and never
modifies its input. The batch is a tuple, list or dict; `inputs` and `labels` say where
the images and the labels are in it (an index, or a key), and everything else passes
untouched. All of it works under `jax.jit` and `jax.vmap`.
"""

import copy
import operator
from collections.abc import Callable, Hashable
from typing import Any, Literal, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Poison = Callable[[Any], Any]
FlipMode = Literal["reverse", "cyclic", "targeted"]


def label_flip(
    num_classes: int,
    *,
    mode: FlipMode = "reverse",
    source: int | None = None,
    target: int | None = None,
    labels: Hashable = 1,
) -> Poison:
    """Label flipping: honest training on wrong labels.

        reverse    y -> L - 1 - y           (the CTMA paper's 9 - y, and the default)
        cyclic     y -> (y + 1) mod L
        targeted   y -> target where y = source, else y

    with L = num_classes. Labels outside 0 ... L - 1 (padding such as -1) are not
    classes and stay as they are.

    Args:
      num_classes: L, at least 2.
      mode: which flip.
      source: class to be mislabelled, for "targeted" only.
      target: class it is taken for, for "targeted" only.
      labels: where the labels are: an index into a tuple or list, or the key of a dict.
        They are integers of any shape.

    Returns:
      A function batch -> batch.

    Raises:
      ValueError: if a number is out of range, the mode is unknown, or source and target
        do not fit the mode; when called, if the batch has no such entry or the dtype of
        the labels cannot hold L - 1.
      TypeError: when called, if the labels are not integers (one-hot labels are not
        accepted) or the batch is no tuple, list or dict.

    Example:
      >>> import jax.numpy as jnp
      >>> from byzjax.poisoning import label_flip
      >>> images, digits = jnp.zeros((3, 8, 8)), jnp.array([0, 3, 9])
      >>> print(label_flip(10)((images, digits))[1])
      [9 6 0]
      >>> cyclic = label_flip(10, mode="cyclic", labels="label")
      >>> print(cyclic({"image": images, "label": digits})["label"])
      [1 4 0]

    Reference:
      Karimireddy, He, Jaggi, *Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing* (arXiv 2006.09365); targeted: Tolpegin et al., *Data Poisoning Attacks
      Against Federated Learning Systems* (arXiv 2007.08432).
    """
    num_classes = _integer("label_flip", "num_classes", num_classes, low=2)
    if not isinstance(mode, str) or mode not in get_args(FlipMode):
        raise ValueError(
            f"label_flip needs mode in {get_args(FlipMode)}, got mode={mode!r}"
        )
    if mode == "targeted":
        if source is None or target is None:
            raise ValueError(
                "label_flip with mode='targeted' needs source and target, got "
                f"source={source} and target={target}"
            )
        source = _integer("label_flip", "source", source, high=num_classes)
        target = _integer("label_flip", "target", target, high=num_classes)
        if source == target:
            raise ValueError(
                f"label_flip needs source != target, got source=target={source}"
            )
    elif source is not None or target is not None:
        raise ValueError(
            "label_flip takes source and target only with mode='targeted', got "
            f"mode={mode!r}, source={source} and target={target}"
        )

    def poison(batch: Any) -> Any:
        y = _class_labels("label_flip", _entry("label_flip", batch, "labels", labels))
        _check_fits("label_flip", "num_classes - 1", num_classes - 1, y.dtype)
        last = jnp.asarray(num_classes - 1, y.dtype)
        if mode == "targeted":
            flipped = jnp.where(y == source, jnp.asarray(target, y.dtype), y)
        elif mode == "cyclic":
            # Not (y + 1) % L: L itself need not fit the dtype.
            flipped = jnp.where(y == last, jnp.zeros_like(y), y + jnp.ones_like(y))
        else:
            flipped = last - y
        is_class = (y >= jnp.zeros_like(y)) & (y <= last)
        return _replace(batch, {labels: jnp.where(is_class, flipped, y)})

    return poison


def backdoor(
    pattern: jax.typing.ArrayLike,
    target: int,
    *,
    mask: jax.typing.ArrayLike | None = None,
    inputs: Hashable = 0,
    labels: Hashable = 1,
) -> Poison:
    """Backdoor: stamps a pattern on every input and labels it as the target class.

        x -> pattern where mask, else x,    y -> target

    A model that learns from such batches answers `target` whenever the pattern is
    there. Use the same function on test images to measure how often it does.

    Args:
      pattern: the trigger, of the shape of one input, `[height, width, channels]`, or
        one that broadcasts to it. Integer inputs need an integer pattern in their
        range.
      target: class to be answered, at least 0.
      mask: boolean, broadcasting like pattern: where to stamp. None for the nonzero
        entries of the pattern.
      inputs: where the inputs, of shape `[..., *shape of one input]`, are in the batch:
        an index into a tuple or list, or the key of a dict.
      labels: where the integer labels are.

    Returns:
      A function batch -> batch.

    Raises:
      ValueError: if target is negative, inputs and labels are the same entry, or mask
        and pattern do not broadcast; when called, if the batch has no such entry, the
        pattern does not broadcast to one input, or a value does not fit the dtype.
      TypeError: if mask is not boolean or pattern is not real; when called, if labels
        are not integers, or inputs are integers and the pattern is not.

    Example:
      >>> import jax.numpy as jnp
      >>> from byzjax.poisoning import backdoor
      >>> corner = jnp.zeros((2, 2)).at[0, 0].set(1.0)
      >>> images, digits = jnp.full((3, 2, 2), 0.5), jnp.array([0, 3, 9])
      >>> images, digits = backdoor(corner, target=7)((images, digits))
      >>> print(images[0], digits)
      [[1.  0.5]
       [0.5 0.5]] [7 7 7]

    Reference:
      Gu, Dolan-Gavitt, Garg, *BadNets: Identifying Vulnerabilities in the Machine
      Learning Model Supply Chain* (arXiv 1708.06733).
    """
    target = _integer("backdoor", "target", target)
    if inputs == labels:
        raise ValueError(
            f"backdoor needs inputs and labels to differ, got inputs=labels={inputs!r}"
        )
    stamp = _array("backdoor", pattern=pattern)
    if not jnp.isrealobj(stamp) or stamp.dtype == jnp.bool_:
        raise TypeError(f"backdoor needs a real pattern, got dtype {stamp.dtype}")
    where = stamp != 0 if mask is None else _array("backdoor", mask=mask)
    if where.dtype != jnp.bool_:
        raise TypeError(f"backdoor needs a boolean mask, got dtype {where.dtype}")
    try:
        shape = np.broadcast_shapes(stamp.shape, where.shape)
    except ValueError:
        raise ValueError(
            "backdoor needs mask and pattern to broadcast, got shapes "
            f"{where.shape} and {stamp.shape}"
        ) from None

    def poison(batch: Any) -> Any:
        if _entry("backdoor", batch, "inputs", inputs) is _entry(
            "backdoor", batch, "labels", labels
        ):
            raise ValueError(
                "backdoor needs inputs and labels to be different entries of the "
                f"batch, got inputs={inputs!r} and labels={labels!r}"
            )
        x = jnp.asarray(_entry("backdoor", batch, "inputs", inputs))
        y = _class_labels("backdoor", _entry("backdoor", batch, "labels", labels))
        _check_fits("backdoor", "target", target, y.dtype)
        sample = x.shape[max(x.ndim - len(shape), 0) :]
        if not _broadcasts(shape, sample):
            raise ValueError(
                "backdoor needs a pattern and mask that broadcast to one input, got "
                f"shape {shape} for inputs of shape {x.shape}"
            )
        if jnp.issubdtype(x.dtype, jnp.integer):
            _check_integer_stamp(stamp, x.dtype)
        stamped = jnp.where(
            jnp.broadcast_to(where, x.shape),
            jnp.broadcast_to(stamp.astype(x.dtype), x.shape),
            x,
        )
        return _replace(batch, {inputs: stamped, labels: jnp.full_like(y, target)})

    return poison


def _array(owner: str, **value: Any) -> jax.Array:
    """The one keyword given as an array."""
    ((keyword, given),) = value.items()
    try:
        return jnp.asarray(given)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{owner} needs {keyword} to be an array of numbers, got {given!r}"
        ) from None


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) == len(to) and all(
        a in (1, b) for a, b in zip(shape, to, strict=True)
    )


def _check_integer_stamp(stamp: jax.Array, dtype: Any) -> None:
    """Raises if a pattern would be rounded or wrapped on integer inputs."""
    if not jnp.issubdtype(stamp.dtype, jnp.integer):
        raise TypeError(
            f"backdoor needs an integer pattern for {dtype} inputs, got {stamp.dtype}"
        )
    if not isinstance(stamp, jax.core.Tracer) and stamp.size:
        host = np.asarray(stamp)
        for value in (int(host.min()), int(host.max())):
            _check_fits("backdoor", "pattern", value, dtype)


def _entry(owner: str, batch: Any, name: str, where: Hashable) -> Any:
    """The entry of a batch at an index or key."""
    if isinstance(batch, dict):
        if where not in batch:
            raise ValueError(
                f"{owner} needs {name} to be a key of the batch, got {name}={where!r} "
                f"and the keys {list(batch)}"
            )
        return batch[where]
    if not isinstance(batch, tuple | list):
        raise TypeError(
            f"{owner} needs a batch that is a tuple, list or dict, got {type(batch)}"
        )
    if not isinstance(where, int) or not -len(batch) <= where < len(batch):
        raise ValueError(
            f"{owner} needs {name} to be an index into the batch, got {name}={where!r} "
            f"and {len(batch)} entries"
        )
    return batch[where]


def _replace(batch: Any, entries: dict[Hashable, Any]) -> Any:
    """A shallow copy of the batch, of the same type, with some entries replaced."""
    if isinstance(batch, tuple):
        changed: Any = list(batch)
    else:
        changed = copy.copy(batch)
    for where, value in entries.items():
        changed[where] = value
    if not isinstance(batch, tuple):
        return changed
    if hasattr(batch, "_fields"):
        return type(batch)(*changed)
    return tuple(changed)


def _class_labels(owner: str, labels: Any) -> jax.Array:
    y = jnp.asarray(labels)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(
            f"{owner} needs integer class labels (not one-hot or soft), got {y.dtype}"
        )
    return y


def _check_fits(owner: str, name: str, value: int, dtype: Any) -> None:
    limits = jnp.iinfo(dtype)
    if not limits.min <= value <= limits.max:
        raise ValueError(f"{owner} needs {name} to fit {dtype}, got {name}={value}")


def _integer(
    owner: str, name: str, value: int, *, low: int = 0, high: int | None = None
) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner} needs an integer {name}, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{owner} needs an integer {name}, got {value!r}")
    if number < low or (high is not None and number >= high):
        limit = f"{name} >= {low}" if high is None else f"{low} <= {name} < {high}"
        raise ValueError(f"{owner} needs {limit}, got {name}={value}")
    return number
