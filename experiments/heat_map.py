"""Heat maps: a cell a configuration, colours by error, the worst case beside them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import error_scale, plot
from experiments.config import Config
from experiments.store import Result

Of = Callable[[Config], Any]


def draw(
    results: Sequence[Result],
    *,
    rows: Of,
    columns: Of,
    panels: Of,
    title: str,
    last: int = 1,
    best: bool = True,
) -> Figure:
    """Mean accuracy at the end, a cell a configuration; the last column is the worst.

    The end is the last evaluation, or the mean of so many of the `last`. A cell that
    was not run stays empty, as does the worst of a row that has one.

    Colours follow the logarithm of the error. Bold is the best worst case where it is
    beyond the spread: ahead of the next by two standard errors of their difference; or
    nothing, where rows are no rivals and `best` is False.
    """
    names, rights = plot.names_of(results, rows), plot.names_of(results, columns)
    boxes = plot.names_of(results, panels)
    across = min(len(boxes), 2)
    down = -(-len(boxes) // across)
    width = 1.6 + (1.2 + 0.72 * (len(rights) + 1)) * across
    figure = Figure(
        figsize=(width, 1.1 + (0.7 + 0.33 * len(names)) * down), layout="constrained"
    )
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    found = {(panels(r.config), rows(r.config), columns(r.config)): r for r in results}
    means = [_at_the_end(result, last).mean() for result in results]
    low, high = error_scale.height([np.nanmin(means), np.nanmax(means)])
    image = None
    for axis, box in zip(axes.flat, boxes, strict=False):
        cells = np.full((len(names), len(rights) + 1), np.nan)
        errors = np.zeros_like(cells)  # Of the means.
        for i, name in enumerate(names):
            for j, right in enumerate(rights):
                if (box, name, right) in found:
                    final = _at_the_end(found[box, name, right], last)
                    cells[i, j] = final.mean()
                    errors[i, j] = _standard_error(final)
            if not np.isnan(cells[i, :-1]).any():
                j = cells[i, :-1].argmin()
                cells[i, -1], errors[i, -1] = cells[i, j], errors[i, j]
        colors = error_scale.height(cells)
        image = axis.imshow(colors, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        first = _beyond_spread(cells[:, -1], errors[:, -1]) if best else None
        for (i, j), value in np.ndenumerate(cells):
            if np.isnan(value):
                axis.text(j, i, "–", color="#777777", ha="center", va="center")
            else:
                light = colors[i, j] > low + 0.62 * (high - low)
                axis.text(
                    *(j, i, f"{value:.3f}" if value >= 0.9 else f"{value:.2f}"),
                    color="black" if light else "white",
                    weight="bold" if (i, j) == (first, len(rights)) else "normal",
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        axis.set_title(plot.pretty(box), fontsize=9, loc="left")
        axis.set_yticks(range(len(names)), [plot.pretty(n) for n in names], fontsize=8)
        ticks = [plot.pretty(right) for right in rights] + ["worst"]
        axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axis.axvline(len(rights) - 0.5, color="white", linewidth=3)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    for axis in axes.flat[len(boxes) :]:
        axis.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, label="test accuracy", aspect=30)
        ticks = error_scale.ticks(low, high)
        heights = [float(error_scale.height(tick)) for tick in ticks]
        bar.set_ticks(heights, labels=[f"{tick:g}" for tick in ticks])
    figure.suptitle(f"{title}\n{plot.setting(results)}", fontsize=11)
    return figure


def _standard_error(values):
    # Of one seed no spread is known, and nothing is beyond it.
    return values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def _at_the_end(result, last):
    """Accuracy of each seed, [seeds]."""
    return result.accuracy[:, -last:].mean(1)


def _beyond_spread(means, errors):
    """Which is the largest by more than two standard errors; None if none is."""
    order = [i for i in np.argsort(-means) if not np.isnan(means[i])]
    if len(order) < 2:
        return None
    best, others = order[0], order[1:]
    gaps = [
        means[best] - means[i] - 2 * np.hypot(errors[best], errors[i]) for i in others
    ]
    return best if min(gaps, default=1.0) > 0 else None
