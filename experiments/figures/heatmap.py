"""Attack × rule × optimizer × number of attackers: who is best in the worst case?

Claim: no rule is best under every attack. The rule with the best worst case has NNM in
it, and with almost half of the workers Byzantine it matters more than the optimizer.
Most of its runs are among those of figures 3 to 5.
"""

from experiments import heat_map
from experiments.figures import common

CLAIM = "no rule is best everywhere; the best worst case has NNM in it"
ATTACKS = ["sign_flip", "label_flip", "empire", "little"]
RULES = ["mean", *(meta.format("median") for meta in common.METAS)]


def configs():
    return [
        config
        for f in (4, 8)
        for config in common.mnist(ATTACKS, num_byzantine=f, rules=RULES)
        if config.num_byzantine  # A column is an attack.
    ]


def plot(results):
    return heat_map.draw(
        results,
        rows=lambda config: config.rule,
        columns=lambda config: config.attack,
        panels=lambda config: (
            f"{config.optimizer}, {config.num_byzantine}/{config.num_workers} Byzantine"
        ),
        title="Final test accuracy; bold: a best worst case beyond the spread",
    )
