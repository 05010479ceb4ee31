"""The paper's experiments from the command line.

python -m experiments list
python -m experiments plan fig3
python -m experiments run fig3 --seeds 3
python -m experiments run --grid attack=little,empire --grid "rule=median,nnm(median)"
python -m experiments run --config my_grid.py
python -m experiments plot fig3
python -m experiments table fig3
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from rich.console import Console

from experiments import (
    choice,
    compilation,
    parallel,
    plot,
    store,
    table,
    theory,
    theory_chart,
)
from experiments.data import DataError
from experiments.figures import FIGURES, THEORY
from experiments.plan import plan
from experiments.run import run

# A smoke run is mostly compilation.
UNOPTIMISED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    given = _parser().parse_args(arguments)
    console = Console()
    try:
        return _COMMANDS[given.command](given, console)
    except (DataError, ValueError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "list": "the figures and their claims",
        "plan": "how many runs a figure takes, and about how long",
        "run": "train what is missing, then plot and tabulate",
        "plot": "draw what is finished",
        "table": "final accuracies of what is finished",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == "list":
            continue
        choice.add_options(command)
        command.add_argument(
            "--seeds", type=choice.count, default=3, help="how many (3)"
        )
        command.add_argument(
            "--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder (out)"
        )
        if name == "plot":
            command.add_argument(
                "--csv",
                type=pathlib.Path,
                metavar="FILE",
                help="draw what a file of results has instead of finished runs",
            )
        if name in ("plan", "run"):
            command.add_argument(
                "--data-dir", help="of tensorflow-datasets; $BYZJAX_DATA otherwise"
            )
            command.add_argument(
                "--cache-dir", help="of arrays once read (~/.cache/byzjax)"
            )
            command.add_argument(
                "--download",
                action="store_true",
                help="let TFDS download what is missing",
            )
            command.add_argument(
                "--jobs",
                type=choice.count,
                metavar="N",
                help="processes that train at once (on a CPU one a core)",
            )
        if name == "run":
            command.add_argument(
                "--together",
                action=argparse.BooleanOptionalAction,
                help="seeds as one vmapped program (on accelerators only)",
            )
            command.add_argument(
                "--checkpoint-seconds", type=float, default=30.0, metavar="S"
            )
            command.add_argument("--tensorboard", action="store_true")
            command.add_argument(
                "--shard",
                type=choice.shard,
                default=(1, 1),
                metavar="I/N",
                help="only the I-th of N parts of the work, for one job of an array",
            )
    return parser


def _options(given) -> dict[str, Any]:
    names = ("out", "data_dir", "cache_dir", "download")
    return {name: getattr(given, name) for name in names}


def _list(given, console):
    for name, figure in (FIGURES | THEORY).items():
        configs = figure.configs() if name in FIGURES else figure.cases()
        console.print(f"[bold]{name}[/bold] ({len(configs)} configurations)")
        console.print(f"    {figure.CLAIM}")
    return 0


def _plan(given, console):
    chosen = choice.chosen(given)
    configs = [config for found in chosen.figures.values() for config in found]
    cases = [case for found in chosen.theory.values() for case in found]
    if configs:
        jobs = given.jobs or _jobs(given)
        print(plan(configs, given.seeds, jobs=jobs, **_options(given)))
    if cases:
        print(theory.plan(cases, given.seeds, out=given.out))
    return 0


def _run(given, console):
    chosen = choice.chosen(given)
    compiler_options = UNOPTIMISED if given.quick else None
    compilation.keep(given.cache_dir)
    configs = [config for found in chosen.figures.values() for config in found]
    cases = [case for found in chosen.theory.values() for case in found]
    part, parts = given.shard
    # The same list on every machine, so that the parts are all of it.
    configs = list(dict.fromkeys(configs))[part - 1 :: parts]
    cases = list(dict.fromkeys(cases))[part - 1 :: parts]
    if configs:
        run(
            configs,
            given.seeds,
            **_options(given),
            together=given.together,
            jobs=given.jobs or _jobs(given),
            checkpoint_seconds=given.checkpoint_seconds,
            tensorboard=given.tensorboard,
            compiler_options=compiler_options,
            console=console,
            own=given.config,
        )
    if cases:
        theory.run(
            cases,
            given.seeds,
            out=given.out,
            compiler_options=compiler_options,
            console=console,
        )
    if parts > 1:
        console.print(
            f"Part {part} of {parts} is finished. When all are: python -m experiments "
            "plot, and table, with the same options but --shard.",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    _plot(given, console)
    return _table(given, console)


def _jobs(given) -> int:
    """One process a core on a CPU; one for a smoke run, which is over before others."""
    if given.quick or jax.default_backend() != "cpu":
        return 1
    return max(1, len(parallel.cores()))


class _Finished(NamedTuple):
    """What there is of a figure, and what is missing."""

    stem: str  # Of its files.
    draw: Callable[[], Figure]
    tables: Callable[[], dict[str, list[list[str]]]]  # Heading → cells.
    as_csv: Callable[[], str]
    lacking: str


def _finished(given) -> Iterator[_Finished]:
    chosen = choice.chosen(given)
    for name, configs in chosen.figures.items():
        results = _results(given, configs)
        if not results:
            raise _nothing(name, given)
        yield _Finished(
            name + "-quick" * given.quick,
            functools.partial(chosen.plots[name], results),
            functools.partial(table.tables, results),
            functools.partial(table.as_csv, results),
            table.missing(results, len(configs), given.seeds),
        )
    for name, cases in chosen.theory.items():
        measured = theory.load(given.out, cases, given.seeds)
        if not measured:
            raise _nothing(name, given)
        chart = THEORY[name].chart(measured)
        lacking = len(cases) - len(measured)
        yield _Finished(
            name + "-quick" * given.quick,
            functools.partial(theory_chart.draw, chart),
            functools.partial(theory_chart.tables, chart),
            functools.partial(theory_chart.as_csv, chart),
            f"{lacking} of {len(cases)} cases are missing" if lacking else "",
        )


def _results(given, configs):
    """Of finished runs, or as a file of results has them."""
    if getattr(given, "csv", None) is None:
        return store.load(given.out, configs, given.seeds)
    try:
        return table.read_csv(given.csv.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--csv needs a file of results: {error}") from None


def _nothing(name, given) -> ValueError:
    return ValueError(
        f"{name} has no finished runs in {given.out}: python -m experiments run {name}"
    )


def _folder(given) -> pathlib.Path:
    folder = given.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plot(given, console):
    for figure in _finished(given):
        path = _folder(given) / f"{figure.stem}.png"
        plot.save(figure.draw(), path)
        console.print(f"Drawn in {path}. {figure.lacking}", highlight=False)
    return 0


def _table(given, console):
    for figure in _finished(given):
        path, tables = _folder(given) / figure.stem, figure.tables()
        store.replace(path.with_suffix(".csv"), figure.as_csv())
        store.replace(path.with_suffix(".md"), table.pages(tables))
        for heading, cells in tables.items():
            print(f"{figure.stem}: {heading}")
            print(table.aligned(cells), end="\n\n")
        console.print(f"Also as {path}.md and .csv. {figure.lacking}", highlight=False)
    return 0


_COMMANDS = {
    "list": _list,
    "plan": _plan,
    "run": _run,
    "plot": _plot,
    "table": _table,
}

if __name__ == "__main__":
    sys.exit(main())
