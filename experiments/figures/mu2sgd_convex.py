"""Learning rates by the authors' own protocol: logistic regression on MNIST.

The experiment of the code published with Dahan, Levy, *Do Stochastic, Feel Noiseless:
Stable Stochastic Optimization via a Double Momentum Mechanism*, ICLR 2025 (repository
dahan198/mu2sgd): 784 → 10, batches of 64, one epoch, evaluated every 20 steps, every
tensor kept in the unit ball, β_t = 1/t and α_t = t neither rounded nor floored, w moves
by η. On one machine, as theirs, and with 17 workers of which 8 attack: batches of 4, so
that a step sees as many samples, and CTMA over the median, as in `learning_rates`.

Claim: μ²-SGD works over a wider range of learning rates than momentum, SGD, and its own
halves alone, the corrected momentum (STORM) and the averaging (anytime SGD).

Theirs differs in one thing: an epoch draws without replacement. The last of its 938
steps that is evaluated is the 920th, where these runs end.
"""

from experiments import plot as plots
from experiments.config import Config, grid

CLAIM = "by the authors' protocol μ²-SGD works over the widest range, convex"
RATES = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
ATTACKS = ("sign_flip", "label_flip")
OPTIMIZERS = ("momentum", "sgd", "storm", "anytime", "mu2sgd_exact")


def protocol(model: str, optimizers: list[str]) -> list[Config]:
    """On one machine, and on 17 of which 8 attack."""
    alone = Config(
        model=model,
        num_workers=1,
        num_byzantine=0,
        batch_size=64,
        steps=920,
        eval_every=20,
        max_grad_norm=None,
        attack="none",
        rule="mean",
    )
    many = dict(num_workers=17, num_byzantine=8, batch_size=4, rule="ctma(median)")
    places = [alone] + [
        grid(alone, attack=[attack], **{name: [v] for name, v in many.items()})[0]
        for attack in ATTACKS
    ]
    return [
        config
        for place in places
        for config in grid(place, optimizer=optimizers, learning_rate=RATES)
    ]


def configs():
    return protocol("linear", [f"{name}(radius=1.0)" for name in OPTIMIZERS])


def draw(results, title: str):
    """A panel a place, a line an optimizer: the final accuracies."""
    return plots.sweep(
        results,
        along=lambda config: config.learning_rate,
        rows=lambda config: "",
        columns=place,
        lines=lambda config: config.optimizer.partition("(")[0],
        title=title,
        label="learning rate",
    )


def place(config: Config) -> str:
    """Where a configuration trains."""
    if config.num_workers == 1:
        return "one machine"
    return f"{config.attack}, {config.num_byzantine} of {config.num_workers}"


def plot(results):
    return draw(results, "The authors' protocol: logistic regression")
