"""Heterogeneous data: a Dirichlet split of MNIST over the workers, 4 of 17 Byzantine.

Claim: the less the workers' data have in common, the less a base rule alone is worth;
mixing first, by NNM or bucketing, keeps most of the accuracy. CTMA, made for workers
that draw from one distribution, does not.
"""

from experiments import plot as plots
from experiments.config import Config, grid
from experiments.figures import common

CLAIM = "NNM and bucketing hold where workers' data differ, CTMA does not"
ALPHAS = (0.1, 0.3, 1.0, 10.0)


def configs():
    partitions = [f"dirichlet(alpha={alpha})" for alpha in ALPHAS]
    return common.quiet(partition=partitions) + grid(
        Config(num_byzantine=4),
        attack=["sign_flip", "little"],
        partition=partitions,
        rule=[meta.format("median") for meta in common.METAS],
    )


def plot(results):
    return plots.sweep(
        results,
        along=lambda config: float(config.partition.split("=")[1].rstrip(")")),
        rows=lambda config: config.optimizer,
        columns=lambda config: config.attack,
        lines=lambda config: plots.meta_of(config.rule),
        title="Over the median, on a Dirichlet split of the data",
        label="α: more alike →",
    )
