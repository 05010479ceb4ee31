"""ByzFL's published heat maps, in their settings: MNIST, 10 honest, 1 to 4 Byzantine.

The example of the library ByzFL (github.com/LPD-EPFL/byzfl): conv 20 – pool – conv 50 –
pool – dense 500 – dense 10, batches of 25, 800 steps, momentum 0.9 from zero, damped,
weight decay 10⁻⁴, learning rate 0.1; gradients clipped to norm 2, then NNM, then the
geometric median or the trimmed mean. Attackers search for the strength that hurts this
chain of rules most. Data by γ-similarity: a share γ of them is dealt out at random, the
rest is sorted by label.

Claim: with NNM both rules hold under every attack where workers' data are alike, and
lose most where they are sorted, γ = 0, and many attack.

Theirs keeps a fifth of the training images to choose the best evaluation by; here all
of them are trained on, and accuracies are those after the last step.
"""

from experiments import heat_map
from experiments.config import Config, grid

CLAIM = "with NNM rules hold where data are alike, and lose most where they are sorted"
ATTACKS = {
    "sign_flip(of='mean')": "sign flip",
    "optimized(ipm)": "optimal IPM",
    "optimized(alie(direction='positive'))": "optimal ALIE",
}
RULES = {
    "clipping(nnm(geometric_median), max_norm=2.0)": "geometric median",
    "clipping(nnm(trimmed_mean), max_norm=2.0)": "trimmed mean",
}
GAMMAS = (0.0, 0.33, 0.66, 1.0)  # The first is the one that tells most.
HONEST = 10


def configs():
    start = Config(
        model="lenet(hidden=500, norm=False)",
        batch_size=25,
        steps=800,
        eval_every=50,
        learning_rate=0.1,
        max_grad_norm=None,
        optimizer="ema(decay=0.9, weight_decay=0.0001)",
    )
    return [
        config
        for gamma in GAMMAS
        for f in (4, 3, 2, 1)
        for config in grid(
            start,
            num_workers=[HONEST + f],
            num_byzantine=[f],
            partition=[f"among_honest(gamma_similarity(gamma={gamma}))"],
            rule=RULES,
            attack=ATTACKS,
        )
    ]


def plot(results):
    return heat_map.draw(
        results,
        rows=lambda config: f"f = {config.num_byzantine}",
        columns=lambda config: ATTACKS[config.attack],
        panels=lambda config: f"{RULES[config.rule]}, γ = {gamma(config)}",
        title="Clipping, NNM and a rule, as in ByzFL's heat maps",
        best=False,
    )


def gamma(config: Config) -> str:
    """The share of the data that is dealt out at random."""
    return config.partition.partition("gamma=")[2].rstrip(")")
