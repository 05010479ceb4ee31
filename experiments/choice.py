"""What a command is about: options → figures with their configurations."""

import argparse
import ast
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments import own, plot, theory
from experiments.config import Config, grid
from experiments.figures import FIGURES, THEORY


class Chosen(NamedTuple):
    """Name → configurations, as the options change them, and how to draw them."""

    figures: dict[str, list[Config]]
    theory: dict[str, list[theory.Case]]
    plots: dict[str, Callable[..., Figure]]


def add_options(command: argparse.ArgumentParser) -> None:
    """The options that say what a command is about."""
    command.add_argument(
        "figures",
        nargs="*",
        metavar="FIGURE",
        help="figures by name, or all",
    )
    command.add_argument(
        "--config",
        type=pathlib.Path,
        metavar="FILE.py",
        help="a file of your own with configs(); see experiments/README.md",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="changes every configuration, such as --set steps=98",
    )
    command.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=A,B",
        help="every configuration with each of these values, such as --grid "
        "attack=little,empire; may be repeated, and needs no figure",
    )
    command.add_argument(
        "--name", help="of the files that a grid without figure writes (grid)"
    )
    command.add_argument(
        "--first", type=count, metavar="N", help="only the first N configurations each"
    )
    command.add_argument(
        "--quick", action="store_true", help="a smoke run, seconds long, on digits"
    )


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs an integer >= 1, got {text}")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """Which part of how many: "2/8"."""
    part, slash, parts = text.partition("/")
    if not slash or not (part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"needs i/n such as 2/8, got {text}")
    if not 1 <= int(part) <= int(parts):
        raise argparse.ArgumentTypeError(f"needs 1 <= i <= n, got {text}")
    return int(part), int(parts)


def chosen(given: argparse.Namespace) -> Chosen:
    """What the options choose.

    Raises:
      ValueError: nothing, or a field or value that is none.
    """
    for name in given.figures:
        if name not in (known := [*FIGURES, *THEORY, "all"]):
            raise ValueError(
                f"FIGURE needs to be one of {', '.join(known)}; got {name}"
            )
    everything = "all" in given.figures
    sources: dict[str, tuple[list[Any], Callable[..., Figure] | None]] = {
        name: (module.configs(), module.plot)
        for name, module in FIGURES.items()
        if everything or name in given.figures
    }
    cases = {
        name: module.cases()
        for name, module in THEORY.items()
        if everything or name in given.figures
    }
    if given.config is not None:
        module, name = own.load(given.config), given.name or given.config.stem
        if name in FIGURES or name in THEORY:
            raise ValueError(
                f"--config needs a name that no figure has, got {name}: choose another "
                "with --name"
            )
        sources[name] = (
            list(module.configs()),
            getattr(module, "plot", None),
        )
    if not sources and not cases:
        if not given.grid:
            raise ValueError(
                f"{given.command} needs a FIGURE, --config FILE.py or --grid FIELD=A,B;"
                " python -m experiments list names the figures"
            )
        sources[given.name or "grid"] = ([Config()], None)
    kinds = [Config] * bool(sources) + [theory.Case] * bool(cases)
    changes = settings(given.set, kinds)
    values = grid_of(given.grid)
    found = Chosen({}, {}, {})
    for name, (configs, draw) in sources.items():
        configs = [
            each
            for config in overridden(configs, changes)
            for each in grid(config, **values)
        ]
        configs = list(dict.fromkeys(configs))[: given.first]
        is_own = name not in FIGURES
        found.figures[name] = quick(configs, keep=is_own) if given.quick else configs
        # A figure's own picture is of its own fields.
        draw = plot.of_grid if draw is None or values else draw
        found.plots[name] = draw
    for name, each in cases.items():
        each = overridden(each, changes)[: given.first]
        found.theory[name] = quick_cases(each) if given.quick else each
    return found


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
        changes[name] = _value(value)
    return changes


def grid_of(given: Sequence[str]) -> dict[str, list[Any]]:
    """Field → values of the `field=a,b` given; a field given twice has all of them."""
    found: dict[str, list[Any]] = {}
    names = [field.name for field in dataclasses.fields(Config)]
    for option in given:
        name, equals, values = option.partition("=")
        if not equals or name not in names or not all(_split(values)):
            raise ValueError(
                f"--grid needs FIELD=A,B with a field of {', '.join(names)}; "
                f"got {option}"
            )
        found.setdefault(name, []).extend(map(_value, _split(values)))
    return found


def _split(text: str) -> list[str]:
    """At the commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        depth += (sign in "([{") - (sign in ")]}") if not quote else 0
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text  # A name, such as digits.


def overridden(configs: Sequence[Any], changes: dict[str, Any]) -> list[Any]:
    """The configurations with the fields that they have changed; equal ones once."""
    if not configs:
        return []
    names = {field.name for field in dataclasses.fields(configs[0])}
    mine = {name: value for name, value in changes.items() if name in names}
    return list(dict.fromkeys(dataclasses.replace(c, **mine) for c in configs))


def quick(configs: Sequence[Config], *, keep: bool = False) -> list[Config]:
    """A smoke run: the first and the last of a figure, with everything made small.

    Args:
      configs: all of a figure.
      keep: whether data set and network stay as they are.
    """
    small = {} if keep else {"dataset": "digits", "model": "mlp"}
    return list(
        dict.fromkeys(
            dataclasses.replace(
                config,
                num_workers=5,
                num_byzantine=round(config.num_byzantine * 5 / config.num_workers),
                batch_size=2,
                steps=4,
                eval_every=2,
                **small,
            )
            for config in (configs[0], configs[-1])
        )
    )


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
