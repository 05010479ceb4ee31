"""The figures: each a module with its claim, `configs()` and `plot(results)`.

Those of the theory train no network: they have `cases()` and `chart(measured)` instead.
One of your own is a file like these and a name in the tables below.
"""

from types import ModuleType

from experiments.figures import (
    bucketing,
    byzfl,
    cifar10,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    heatmap,
    heterogeneity,
    learning_rates,
    mu2sgd_convex,
    mu2sgd_network,
    theory_byzantine,
    theory_excess_loss,
    theory_learning_rates,
    theory_momentum_error,
)

FIGURES: dict[str, ModuleType] = {
    "fig1": fig1,
    "fig2": fig2,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "cifar10": cifar10,
    "heatmap": heatmap,
    "heterogeneity": heterogeneity,
    "learning_rates": learning_rates,
    "mu2sgd_convex": mu2sgd_convex,
    "mu2sgd_network": mu2sgd_network,
    "bucketing": bucketing,
    "byzfl": byzfl,
}

THEORY: dict[str, ModuleType] = {
    "theory_momentum_error": theory_momentum_error,
    "theory_excess_loss": theory_excess_loss,
    "theory_byzantine": theory_byzantine,
    "theory_learning_rates": theory_learning_rates,
}
