"""*Bucketing* in its authors' settings: MNIST sorted by label, 5 of 25 Byzantine.

Karimireddy, He, Jaggi, *Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing*, 2022 (arXiv 2006.09365), and their code: 600 steps of batches of 32 a
worker, honest data cut into 20 blocks, attackers' drawn from all; undamped momentum
m ← β m + g, of which attackers who flip signs or labels send the plain gradient.

Claim: where workers' data differ every rule fails under some attack, and averaging
random pairs of messages first brings most of the accuracy back; momentum as well.

Their code sets the radius of centered clipping to 10 / (1 − β). Its bit flip is the
negative gradient, its Krum sums fourth powers of distances. Its simulator puts the
random state back after each worker, so that all drop the same units in all steps. Its
epochs draw without replacement, which is the one thing that is not so here.
"""

import re

from experiments import heat_map
from experiments.config import Config, grid

CLAIM = "with sorted data bucketing brings back what attacks take from every rule"
START = Config(
    model="dropout_net(same_masks=True)",
    num_workers=25,
    num_byzantine=5,
    batch_size=32,
    steps=600,
    eval_every=30,
    optimizer="sgd",
    learning_rate=0.01,
    max_grad_norm=None,
    partition="among_honest(extreme)",
)
RULES = {
    "krum": "krum(squared='twice')",
    "median": "median",
    "geometric_median": "geometric_median(num_iterations=8)",
    "centered_clipping": "centered_clipping(num_iterations=3, radius={radius})",
}
ATTACKS = {
    "mimic": "mimic(warmup=1)",
    "ipm": "ipm(scale=0.1)",
    "alie": "alie",
    "bit_flip": "sign_flip",
    "label_flip": "label_flip",
}


def cell(attack: str, rule: str, beta: float = 0.0, bucket: int = 0) -> Config:
    """One of the table: names of the tables above, β, and the size of a bucket or 0."""
    rule = RULES.get(rule, rule).format(radius=round(10 / (1 - beta), 6))
    sent = ATTACKS[attack]
    if beta and attack in ("bit_flip", "label_flip"):
        sent = f"without_momentum({sent}, decay={beta})"
    (config,) = grid(
        START,
        attack=[sent],
        rule=[f"bucketing({rule}, bucket_size={bucket})" if bucket else rule],
        optimizer=[f"heavy_ball(decay={beta})" if beta else "sgd"],
    )
    return config


def configs():
    """All cells; in front the sixteen that tell most."""
    clipping = "centered_clipping"
    order = (clipping, "krum", "geometric_median", "median")
    first = [cell("mimic", "mean")]
    first += [cell("mimic", rule, 0.0, s) for rule in order for s in (0, 2)]
    first += [cell(attack, clipping, 0.9, 2) for attack in ATTACKS]
    first += [cell(attack, clipping, 0.9, 0) for attack in ("ipm", "alie")]
    return list(dict.fromkeys([*first, *cells()]))


def cells() -> list[Config]:
    """The mean under mimic, and every attack, rule, β and bucket."""
    return [cell("mimic", "mean")] + [
        cell(attack, rule, beta, s)
        for beta in (0.0, 0.9)
        for rule in RULES
        for s in (0, 2)
        for attack in ATTACKS
    ]


def plot(results):
    """Means of the last five evaluations, as in the paper's tables."""
    order = {config: place for place, config in enumerate(cells())}
    return heat_map.draw(
        sorted(results, key=lambda result: order.get(result.config, len(order))),
        rows=rule,
        columns=attack,
        panels=lambda config: "β = 0.9" if "heavy" in config.optimizer else "β = 0",
        title="The settings of Bucketing: accuracy over the last five evaluations",
        last=5,
    )


def rule(config: Config) -> str:
    """krum, or krum in buckets of 2."""
    inner = config.rule.removeprefix("bucketing(")
    name = re.split(r"[(,]", inner)[0]
    return name if inner == config.rule else f"{name} in buckets"


def attack(config: Config) -> str:
    """Its name in the paper."""
    inner = config.attack.removeprefix("without_momentum(")
    name = re.split(r"[(,]", inner)[0]
    return {"sign_flip": "bit flip", "ipm": "IPM", "alie": "ALIE"}.get(name, name)
