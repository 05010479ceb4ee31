"""Figure 3: sign flip and label flip, 8 of 17 Byzantine, MNIST.

Claim: CTMA improves both optimizers and is at least as good as the other
meta-aggregators; NNM and CTMA together can improve further; μ²-SGD is stable even
without a meta-aggregator, momentum is not.
"""

from experiments.figures import common

CLAIM = "CTMA improves both optimizers; μ²-SGD is stable without it, momentum is not"


def configs():
    return common.mnist(["sign_flip", "label_flip"])


def plot(results):
    return common.panels(results, "Figure 3: sign flip and label flip")
