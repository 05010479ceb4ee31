"""Final accuracies as a table: text, Markdown, CSV."""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from experiments.store import Result

ACROSS = ("attack", "optimizer")


def varying(results: Sequence[Result]) -> list[str]:
    """The fields in which some configurations differ."""
    fields = [field.name for field in dataclasses.fields(results[0].config)]
    return [
        name
        for name in fields
        if len({getattr(result.config, name) for result in results}) > 1
    ]


def summary(result: Result) -> tuple[float, float]:
    """Mean and standard deviation of the final accuracy; NaN for one seed."""
    final = result.final
    return float(final.mean()), float(final.std(ddof=1) if len(final) > 1 else np.nan)


def cells(results: Sequence[Result]) -> list[list[str]]:
    """A head and rows: attacks and optimizers side by side, all else down."""
    fields = varying(results)
    across = [name for name in ACROSS if name in fields]
    down = [name for name in fields if name not in across]
    at = {}
    for result in results:
        row = tuple(str(getattr(result.config, name)) for name in down)
        column = ", ".join(str(getattr(result.config, name)) for name in across)
        mean, spread = summary(result)
        text = f"{mean:.3f}" + ("" if np.isnan(spread) else f" ± {spread:.3f}")
        at[row, column or "test accuracy"] = text
    rows = list(dict.fromkeys(row for row, _ in at))
    columns = list(dict.fromkeys(column for _, column in at))
    head = [*down, *columns]
    return [head] + [[*row, *(at.get((row, c), "") for c in columns)] for row in rows]


def text(results: Sequence[Result]) -> str:
    """For a terminal, columns aligned."""
    return aligned(cells(results))


def markdown(results: Sequence[Result]) -> str:
    """For a README."""
    return as_markdown(cells(results))


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """A head and rows of cells for a README."""
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(results: Sequence[Result]) -> str:
    """Every evaluation of every seed: what the plots are made of."""
    file = io.StringIO()
    fields = [field.name for field in dataclasses.fields(results[0].config)]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["digest", *fields, "seed", "step", "test_accuracy"])
    for result in results:
        values = dataclasses.astuple(result.config)
        for seed, curve in zip(result.seeds, result.accuracy, strict=True):
            for step, accuracy in zip(result.steps, curve, strict=True):
                writer.writerow(
                    [result.config.digest(), *values, seed, step, f"{accuracy:.4f}"]
                )
    return file.getvalue()


def missing(results: Sequence[Result], count: int, seeds: int) -> str:
    """A line that says what a table or plot leaves out, empty if nothing."""
    found = sum(len(result.seeds) for result in results)
    lacking = count * seeds - found
    return f"{lacking} of {count * seeds} runs are not finished" if lacking > 0 else ""
