"""Figure 4: sign flip and label flip, 4 of 17 Byzantine, MNIST.

Claim: with few attackers momentum is noisier but does better than μ²-SGD; CTMA improves
both.
"""

from experiments.figures import common

CLAIM = "momentum is noisier but better than μ²-SGD; CTMA improves both"


def configs():
    return common.mnist(["sign_flip", "label_flip"], num_byzantine=4)


def plot(results):
    return common.panels(results, "Figure 4: sign flip and label flip, fewer attackers")
