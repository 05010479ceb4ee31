"""Theorem 4.1 in practice: the error of the corrected momentum, on convex problems.

Claim: ‖d_t − ∇f(x_t)‖² shrinks as 1/t for each honest worker, and with it that of the
robust aggregate, while the error of ordinary momentum (0.9) stays at a fixed share of
the noise. Both with the one learning rate η = 1/(4L).
"""

from experiments.figures import theory
from experiments.theory_chart import Chart, Line, slope

CLAIM = "the corrected momentum's error shrinks as 1/t, ordinary momentum's does not"


def cases():
    return theory.cases({"none": 0} | theory.ATTACKS)


def chart(measured):
    def lines(each):
        name, times = theory.NAMES[each.case.optimizer], each.case.times()
        late = times >= each.case.steps / 64
        for what, errors in (
            ("a worker", each.worker_error),
            ("aggregate", each.aggregate_error),
        ):
            errors = errors[:, each.at(theory.RATE)]
            yield Line(f"{name}, {what}", times, errors, slope(times, errors, late))

    return Chart(
        title=theory.title(
            "Squared error of the momentum and of its aggregate", measured
        ),
        x="step t",
        y="‖d − ∇f‖²",
        note="slope over the last 64-fold",
        panels=theory.panels(measured, lines),
        guide=-1,
    )
