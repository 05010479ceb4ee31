"""Results as tables, accuracies and all that was measured: text, Markdown, CSV."""

import ast
import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.config import Config
from experiments.store import Result

ACROSS = ("attack", "optimizer")
# Of an evaluation's row: its column and how many digits it wants. The loss and the
# lengths are means over the steps since the evaluation before.
METRICS = {
    "test_accuracy": ("test accuracy", ".3f"),
    "test_loss": ("test loss", ".3g"),
    "loss": ("training loss", ".3g"),
    "honest_distance": ("‖A − honest mean‖", ".3g"),
    "aggregate_norm": ("‖A‖", ".3g"),
}


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


def measured(results: Sequence[Result]) -> list[str]:
    """What some of the results have."""
    return [name for name in METRICS if any(name in r.metrics for r in results)]


def details(results: Sequence[Result]) -> list[list[str]]:
    """A head and a row a configuration: all that was measured at the end."""
    fields = varying(results)
    names = measured(results)
    head = [*(fields or ["rule"]), *(METRICS[name][0] for name in names)]
    rows = []
    for result in results:
        row = [str(getattr(result.config, field)) for field in fields or ["rule"]]
        for name in names:
            if name not in result.metrics:
                row.append("")
                continue
            last, form = result.metrics[name][:, -1], METRICS[name][1]
            text = f"{last.mean():{form}}"
            if len(last) > 1:
                text += f" ± {last.std(ddof=1):{form}}"
            row.append(text)
        rows.append(row)
    return [head, *rows]


def tables(results: Sequence[Result]) -> dict[str, list[list[str]]]:
    """Heading → cells: accuracies side by side, then everything."""
    spread = "mean ± standard deviation over seeds"
    found = {f"final test accuracy, {spread}": cells(results)}
    if len(measured(results)) > 1:
        found[f"at the last evaluation, {spread}"] = details(results)
    return found


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


def pages(tables: dict[str, list[list[str]]]) -> str:
    """Tables under their headings, in Markdown."""
    return "\n".join(
        f"{heading[0].upper()}{heading[1:]}:\n\n{as_markdown(cells)}\n"
        for heading, cells in tables.items()
    )


def as_csv(results: Sequence[Result]) -> str:
    """Every evaluation of every seed: what the plots are made of."""
    file = io.StringIO()
    fields = [field.name for field in dataclasses.fields(results[0].config)]
    names = measured(results)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["digest", *fields, "seed", "step", *names])
    for result in results:
        digest, values = result.config.digest(), dataclasses.astuple(result.config)
        for (i, seed), (k, step) in itertools.product(
            enumerate(result.seeds), enumerate(result.steps)
        ):
            numbers = [
                f"{result.metrics[name][i, k]:{'.4f' if 'acc' in name else '.5g'}}"
                if name in result.metrics
                else ""
                for name in names
            ]
            writer.writerow([digest, *values, seed, step, *numbers])
    return file.getvalue()


def read_csv(text: str) -> list[Result]:
    """Results as `as_csv` wrote them.

    Raises:
      ValueError: a text that is none of these, or a name that is not known here.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    found: dict[Config, dict[int, list[dict[str, str]]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        if not {*kinds, "seed", "step", "test_accuracy"} <= row.keys():
            raise ValueError(f"a file of results needs columns {', '.join(kinds)}, …")
        values: dict[str, Any] = {
            name: row[name] if kind is str else ast.literal_eval(row[name] or "None")
            for name, kind in kinds.items()
        }
        config = Config(**values)
        found.setdefault(config, {}).setdefault(int(row["seed"]), []).append(row)
    results = []
    for config, seeds in found.items():
        first = next(iter(seeds.values()))
        metrics = {
            name: np.array([[row[name] for row in rows] for rows in seeds.values()])
            for name in METRICS
            if first[0].get(name)
        }
        steps = np.array([int(row["step"]) for row in first])
        metrics = {name: value.astype(float) for name, value in metrics.items()}
        results.append(Result(config, tuple(seeds), steps, metrics))
    return results


def missing(results: Sequence[Result], count: int, seeds: int) -> str:
    """A line that says what a table or plot leaves out, empty if nothing."""
    found = sum(len(result.seeds) for result in results)
    lacking = count * seeds - found
    return f"{lacking} of {count * seeds} runs are not finished" if lacking > 0 else ""
