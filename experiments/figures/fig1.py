"""Figure 1: CTMA against the other meta-aggregators (Conf. 1: 8 of 17, MNIST).

Claim: over the same base rule CTMA is at least as good as bucketing and as NNM, under
sign flip and label flip. Its runs are among those of figure 3.
"""

from experiments.figures import common

CLAIM = "CTMA is at least as good as bucketing and NNM over the same base rule"


def configs():
    metas = [meta for meta in common.METAS if meta != "ctma(nnm({}))"]
    rules = [meta.format(base) for base in common.BASES for meta in metas]
    return common.mnist(["sign_flip", "label_flip"], rules=rules)


def plot(results):
    return common.panels(results, "Figure 1: CTMA and the other meta-aggregators")
