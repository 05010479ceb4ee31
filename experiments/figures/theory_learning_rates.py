"""Theorem 4.2 in practice: excess loss against the learning rate, on convex problems.

Claim: μ²-SGD works over a wide range of learning rates, wider the longer the run;
momentum (0.9) wants the right one, and under some attacks there is none. To work is to
end below a hundredth of the excess loss at the start.
"""

import numpy as np

from experiments.figures import theory
from experiments.theory_chart import Chart, Line, spread

CLAIM = "μ²-SGD works over a wide range of learning rates that grows with T"


def cases():
    return theory.cases({"none": 0} | theory.ATTACKS)


def decades(rates, excess, level):
    """log₁₀ of the width of the rates with an excess below a level, interpolated."""
    fine = np.linspace(np.log10(rates[0]), np.log10(rates[-1]), 2001)
    below = np.interp(fine, np.log10(rates), np.log10(excess)) < np.log10(level)
    return below.mean() * (fine[-1] - fine[0])


def chart(measured):
    def lines(each):
        name, rates = theory.NAMES[each.case.optimizer], np.array(each.case.rates)
        times = each.case.times()
        for when, share in (("after T", 1), ("after T/16", 16)):
            index = np.abs(times - each.case.steps / share).argmin()
            excess = each.excess[:, :, index]
            level = each.excess[0, 0, 0] / 100  # At x_1, the same for all.
            wide = np.array([decades(rates, seed, level) for seed in excess])
            yield Line(f"{name}, {when}", rates, excess, spread(wide, ".1f"))

    return Chart(
        title=theory.title("Excess loss and learning rate", measured),
        x="η·L",
        y="f(x) − f(x*)",
        note="decades of η that work",
        panels=theory.panels(measured, lines),
    )
