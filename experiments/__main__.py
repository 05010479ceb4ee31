"""The paper's experiments from the command line.

python -m experiments list
python -m experiments plan fig3
python -m experiments run fig3 --seeds 3
python -m experiments plot fig3
python -m experiments table fig3
"""

import argparse
import ast
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
from rich.console import Console

from experiments import parallel, plot, store, table, theory, theory_chart
from experiments.config import Config
from experiments.data import DataError
from experiments.figures import FIGURES, THEORY
from experiments.plan import plan
from experiments.run import run

# A smoke run is mostly compilation.
UNOPTIMISED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def quick(configs: Sequence[Config]) -> list[Config]:
    """A smoke run: the first and the last of a figure, with everything made small."""
    return [
        dataclasses.replace(
            config,
            dataset="digits",
            model="mlp",
            num_workers=5,
            num_byzantine=round(config.num_byzantine * 5 / config.num_workers),
            batch_size=2,
            steps=4,
            eval_every=2,
        )
        for config in (configs[0], configs[-1])
    ]


def quick_cases(cases: Sequence[theory.Case]) -> list[theory.Case]:
    """A smoke run of the theory: the first and the last case, everything small."""
    return [
        dataclasses.replace(
            case,
            num_workers=5,
            num_byzantine=round(case.num_byzantine * 5 / case.num_workers),
            **dict(steps=32, points=6, rates=(0.25 / 32, 0.25)),
        )
        for case in (cases[0], cases[-1])
    ]


def settings(given: Sequence[str], kinds: Sequence[type]) -> dict[str, Any]:
    """Values of the `field=value` given, each a field of some kind of configuration."""
    changes: dict[str, Any] = {}
    names = dict.fromkeys(f.name for kind in kinds for f in dataclasses.fields(kind))
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals or name not in names:
            raise ValueError(
                f"--set needs FIELD=VALUE with a field of {', '.join(names)}; "
                f"got {setting}"
            )
        try:
            changes[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            changes[name] = value  # A name, such as digits.
    return changes


def overridden(configs: Sequence[Any], changes: dict[str, Any]) -> list[Any]:
    """The configurations with the fields that they have changed; equal ones once."""
    names = {field.name for field in dataclasses.fields(configs[0])}
    mine = {name: value for name, value in changes.items() if name in names}
    return list(dict.fromkeys(dataclasses.replace(c, **mine) for c in configs))


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
        command.add_argument(
            "figures",
            nargs="+",
            metavar="FIGURE",
            choices=[*FIGURES, *THEORY, "all"],
        )
        command.add_argument("--seeds", type=_count, default=3, help="how many (3)")
        command.add_argument(
            "--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder (out)"
        )
        command.add_argument(
            "--quick", action="store_true", help="a smoke run on digits, seconds long"
        )
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="changes every configuration, such as --set steps=98",
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
                type=_count,
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
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs an integer >= 1, got {text}")
    return int(text)


class _Chosen(NamedTuple):
    """Name → configurations, as the options change them."""

    figures: dict[str, list[Config]]
    theory: dict[str, list[theory.Case]]


def _chosen(given) -> _Chosen:
    all_of_them = "all" in given.figures
    figures = [name for name in FIGURES if all_of_them or name in given.figures]
    of_theory = [name for name in THEORY if all_of_them or name in given.figures]
    kinds = [Config] * bool(figures) + [theory.Case] * bool(of_theory)
    changes = settings(given.set, kinds)
    found = _Chosen({}, {})
    for name in figures:
        configs = overridden(FIGURES[name].configs(), changes)
        found.figures[name] = quick(configs) if given.quick else configs
    for name in of_theory:
        cases = overridden(THEORY[name].cases(), changes)
        found.theory[name] = quick_cases(cases) if given.quick else cases
    return found


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
    chosen = _chosen(given)
    configs = [config for found in chosen.figures.values() for config in found]
    cases = [case for found in chosen.theory.values() for case in found]
    if configs:
        jobs = given.jobs or _jobs(given)
        print(plan(configs, given.seeds, jobs=jobs, **_options(given)))
    if cases:
        print(theory.plan(cases, given.seeds, out=given.out))
    return 0


def _run(given, console):
    chosen = _chosen(given)
    compiler_options = UNOPTIMISED if given.quick else None
    configs = [config for found in chosen.figures.values() for config in found]
    cases = [case for found in chosen.theory.values() for case in found]
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
        )
    if cases:
        theory.run(
            cases,
            given.seeds,
            out=given.out,
            compiler_options=compiler_options,
            console=console,
        )
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
    heading: str
    draw: Callable[[], Figure]
    cells: Callable[[], list[list[str]]]
    as_csv: Callable[[], str]
    lacking: str


def _finished(given) -> Iterator[_Finished]:
    chosen = _chosen(given)
    for name, configs in chosen.figures.items():
        results = store.load(given.out, configs, given.seeds)
        if not results:
            raise _nothing(name, given)
        yield _Finished(
            name + "-quick" * given.quick,
            "final test accuracy",
            functools.partial(FIGURES[name].plot, results),
            functools.partial(table.cells, results),
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
            f"{chart.y} against {chart.x}",
            functools.partial(theory_chart.draw, chart),
            functools.partial(theory_chart.cells, chart),
            functools.partial(theory_chart.as_csv, chart),
            f"{lacking} of {len(cases)} cases are missing" if lacking else "",
        )


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
        path, cells = _folder(given) / figure.stem, figure.cells()
        store.replace(path.with_suffix(".csv"), figure.as_csv())
        store.replace(path.with_suffix(".md"), table.as_markdown(cells) + "\n")
        print(f"{figure.stem}: {figure.heading}, mean ± standard deviation over seeds")
        print(table.aligned(cells))
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
