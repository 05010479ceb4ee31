"""Theorem 4.2 in practice: excess loss against T, on convex problems.

Claim: μ²-SGD with one learning rate from the smoothness alone, η = 1/(4L), converges
for every horizon, attack and noise; momentum (0.9) with a fixed rate stops at a level
of noise, and even the best rate for each T, known only afterwards, does not do better.
"""

from experiments.figures import theory
from experiments.theory_chart import Chart, Line, slope

CLAIM = "one learning rate from L alone converges for all T; momentum's plateaus"


def cases():
    return theory.cases({"none": 0} | theory.ATTACKS)


def chart(measured):
    def lines(each):
        name, times = theory.NAMES[each.case.optimizer], each.case.times()
        late = times >= each.case.steps / 64
        best = each.excess.mean(0).argmin(0)  # Of all rates, for each T.
        for which, excess in (
            ("η = 1/(4L)", each.excess[:, each.at(theory.RATE)]),
            ("best η", each.excess[:, best, range(len(times))]),
        ):
            yield Line(f"{name}, {which}", times, excess, slope(times, excess, late))

    return Chart(
        title=theory.title("Excess loss after T steps", measured),
        x="steps T",
        y="f(x) − f(x*)",
        note="slope over the last 64-fold",
        panels=theory.panels(measured, lines),
        guide=-1,
    )
