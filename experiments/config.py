"""What a run is: `Config`, and `grid`. `experiments.names` knows what its names mean.

A name may carry options as keyword arguments, and rules nest as they do in Python:
"ctma(nnm(median))", "empire(scale=0.1)", "dirichlet(alpha=0.1)", "momentum(decay=0.5)".
"""

import ast
import dataclasses
import hashlib
import itertools
import json
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import optax
from flax import linen as nn

import byzjax
from experiments import data, models, names


class Parts(NamedTuple):
    """What the names of a `Config` stand for."""

    rule: byzjax.Aggregator
    attack: byzjax.Attack | None
    poison: Callable[..., Any] | None
    worker: optax.GradientTransformation
    server: optax.GradientTransformation
    split: Callable[..., list[np.ndarray]] | None


@dataclasses.dataclass(frozen=True)
class Config:
    """One run but for its seed; the defaults are the paper's (Conf. 1).

    Raises:
      ValueError: a name that is in no table, options that its function refuses, a
        number out of range.
    """

    dataset: str = "mnist"
    model: str = "convnet"
    num_workers: int = 17
    num_byzantine: int = 8
    batch_size: int = 4
    steps: int = 882  # One epoch of 17 workers × 4 images.
    eval_every: int = 98
    attack: str = "sign_flip"
    rule: str = "ctma(median)"
    optimizer: str = "momentum"
    learning_rate: float = 0.1
    max_grad_norm: float | None = 2.0
    partition: str = "iid"

    def __post_init__(self) -> None:
        names.check_name("dataset", self.dataset, data.SETS)
        for name in ("num_workers", "batch_size", "steps", "eval_every"):
            self._set(name, _at_least(1, name, getattr(self, name)))
        self._set("num_byzantine", _at_least(0, "num_byzantine", self.num_byzantine))
        if self.num_byzantine >= self.num_workers:
            raise ValueError(
                "Config needs num_byzantine < num_workers, got num_byzantine="
                f"{self.num_byzantine} and num_workers={self.num_workers}"
            )
        if self.steps % self.eval_every:
            raise ValueError(
                "Config needs steps to be a multiple of eval_every, got "
                f"steps={self.steps} and eval_every={self.eval_every}"
            )
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None or name == "learning_rate":
                self._set(name, _positive(name, value))
        for name in ("model", "attack", "rule", "optimizer", "partition"):
            self._set(name, ast.unparse(names.parse(name, getattr(self, name))))
        # How many classes data of one's own have is known when they are read.
        classes = models.DATASETS.get(self.dataset, (None, 2**15))[1]
        self.parts(classes)
        self.network(classes)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def parts(self, classes: int = 10) -> Parts:
        """The functions that the names stand for, for data of so many classes."""
        f = self.num_byzantine
        rule = names.make("rule", self.rule, names.RULES, num_byzantine=f)
        attack = names.make(
            *("attack", self.attack, names.ATTACKS),
            **dict(num_byzantine=f, num_classes=classes, aggregator=rule),
        )
        worker, server = names.make(
            *("optimizer", self.optimizer, names.OPTIMIZERS),
            learning_rate=self.learning_rate,
        )
        split = names.make(
            "partition", self.partition, names.PARTITIONS, num_byzantine=f
        )
        return Parts(rule, *names.dishonesty(attack), worker, server, split)

    def network(self, classes: int) -> nn.Module:
        """The network for data of so many classes."""
        return names.make("model", self.model, models.NETWORKS, classes=classes)

    def digest(self) -> str:
        """Twelve hexadecimal digits, the same on every machine for the same values."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        values = dataclasses.asdict(self).values()
        return " ".join(str(value) for value in values)


def grid(start: Config | None = None, **fields: Iterable[Any]) -> list[Config]:
    """Every combination of the values of some fields, the others as in `start`.

    Example:
      >>> from experiments.config import grid
      >>> two = grid(attack=["little", "empire(scale=0.1)"], rule=["nnm(median)"])
      >>> [config.attack for config in two]
      ['little', 'empire(scale=0.1)']
    """
    return [
        dataclasses.replace(start or Config(), **dict(zip(fields, values, strict=True)))
        for values in itertools.product(*fields.values())
    ]


def _at_least(low: int, field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(
            f"Config needs {field} to be an integer >= {low}, got {field}={value!r}"
        )
    return operator.index(value)


def _positive(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Config needs {field} to be a number, got {field}={value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(
            f"Config needs {field} to be positive and finite, got {field}={value}"
        )
    return float(value)
