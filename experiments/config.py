"""What a run is: `Config`, and the tables that turn its names into functions.

A name may carry options as keyword arguments, and rules nest as they do in Python:
"ctma(nnm(median))", "empire(scale=0.1)", "dirichlet(alpha=0.1)", "momentum(decay=0.5)".
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

import byzjax
from experiments import models

Table = Mapping[str, Callable[..., Any]]

# f is filled in by the configuration wherever a rule has `num_byzantine`.
RULES: Table = {
    name: getattr(byzjax, name)
    for name in (
        *("mean", "median", "trimmed_mean", "meamed", "phocas", "sign_majority"),
        *("krum", "multi_krum", "medoid", "bulyan", "mda", "smea", "monna", "aksel"),
        *("cge", "caf", "dnc", "centered_clipping", "foolsgold", "signguard"),
        *("clipped_clustering", "flame", "ctma", "nnm", "clipping", "arc"),
    )
} | {
    # As in the authors' code: three steps of smoothed Weiszfeld from zero.
    "geometric_median": functools.partial(
        byzjax.geometric_median, smoothing=0.1, num_iterations=3, init="zeros"
    ),
    "bucketing": functools.partial(byzjax.bucketing, bucket_size=2),
}

# An attack on the messages, a poison of the data, or None.
ATTACKS: Table = {
    "none": lambda: None,
    "label_flip": functools.partial(byzjax.poisoning.label_flip, 10, labels="label"),
    "little": byzjax.attacks.alie,
    # ε = 0.5, the default on the authors' command line; their class has 0.1.
    "empire": functools.partial(byzjax.attacks.ipm, scale=0.5),
} | {
    name: getattr(byzjax.attacks, name)
    for name in (
        *("sign_flip", "scaled_sign_flip", "alie", "ipm", "mimic", "min_max"),
        *("min_sum", "small_perturbation", "anti_cge", "fang", "rop", "gaussian"),
        *("constant", "random_garbage", "free_rider", "infinity", "nan"),
    )
}


def _sgd(learning_rate):
    return optax.identity(), optax.sgd(learning_rate)


def _momentum(learning_rate, *, decay=0.9):
    return byzjax.momentum(decay), optax.sgd(learning_rate)


def _mu2sgd(learning_rate, *, beta=byzjax.authors_beta, mixing=byzjax.authors_mixing):
    server = byzjax.anytime(optax.sgd(learning_rate), weight=1.0, mixing=mixing)
    return byzjax.storm(beta), server


def _mu2sgd_paper(learning_rate):
    return byzjax.storm(), byzjax.anytime(optax.sgd(learning_rate))


# What a worker does to its gradient, and what the server does to the aggregate.
OPTIMIZERS: Table = {
    "momentum": _momentum,
    # As the authors' code has it: rounded and floored schedules, w moves by η.
    "mu2sgd": _mu2sgd,
    # As the paper has it: β = 1/t, w moves by η·t. Wants smaller learning rates.
    "mu2sgd_paper": _mu2sgd_paper,
    "sgd": _sgd,
}


def _splitter(split: Callable[..., list[np.ndarray]]) -> Callable[..., Any]:
    """Options → (labels, num_workers → indices of each worker, the same every time)."""

    def factory(**options):
        if "rng" in inspect.signature(split).parameters:
            options["rng"] = np.random.default_rng(0)
        inspect.signature(split).bind([], 1, **options)  # Wrong options fail here.

        def parts(labels, num_workers):
            return split(labels, num_workers, **options)

        return parts

    return factory


# None: every worker draws from all of the training set, as in the paper.
PARTITIONS: Table = {"iid": lambda: None} | {
    name: _splitter(getattr(byzjax.partition, name))
    for name in ("dirichlet", "gamma_similarity", "extreme", "shards")
}


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
        for name, table in (("dataset", models.DATASETS), ("model", models.NETWORKS)):
            _check_name(name, getattr(self, name), table)
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
        for name in ("attack", "rule", "optimizer", "partition"):
            self._set(name, ast.unparse(_parse(name, getattr(self, name))))
        self.parts()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def parts(self) -> Parts:
        """The functions that the names stand for."""
        sent = make("attack", self.attack, ATTACKS)
        attacks = isinstance(sent, byzjax.Attack)
        worker, server = make(
            "optimizer", self.optimizer, OPTIMIZERS, first=self.learning_rate
        )
        return Parts(
            rule=make("rule", self.rule, RULES, f=self.num_byzantine),
            attack=sent if attacks else None,
            poison=None if attacks else sent,
            worker=worker,
            server=server,
            split=make("partition", self.partition, PARTITIONS),
        )

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


def _check_name(field: str, name: Any, table: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or name not in table:
        raise ValueError(
            f"Config needs {field} to be one of {', '.join(sorted(table))}; "
            f"got {field}={name!r}"
        )


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


def _parse(field: str, text: Any) -> ast.expr:
    """A name, or name(inner, option=value), as a tree with its options in order."""
    problem = (
        f'Config needs {field} to be like "name" or "name(option=1.0)", '
        f"got {field}={text!r}"
    )
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(problem) from None
    for part in _calls(node):
        if not isinstance(part, ast.Name):
            if not isinstance(part, ast.Call) or not isinstance(part.func, ast.Name):
                raise ValueError(problem)
            part.keywords.sort(key=lambda keyword: keyword.arg or "")
            if not part.args and not part.keywords:
                raise ValueError(f"{problem}: leave out the empty brackets")
    return node


def _calls(node: ast.expr) -> Iterable[ast.expr]:
    yield node
    for inner in node.args if isinstance(node, ast.Call) else ():
        yield from _calls(inner)


def make(
    field: str, text: str, table: Table, *, first: Any = None, f: int | None = None
) -> Any:
    """Calls what a text names; the innermost is given `first`, rules are given f."""

    def build(node):
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = getattr(call.func, "id", "")
        _check_name(field, name, table)
        factory = table[name]
        inner = [build(argument) for argument in call.args]
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if f is not None and "num_byzantine" in inspect.signature(factory).parameters:
            options.setdefault("num_byzantine", f)
        if first is not None and not inner:
            inner = [first]
        return factory(*inner, **options)

    try:
        return build(_parse(field, text))
    except (TypeError, ValueError) as error:
        if str(error).startswith("Config needs"):
            raise
        raise ValueError(
            f"Config needs a valid {field}, got {field}={text!r}: {error}"
        ) from None
