"""Learning rates by the authors' own protocol: a convolutional network on MNIST.

As `mu2sgd_convex`, with their network (conv 20 – conv 50 – dense 50 – batch norm –
dense 10), their fixed coefficients γ = 0.1 and β = 0.9, and no projection.

Claim: μ²-SGD works over a wider range of learning rates than momentum, SGD, and its own
halves alone.
"""

from experiments.figures import mu2sgd_convex

CLAIM = "by the authors' protocol μ²-SGD works over the widest range, a network"
OPTIMIZERS = [
    "momentum",
    "mu2sgd(beta=0.9, mixing=0.1)",
    "sgd",
    "storm(beta=0.9)",
    "anytime(mixing=0.1)",
]


def configs():
    return mu2sgd_convex.protocol("lenet", OPTIMIZERS)


def plot(results):
    return mu2sgd_convex.draw(results, "The authors' protocol: a network")
