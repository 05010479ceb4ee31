"""Learning rates over which momentum and μ²-SGD still work, 8 of 17 Byzantine, MNIST.

Claim: μ²-SGD works over a wider range of learning rates than momentum (Theorem 4.2: the
right rate needs neither the noise level, nor the horizon, nor the number of attackers).
"""

from experiments import plot as plots
from experiments.config import Config, grid
from experiments.figures import common

CLAIM = "μ²-SGD works over a wider range of learning rates than momentum"
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def configs():
    return grid(
        Config(rule="ctma(median)"),
        attack=["sign_flip", "label_flip"],
        optimizer=common.OPTIMIZERS,
        learning_rate=RATES,
    )


def plot(results):
    return plots.sweep(
        results,
        along=lambda config: config.learning_rate,
        rows=lambda config: config.rule,
        columns=lambda config: config.attack,
        lines=lambda config: config.optimizer,
        title="Final accuracy and learning rate",
        label="learning rate",
    )
