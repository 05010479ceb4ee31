"""The figures: each a module with its claim, `configs()` and `plot(results)`.

One of your own is a file like these and a name in the table below.
"""

from types import ModuleType

from experiments.figures import (
    cifar10,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    heatmap,
    heterogeneity,
    learning_rates,
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
}
