"""Figure 2: μ²-SGD against standard momentum (Conf. 1: 8 of 17 Byzantine, MNIST).

Claim: μ²-SGD reaches at least the accuracy of momentum, and is steadier from
evaluation to evaluation, above all without a meta-aggregator. Its runs are among those
of figure 3.
"""

from experiments import plot as plots
from experiments.figures import common

CLAIM = "μ²-SGD is at least as accurate as momentum, and steadier"


def configs():
    rules = [meta.format(base) for base in common.BASES for meta in ("{}", "ctma({})")]
    return common.mnist(["sign_flip", "label_flip"], rules=rules)


def plot(results):
    return plots.curves(
        results,
        rows=lambda config: config.attack,
        columns=lambda config: config.rule,
        lines=lambda config: config.optimizer,
        title="Figure 2: momentum and μ²-SGD",
    )
