"""Theorem 4.2 in practice: excess loss against T, on convex problems.

Claim: μ²-SGD with one learning rate from the smoothness alone converges for every
horizon, attack and noise; momentum (0.9) with a fixed rate stops at a level of noise,
and the best rate for each T, known only afterwards, does not undo what attackers do.
Two readings of "from the smoothness alone": η = 1/(4LT), whose steps η·t stay within
1/(4L), and η = 1/(4L), which knows no horizon.
"""

import numpy as np

from experiments.figures import theory
from experiments.theory_chart import Chart, Line, slope

CLAIM = "with a learning rate from L alone μ²-SGD converges, momentum stops at a level"


def cases():
    return theory.cases({"none": 0} | theory.ATTACKS)


def chart(measured):
    def lines(each):
        times = each.case.times()
        fixed = times, each.excess[:, each.at(theory.RATE)]
        if each.case.optimizer == "mu2sgd":
            found = {
                "μ²-SGD, η = 1/(4LT)": _falling(each),
                "μ²-SGD, η = 1/(4L)": fixed,
            }
        else:
            best = each.excess.mean(0).argmin(0)  # Of all rates, for each T.
            found = {
                "momentum, η = 1/(4L)": fixed,
                "momentum, best η": (times, each.excess[:, best, range(len(times))]),
            }
        for name, (x, y) in found.items():
            yield Line(name, x, y, slope(x, y, x >= each.case.steps / 64))

    return Chart(
        title=theory.title("Excess loss after T steps", measured),
        x="steps T",
        y="f(x) − f(x*)",
        note="slope over the last 64-fold",
        panels=theory.panels(measured, lines),
        guide=-1,
    )


def _falling(each):
    """With a rate of 1/(4LT) for each T: those of which there is such a rate."""
    times, rates = each.case.times(), np.array(each.case.rates)
    i, k = np.nonzero(np.isclose(rates[:, None] * times, theory.RATE))
    k, i = k[np.argsort(k)], i[np.argsort(k)]
    return times[k], each.excess[:, i, k]
