"""What the names of a configuration stand for, and names of one's own: `register`."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments import data, models
from experiments.names.attacks import ATTACKS, Dishonesty, dishonesty
from experiments.names.language import check_name, make, parse
from experiments.names.optimizers import OPTIMIZERS
from experiments.names.partitions import PARTITIONS
from experiments.names.rules import RULES

__all__ = [
    "ATTACKS",
    "OPTIMIZERS",
    "PARTITIONS",
    "RULES",
    "Dishonesty",
    "check_name",
    "dishonesty",
    "make",
    "parse",
    "register",
]

Factories = Mapping[str, Callable[..., Any]]


def register(
    *,
    datasets: Mapping[str, Any] | None = None,
    models: Factories | None = None,
    rules: Factories | None = None,
    attacks: Factories | None = None,
    optimizers: Factories | None = None,
    partitions: Factories | None = None,
) -> None:
    """Gives names to data sets, networks, rules, … of one's own.

    A name stands for what is behind it: finished runs are kept by name, and a rule that
    was changed wants another name, or another `--out`. Factories may take options,
    which are written behind the name, and are given what they ask for by name:
    `num_byzantine`, `learning_rate`, `num_classes`, `aggregator` (the server's rule).

    Args:
      datasets: name → a `Dataset`, or a function that returns one when it is needed.
      models: name → a Flax module with a field `classes`, called with (inputs, train).
      rules: name → a function that returns a `byzjax.Aggregator`.
      attacks: name → a function that returns a `byzjax.Attack`, a function batch →
        batch that poisons the data, `Dishonesty` with both, or None.
      optimizers: name → a function of `learning_rate` that returns two optax
        transformations, the workers' and the server's.
      partitions: name → a function that returns one: labels, number of workers →
        indices of each worker.

    Raises:
      ValueError: a name that is taken, or is none.
      TypeError: something that is not callable.

    Example:
      >>> import byzjax
      >>> from experiments.config import Config
      >>> from experiments.names import register
      >>> register(rules={"trimmed": lambda share: byzjax.trimmed_mean(share)})
      >>> Config(rule="ctma(trimmed(share=4))").rule
      'ctma(trimmed(share=4))'
    """
    for kind, given, table in (
        ("datasets", datasets, data.SETS),
        ("models", models, _networks()),
        ("rules", rules, RULES),
        ("attacks", attacks, ATTACKS),
        ("optimizers", optimizers, OPTIMIZERS),
        ("partitions", partitions, PARTITIONS),
    ):
        for name, factory in (given or {}).items():
            _check(kind, name, factory, table)
            table[name] = data.named(name, factory) if kind == "datasets" else factory


def _networks() -> dict[str, Any]:
    return models.NETWORKS


def _check(kind: str, name: Any, factory: Any, table: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"register needs {kind} to have names, got {name!r}")
    if name in table:
        raise ValueError(f"register needs names that are free, got {kind}: {name!r}")
    if not callable(factory) and not isinstance(factory, data.Dataset):
        raise TypeError(
            f"register needs {kind} to be functions, got {name}={factory!r}"
        )
