"""Charts of the theory's experiments: small multiples of lines, with their numbers.

A chart is data, of which the plot, the table and the CSV file are three views.
"""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure


class Line(NamedTuple):
    name: str  # One of STYLES.
    x: np.ndarray  # [n]
    y: np.ndarray  # [seeds, n]
    note: str = ""  # What was fitted, such as a slope, with its spread over seeds.


class Panel(NamedTuple):
    row: str
    column: str
    lines: list[Line]


class Chart(NamedTuple):
    title: str
    x: str
    y: str
    note: str  # What the notes of the lines are.
    panels: list[Panel]
    log_x: bool = True
    guide: float | None = None  # Exponent of a grey line to compare with.


# Colour by optimizer, as in the other figures; full lines for what a theorem is about.
BLUE, RED, GREEN = "#0072b2", "#d55e00", "#009e73"
SKY, PURPLE = "#56b4e9", "#cc79a7"
STYLES = {
    "μ²-SGD, a worker": (PURPLE, "--", "v"),
    "μ²-SGD, aggregate": (RED, "-", "^"),
    "μ²-SGD at 1/(4L), a worker": (GREEN, "--", "<"),
    "momentum, a worker": (SKY, "--", "s"),
    "momentum, aggregate": (BLUE, "-", "o"),
    "μ²-SGD, η = 1/(4LT)": (RED, "-", "^"),
    "μ²-SGD, η = 1/(4L)": (GREEN, "-", "<"),
    "momentum, η = 1/(4L)": (BLUE, "-", "o"),
    "momentum, best η": (PURPLE, ":", "s"),
    "μ²-SGD, after T": (RED, "-", "^"),
    "μ²-SGD, after T/16": (PURPLE, ":", "v"),
    "momentum, after T": (BLUE, "-", "o"),
    "momentum, after T/16": (SKY, ":", "s"),
}


def slopes(x: Sequence[float] | np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exponents p of y ∝ x^p, least squares in logarithms: [seeds, n] → [seeds]."""
    return np.polyfit(np.log(np.asarray(x)), np.log(y.T), 1)[0]


def spread(values: np.ndarray, form: str = ".2f") -> str:
    """Mean ± standard deviation over seeds."""
    text = f"{values.mean():{form}}"
    return text + (f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else "")


def slope(x: np.ndarray, y: np.ndarray, fitted: np.ndarray) -> str:
    """The slope over the points of a mask; empty for fewer than two."""
    return spread(slopes(x[fitted], y[:, fitted])) if fitted.sum() > 1 else ""


def draw(chart: Chart) -> Figure:
    """A panel a problem and attack; bands reach from the lowest seed to the highest.

    The legend names every line. In a panel, behind a line's marker, is what was fitted.
    """
    rows = list(dict.fromkeys(panel.row for panel in chart.panels))
    columns = list(dict.fromkeys(panel.column for panel in chart.panels))
    size = max(2.4 * len(columns) + 0.7, 6.5), 2.6 * len(rows) + 1.5
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(rows), len(columns), sharex=True, sharey="row", squeeze=False
    )
    handles, most = {}, 0
    for axis in axes.flat:
        axis.set_visible(False)
    for panel in chart.panels:
        i, j = rows.index(panel.row), columns.index(panel.column)
        axis = axes[i, j]
        axis.set_visible(True)
        most = max(most, sum(bool(line.note) for line in panel.lines))
        widths = np.linspace(2.4, 1.2, len(panel.lines))
        for line, width in zip(panel.lines, widths, strict=True):
            color, dashes, marker = STYLES[line.name]
            style = dict(color=color, linestyle=dashes, linewidth=width)
            every = max(1, len(line.x) // 7)
            mark = dict(marker=marker, markersize=3.5, markevery=every)
            mean = line.y.mean(0)
            (handles[line.name],) = axis.plot(line.x, mean, **style, **mark)
            band = axis.fill_between(line.x, line.y.min(0), line.y.max(0), alpha=0.15)
            band.set(color=color, linewidth=0)
        if chart.guide is not None:
            x = panel.lines[0].x / panel.lines[0].x[0]
            start = max(line.y.mean(0)[0] for line in panel.lines)
            (handles[f"falls as 1/{chart.x.split()[-1]}, to compare"],) = axis.plot(
                *(panel.lines[0].x, start * x**chart.guide),
                **dict(color="#999999", linewidth=1, zorder=0),
            )
        _write_notes(axis, [line for line in panel.lines if line.note])
        axis.set_yscale("log")
        if chart.log_x:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(panel.column if i == 0 else "", fontsize=10)
        if i == len(rows) - 1:
            axis.set_xlabel(chart.x)
        if j == 0:
            axis.set_ylabel(f"{panel.row}\n{chart.y}")
    for row in axes:  # Room for the notes.
        low, high = row[0].get_ylim()
        row[0].set_ylim(low * (low / high) ** (0.11 * -(-most // 2)), high)
    heading = f"{chart.title}\nnumbers: {chart.note}"
    figure.suptitle(heading, fontsize=11)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=max(2, int(size[0] / 3)),
        frameon=False,
    )
    return figure


def _write_notes(axis, lines):
    """Two a row, from the bottom, each behind the marker of its line."""
    for place, line in enumerate(lines):
        color, _, marker = STYLES[line.name]
        x = 0.04 + 0.5 * (place % 2)
        y = 0.04 + 0.09 * ((len(lines) - 1) // 2 - place // 2)
        style = dict(marker=marker, color=color, markersize=4, transform=axis.transAxes)
        axis.plot([x], [y + 0.02], **style, scalex=False, scaley=False)
        axis.annotate(
            line.note.replace("-", "−"),
            **dict(xy=(x + 0.04, y), xycoords="axes fraction"),
            **dict(color=color, fontsize=8),
        )


def cells(chart: Chart) -> list[list[str]]:
    """A head, and a row a line: what was fitted, and where it ends."""
    last = f"{chart.y} at the last {chart.x}"
    return [["problem", "attack", "line", chart.note, last]] + [
        [p.row, p.column, line.name, line.note, spread(line.y[:, -1], ".2g")]
        for p in chart.panels
        for line in p.lines
    ]


def tables(chart: Chart) -> dict[str, list[list[str]]]:
    """Heading → cells."""
    spread = "mean ± standard deviation over seeds"
    return {f"{chart.y} against {chart.x}, {spread}": cells(chart)}


def as_csv(chart: Chart) -> str:
    """Every point that is drawn."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    statistics = ["mean", "std", "min", "max"]
    writer.writerow(["problem", "attack", "line", chart.x, *statistics, "seeds"])
    for panel in chart.panels:
        for line in panel.lines:
            for x, y in zip(line.x, line.y.T, strict=True):
                std = y.std(ddof=1) if len(y) > 1 else np.nan
                numbers = [f"{v:.4g}" for v in (x, y.mean(), std, y.min(), y.max())]
                writer.writerow([panel.row, panel.column, line.name, *numbers, len(y)])
    return file.getvalue()
