"""Figure 5: empire and little, 8 of 17 Byzantine, MNIST.

Claim: CTMA does poorly, since it relies on the variance between workers in which these
attacks hide; NNM does very well; μ²-SGD is more robust than momentum, with NNM and
without. Empire's ε is 0.5, the default of the authors' command line.
"""

from experiments.figures import common

CLAIM = "CTMA does poorly, NNM very well, μ²-SGD is more robust than momentum"


def configs():
    return common.mnist(["empire", "little"])


def plot(results):
    return common.panels(results, "Figure 5: empire and little")
