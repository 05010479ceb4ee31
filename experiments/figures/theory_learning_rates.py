"""Theorem 4.2 in practice: excess loss against the learning rate, on convex problems.

Claim: μ²-SGD works over a wide range of learning rates, wider the longer the run;
momentum (0.9) wants the right one, which depends on the length of the run.
"""

import numpy as np

from experiments.figures import theory
from experiments.theory_chart import Chart, Line

CLAIM = "μ²-SGD works over a range of learning rates that grows with T, momentum's not"


def cases():
    return theory.cases({"none": 0} | theory.ATTACKS)


def decades(rates, excess):
    """log₁₀ of the widest range of rates that are within 10 times the best."""
    good = excess <= 10 * excess.min()
    runs = np.split(np.arange(len(rates)), np.flatnonzero(np.diff(good)) + 1)
    return max(np.log10(rates[r[-1]] / rates[r[0]]) for r in runs if good[r[0]])


def chart(measured):
    def lines(each):
        name, rates = theory.NAMES[each.case.optimizer], np.array(each.case.rates)
        times = each.case.times()
        for when, share in (("after T", 1), ("after T/16", 16)):
            index = np.abs(times - each.case.steps / share).argmin()
            excess = each.excess[:, :, index]
            wide = decades(rates, excess.mean(0))
            yield Line(f"{name}, {when}", rates, excess, f"{wide:.1f}")

    return Chart(
        title=theory.title("Excess loss and learning rate", measured),
        x="η·L",
        y="f(x) − f(x*)",
        note="decades of η within 10× of the best",
        panels=theory.panels(measured, lines),
    )
