"""Theorem 4.2 in practice: excess loss against δ, on convex problems.

Claim: what the attackers cost grows with their share δ, but for μ²-SGD it is a factor
on an excess loss that vanishes, at the same learning rate for every δ; for momentum
(0.9) it is a level at which training stops.
"""

import numpy as np

from experiments.figures import theory
from experiments.plot import pretty
from experiments.theory import Measured
from experiments.theory_chart import Chart, Line, Panel, slope

CLAIM = "attackers cost μ²-SGD a factor that grows with δ, momentum a plateau"


def cases():
    found = theory.cases({"none": 0})
    for f in (2, 4, 6, 8):
        found += theory.cases(dict.fromkeys(theory.ATTACKS, f))
    return found


def chart(measured):
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for each in measured:
        if each.case.num_byzantine:
            case = each.case
            key = case.problem, pretty(case.attack), case.optimizer
            groups.setdefault(key, []).append(each)
    if not groups:
        raise ValueError("theory_byzantine needs cases with num_byzantine >= 1, got 0")
    found: dict[tuple[str, str], list[Line]] = {}
    for (problem, attack, optimizer), group in groups.items():
        alone = [
            each
            for each in measured
            if (each.case.problem, each.case.optimizer) == (problem, optimizer)
            and not each.case.num_byzantine
        ]
        lines = _lines(optimizer, alone + group)
        found.setdefault((problem, attack), []).extend(lines)
    return Chart(
        title=theory.title("Excess loss and the share of attackers", measured),
        x="share of attackers δ",
        y="f(x) − f(x*)",
        note="slope over δ > 0",
        panels=[Panel(*place, lines) for place, lines in found.items()],
        log_x=False,
    )


def _lines(optimizer, group):
    group = sorted(group, key=lambda each: each.case.num_byzantine)
    delta = [each.case.num_byzantine / each.case.num_workers for each in group]
    last = [each.excess[:, :, -1] for each in group]  # [seeds, rates] each
    fixed = [y[:, each.at(theory.RATE)] for each, y in zip(group, last, strict=True)]
    if optimizer == "mu2sgd":
        steps = group[0].case.steps
        falling = [
            y[:, each.at(theory.RATE / steps)]
            for each, y in zip(group, last, strict=True)
        ]
        found = {"μ²-SGD, η = 1/(4LT)": falling, "μ²-SGD, η = 1/(4L)": fixed}
    else:
        best = [y[:, y.mean(0).argmin()] for y in last]
        found = {"momentum, η = 1/(4L)": fixed, "momentum, best η": best}
    for name, excess in found.items():
        x, y = np.array(delta), np.stack(excess, axis=1)
        yield Line(name, x, y, slope(x, y, x > 0))
