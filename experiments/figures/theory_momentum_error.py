"""Theorem 4.1 in practice: the error of the corrected momentum, on convex problems.

Claim: ‖d_t − ∇f(x_t)‖² shrinks as 1/t for each honest worker, and with it that of the
robust aggregate, while the error of ordinary momentum (0.9) stays at a fixed share of
the noise. μ²-SGD with η = 1/(4LT), so that its last and longest step is 1/(4L), the
step of momentum; beside it, μ²-SGD with η = 1/(4L).
"""

from experiments.figures import theory
from experiments.theory_chart import Chart, Line, slope

CLAIM = "the corrected momentum's error shrinks as 1/t, ordinary momentum's does not"


def cases():
    return theory.cases({"none": 0} | theory.ATTACKS)


def chart(measured):
    def lines(each):
        times, steps = each.case.times(), each.case.steps
        fixed, falling = each.at(theory.RATE), each.at(theory.RATE / steps)
        workers, aggregate = each.worker_error, each.aggregate_error
        if each.case.optimizer == "mu2sgd":
            found = {
                "μ²-SGD, a worker": workers[:, falling],
                "μ²-SGD, aggregate": aggregate[:, falling],
                "μ²-SGD at 1/(4L), a worker": workers[:, fixed],
            }
        else:
            found = {
                "momentum, a worker": workers[:, fixed],
                "momentum, aggregate": aggregate[:, fixed],
            }
        for name, errors in found.items():
            yield Line(name, times, errors, slope(times, errors, times >= steps / 64))

    return Chart(
        title=theory.title("Squared error of momentum and aggregate", measured),
        x="step t",
        y="‖d − ∇f‖²",
        note="slope over the last 64-fold",
        panels=theory.panels(measured, lines),
        guide=-1,
    )
