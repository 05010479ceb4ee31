"""The paper's claims on CIFAR-10: its convnet, 8 of 17 Byzantine.

Claim: what figures 3 and 5 say of MNIST holds on harder data: CTMA helps under sign
flip, NNM under little. Its 735 steps are one epoch.
"""

from experiments.config import Config, grid
from experiments.figures import common

CLAIM = "CTMA helps under sign flip and NNM under little, as on MNIST"


def configs():
    start = Config(dataset="cifar10", steps=735, eval_every=147)
    return common.quiet(start, optimizer=common.OPTIMIZERS) + grid(
        start,
        attack=["sign_flip", "little"],
        optimizer=common.OPTIMIZERS,
        rule=[meta.format("median") for meta in common.METAS],
    )


def plot(results):
    return common.panels(results, "The claims on CIFAR-10")
