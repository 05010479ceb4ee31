"""The grid that the paper's figures share: rules, optimizers, panels."""

import dataclasses

from experiments import plot
from experiments.config import Config, grid

METAS = ("{}", "bucketing({})", "nnm({})", "ctma({})", "ctma(nnm({}))")
BASES = ("median", "geometric_median")
OPTIMIZERS = ("momentum", "mu2sgd")
RULES = [meta.format(base) for base in BASES for meta in METAS]


def quiet(start: Config | None = None, **fields) -> list[Config]:
    """The mean where nobody attacks, of a grid of fields: lines to compare with."""
    start = dataclasses.replace(
        start or Config(), num_byzantine=0, attack="none", rule="mean"
    )
    return grid(start, **fields)


def mnist(
    attacks, *, num_byzantine=8, optimizers=OPTIMIZERS, rules=RULES
) -> list[Config]:
    """Conf. 1 of the paper under some attacks, and where nobody attacks."""
    return quiet(optimizer=optimizers) + grid(
        Config(num_byzantine=num_byzantine),
        attack=attacks,
        optimizer=optimizers,
        rule=rules,
    )


def panels(results, title: str):
    """A row an optimizer, a column an attack and base rule, a line a rule."""
    return plot.curves(
        results,
        rows=lambda config: config.optimizer,
        columns=lambda config: f"{config.attack}, {plot.base_of(config.rule)}",
        lines=lambda config: plot.meta_of(config.rule),
        title=title,
    )
