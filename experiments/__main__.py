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
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments import plot, store, table
from experiments.config import Config
from experiments.data import DataError
from experiments.figures import FIGURES
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


def overridden(configs: Sequence[Config], settings: Sequence[str]) -> list[Config]:
    """The configurations with `field=value` put in; equal ones once."""
    changes: dict[str, Any] = {}
    names = [field.name for field in dataclasses.fields(Config)]
    for setting in settings:
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
    return list(dict.fromkeys(dataclasses.replace(c, **changes) for c in configs))


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
            "figures", nargs="+", metavar="FIGURE", choices=[*FIGURES, "all"]
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


def _figures(given) -> dict[str, list[Config]]:
    """Name → configurations, as the options change them."""
    names = FIGURES if "all" in given.figures else dict.fromkeys(given.figures)
    found = {}
    for name in names:
        configs = overridden(FIGURES[name].configs(), given.set)
        found[name] = quick(configs) if given.quick else configs
    return found


def _options(given) -> dict[str, Any]:
    names = ("out", "data_dir", "cache_dir", "download")
    return {name: getattr(given, name) for name in names}


def _list(given, console):
    for name, figure in FIGURES.items():
        console.print(f"[bold]{name}[/bold] ({len(figure.configs())} configurations)")
        console.print(f"    {figure.CLAIM}")
    return 0


def _plan(given, console):
    configs = [config for found in _figures(given).values() for config in found]
    print(plan(configs, given.seeds, **_options(given)))
    return 0


def _run(given, console):
    figures = _figures(given)
    run(
        [config for configs in figures.values() for config in configs],
        given.seeds,
        **_options(given),
        together=given.together,
        checkpoint_seconds=given.checkpoint_seconds,
        tensorboard=given.tensorboard,
        compiler_options=UNOPTIMISED if given.quick else None,
        console=console,
    )
    _plot(given, console)
    return _table(given, console)


def _results(given):
    """Of each figure that has any, with what a reader should know is missing."""
    for name, configs in _figures(given).items():
        results = store.load(given.out, configs, given.seeds)
        if not results:
            raise ValueError(
                f"{name} has no finished runs in {given.out}: "
                f"python -m experiments run {name}"
            )
        lacking = table.missing(results, len(configs), given.seeds)
        stem = name + "-quick" * given.quick
        yield stem, FIGURES[name], results, lacking


def _folder(given) -> pathlib.Path:
    folder = given.out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plot(given, console):
    for stem, figure, results, lacking in _results(given):
        path = _folder(given) / f"{stem}.png"
        plot.save(figure.plot(results), path)
        console.print(f"Drawn in {path}. {lacking}", highlight=False)
    return 0


def _table(given, console):
    for stem, _, results, lacking in _results(given):
        path = _folder(given) / stem
        store.replace(path.with_suffix(".csv"), table.as_csv(results))
        store.replace(path.with_suffix(".md"), table.markdown(results) + "\n")
        print(f"{stem}: final test accuracy, mean ± standard deviation over seeds")
        print(table.text(results))
        console.print(f"Also as {path}.md and .csv. {lacking}", highlight=False)
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
