"""Drawing shared by the figures: small multiples of curves, sweeps, and heat maps.

A rule has the same colour and marker in every figure: its meta-rules decide, and base
rules have panels of their own. Colours are Okabe and Ito's, told apart by the
colour-blind.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.config import Config
from experiments.store import Result

Of = Callable[[Config], Any]
# By the meta-rules around a base, or by optimizer: colour and marker.
STYLES = {
    "mean": ("#999999", "x"),
    "{}": ("#0072b2", "o"),
    "bucketing({})": ("#cc79a7", "s"),
    "nnm({})": ("#009e73", "D"),
    "ctma({})": ("#e69f00", "^"),
    "ctma(nnm({}))": ("#d55e00", "v"),
    "momentum": ("#0072b2", "o"),
    "mu2sgd": ("#d55e00", "^"),
}
OTHERS = (("#56b4e9", "P"), ("#000000", "*"), ("#f0e442", "X"), ("#882255", "<"))


def pretty(name: Any) -> str:
    """A name for readers: μ²-SGD for mu2sgd, ctma(nnm) for ctma(nnm({}))."""
    text = "base rule alone" if name == "{}" else str(name).replace("({})", "")
    return text.replace("mu2sgd", "μ²-SGD").replace("_", " ")


def setting(results: Sequence[Result]) -> str:
    """What was really run: data, network, workers, steps, seeds."""
    configs = [result.config for result in results]
    fs = sorted({config.num_byzantine for config in configs})
    parts = [
        *dict.fromkeys(f"{config.dataset}, {config.model}" for config in configs),
        f"{' or '.join(map(str, fs))} of {configs[0].num_workers} workers Byzantine",
        f"{configs[0].steps} steps",
        f"{min(len(result.seeds) for result in results)} seeds",
    ]
    return ", ".join(parts).replace("1 seeds", "1 seed")


def base_of(rule: str) -> str:
    """The innermost rule: median for ctma(nnm(median))."""
    return rule.split(",")[0].replace(")", "").split("(")[-1]


def meta_of(rule: str) -> str:
    """What is around the base: ctma(nnm({})) for ctma(nnm(median))."""
    base = base_of(rule)
    return rule if base == "mean" else rule.replace(base, "{}", 1)


def curves(
    results: Sequence[Result], *, rows: Of, columns: Of, lines: Of, title: str
) -> Figure:
    """Test accuracy against steps; bands reach from the worst seed to the best."""

    def points(group):
        (result,) = group
        return result.steps, result.accuracy

    return _multiples(results, rows, columns, lines, title, points, "step")


def sweep(
    results: Sequence[Result],
    *,
    along: Of,
    rows: Of,
    columns: Of,
    lines: Of,
    title: str,
    label: str,
) -> Figure:
    """Final test accuracy against a number, on a logarithmic axis."""

    def points(group):
        group = sorted(group, key=lambda result: along(result.config))
        count = min(len(result.seeds) for result in group)
        final = np.stack([result.final[:count] for result in group], axis=1)
        return np.array([along(result.config) for result in group]), final

    figure = _multiples(results, rows, columns, lines, title, points, label)
    for axis in figure.axes:
        axis.set_xscale("log")
    return figure


def heatmap(
    results: Sequence[Result], *, rows: Of, columns: Of, panels: Of, title: str
) -> Figure:
    """Mean final accuracy, a cell a configuration; the last column is the worst."""
    names, rights = _names(results, rows), _names(results, columns)
    boxes = _names(results, panels)
    across = min(len(boxes), 2)
    down = -(-len(boxes) // across)
    width = 1.6 + (1.2 + 0.72 * (len(rights) + 1)) * across
    figure = Figure(
        figsize=(width, 1.1 + (0.7 + 0.33 * len(names)) * down), layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    found = {(panels(r.config), rows(r.config), columns(r.config)): r for r in results}
    image = None
    for axis, box in zip(axes.flat, boxes, strict=False):
        cells = np.full((len(names), len(rights) + 1), np.nan)
        for i, name in enumerate(names):
            for j, right in enumerate(rights):
                if (box, name, right) in found:
                    cells[i, j] = found[box, name, right].final.mean()
            if not np.isnan(cells[i, :-1]).any():
                cells[i, -1] = cells[i, :-1].min()
        image = axis.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        worst = cells[:, -1]
        for (i, j), value in np.ndenumerate(cells):
            best = j == len(rights) and not (worst > value).any()
            if not np.isnan(value):
                axis.text(
                    *(j, i, f"{value:.2f}"),
                    color="white" if value < 0.55 else "black",
                    weight="bold" if best else "normal",
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        axis.set_title(pretty(box), fontsize=9, loc="left")
        axis.set_yticks(range(len(names)), [pretty(n) for n in names], fontsize=8)
        ticks = [pretty(right) for right in rights] + ["worst"]
        axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axis.axvline(len(rights) - 0.5, color="white", linewidth=3)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=axes, label="test accuracy", aspect=30)
    figure.suptitle(f"{title}\n{setting(results)}", fontsize=11)
    return figure


def save(figure: Figure, path: Any) -> None:
    """Writes an image, for a page or a README."""
    figure.savefig(path, dpi=150)


def _names(results, of):
    return list(dict.fromkeys(of(result.config) for result in results))


def _multiples(results, rows, columns, lines, title, points, label):
    names, rights = _names(results, rows), _names(results, columns)
    size = max(2.7 * len(rights) + 0.8, 6), 2.2 * len(names) + 1.2
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(names), len(rights), sharex=True, sharey=True, squeeze=False
    )
    handles = {}
    others = [line for line in _names(results, lines) if line not in STYLES]
    styles = STYLES | dict(zip(others, itertools.cycle(OTHERS)))
    for (i, j), axis in np.ndenumerate(axes):
        here = [
            result
            for result in results
            if (rows(result.config), columns(result.config)) == (names[i], rights[j])
        ]
        for line in _names(here, lines):
            x, y = points([result for result in here if lines(result.config) == line])
            color, marker = styles[line]
            (handle,) = axis.plot(
                x, y.mean(0), f"{marker}-", color=color, markersize=3.5, linewidth=1.5
            )
            if len(y) > 1:
                band = axis.fill_between(x, y.min(0), y.max(0), alpha=0.18)
                band.set(color=color, linewidth=0)
            handles.setdefault(pretty(line), handle)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axis.set_title(pretty(rights[j]), fontsize=10)
        if i == len(names) - 1:
            axis.set_xlabel(label)
        if j == 0:
            axis.set_ylabel(f"{pretty(names[i])}\ntest accuracy")
    # Down to the lowest curve: most of the differences are near the top.
    if axes[0, 0].get_ylim()[1] > 0.6:
        axes[0, 0].set_ylim(top=1)
    figure.suptitle(f"{title}\n{setting(results)}", fontsize=11)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), int(size[0] / 1.7)),
        frameon=False,
    )
    return figure
