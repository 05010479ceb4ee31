"""`python -m byzjax`, or `byzjax`: what is installed, what there is, and a short demo.

    byzjax info             versions, devices, extras
    byzjax rules            all rules and meta-rules; `byzjax rules krum` for one
    byzjax attacks          all attacks; `byzjax attacks alie` for one
    byzjax demo             training under attack in about ten seconds

It needs what the library needs, and nothing else. The figures of the papers are
`python -m experiments`, in the repository and not in the wheel.
"""

import argparse
import difflib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import jax

import byzjax
from byzjax import catalogue, demo
from byzjax.catalogue import Entry

COMMANDS = ("info", "rules", "attacks", "demo")
NARROWEST, WIDEST = 72, 100
FEWEST, MOST = 8, 10**6  # Steps of the demo; it shows as many rows as the fewest.
REPOSITORY = (
    "The experiments (figures of the papers, grids, `make demo`), benchmarks and "
    "examples are\nin the repository only: run `python -m experiments list` there."
)


class _Parser(argparse.ArgumentParser):
    """A parser that guesses what was meant."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        first = next((word for word in words if not word.startswith("-")), None)
        if first is not None and first not in COMMANDS:
            self.error(f"no command {first!r}{_meant(first, COMMANDS)}")
        found, unknown = self.parse_known_args(words)
        if unknown:
            chosen = found.parser or self
            if hasattr(found, "name") and not unknown[0].startswith("-"):
                chosen.error(f"one name at a time, got {unknown[0]!r} as well")
            options = [x for a in chosen._actions for x in a.option_strings]
            chosen.error(f"no argument {unknown[0]!r}{_meant(unknown[0], options)}")
        return found


def _meant(word: str, known: Iterable[str]) -> str:
    """What to say of a word that is not known: the nearest ones that are."""
    known = list(known)
    near = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(known)}" if len(known) <= 8 else ""


def _count(text: str) -> int:
    """A number of steps: argparse's own words do not say what is wanted."""
    try:
        steps = int(text)
    except ValueError:
        steps = -1
    if not FEWEST <= steps <= MOST:
        raise argparse.ArgumentTypeError(
            f"needs a whole number from {FEWEST} to {MOST}, got {text}"
        )
    return steps


def info(arguments: argparse.Namespace) -> None:
    """Versions and devices, all that a report of an error should have."""
    rows = [("byzjax", byzjax.__version__)]
    for package in ("jax", "jaxlib", "optax", "numpy"):
        rows.append((package, importlib.metadata.version(package)))
    rows += [
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        ("installed in", os.path.dirname(os.path.abspath(byzjax.__file__))),
        ("64-bit floats", "on" if jax.config.read("jax_enable_x64") else "off"),
    ]
    flower = importlib.util.find_spec("flwr")
    rows.append(
        (
            "byzjax[flower]",
            f"flwr {importlib.metadata.version('flwr')}"
            if flower
            else "not installed: pip install '.[flower]', from a checkout",
        )
    )
    for name, value in rows:
        print(f"{name:<15} {value}")
    for device in _devices():
        print(f"{'device':<15} {device} ({device.device_kind})")
    print(f"\n{REPOSITORY}")


def _devices() -> Sequence[Any]:
    try:
        return jax.devices()
    # JAX_PLATFORMS names what is not there; of a plugin that lacks JAX asserts it.
    except (RuntimeError, AssertionError) as error:
        why = str(error) or "Is what JAX_PLATFORMS names installed?"
        raise _Failed(f"JAX finds no device. {why}") from error


def rules(arguments: argparse.Namespace) -> None:
    """The rules and meta-rules, or one of them in full."""
    single, meta = catalogue.rules(), catalogue.meta_rules()
    if arguments.name is not None:
        return _in_full(arguments, [*single, *meta])
    _table("Rules, as byzjax.NAME", single)
    print()
    _table("Meta-rules, over any rule and over each other, as byzjax.NAME", meta)
    print("\nbyzjax rules NAME shows one in full: mathematics, guarantee, arguments.")


def attacks(arguments: argparse.Namespace) -> None:
    """The attacks, or one of them in full."""
    known = catalogue.attacks()
    if arguments.name is not None:
        return _in_full(arguments, known)
    _table("Attacks, as byzjax.attacks.NAME", known)
    print("\nbyzjax attacks NAME shows one in full.")


def _table(title: str, entries: Sequence[Entry]) -> None:
    """A name and its one line, and below it how it is called."""
    width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size((80, 24)).columns))
    names = max(len(entry.short) for entry in entries) + 2
    print(f"{title}\n")
    for entry in entries:
        for first, text in (
            (entry.short, entry.summary),
            ("", f"({entry.parameters})"),
        ):
            head, rest = f"{first:<{names}}", " " * names
            print(
                textwrap.fill(text, width, initial_indent=head, subsequent_indent=rest)
            )


def _in_full(arguments: argparse.Namespace, entries: Sequence[Entry]) -> None:
    entry = _named(arguments, arguments.name, entries)
    print(f"byzjax.{entry.name}({entry.parameters})\n\n{inspect.getdoc(entry.factory)}")


def _named(arguments: argparse.Namespace, name: str, entries: Sequence[Entry]) -> Entry:
    """The entry of that name, with `byzjax.` and `attacks.` or without."""
    short = name.rpartition(".")[2]
    for entry in entries:
        if entry.short == short:
            return entry
    parser: argparse.ArgumentParser = arguments.parser
    for command, others in (
        ("rules", [*catalogue.rules(), *catalogue.meta_rules()]),
        ("attacks", catalogue.attacks()),
    ):
        if short in (entry.short for entry in others):
            kind = command.removesuffix("s")
            parser.error(f"{short} is one of the {kind}s: byzjax {command} {short}")
    known = [entry.short for entry in entries]
    meant = _meant(short, known) or _told_of(short, entries)
    command = parser.prog.split()[1]
    all_of = "attacks" if command == "demo" else command
    parser.error(f"nothing is called {name!r}{meant}; byzjax {all_of} lists all")


def _told_of(word: str, entries: Sequence[Entry]) -> str:
    """The entries whose one line has the word, as of "empire"."""
    found = [x.short for x in entries if word and word.lower() in x.summary.lower()]
    return f"; it is said of {', '.join(found)}" if 0 < len(found) <= 3 else ""


def train(arguments: argparse.Namespace) -> None:
    """The demo: accuracy of three rules, step by step."""
    attack = byzjax.attacks.ipm(1.5)
    if arguments.attack is not None:
        entry = _named(arguments, arguments.attack, catalogue.attacks())
        needed = [
            name
            for name, parameter in inspect.signature(entry.factory).parameters.items()
            if parameter.default is parameter.empty
        ]
        if needed:
            arguments.parser.error(
                f"--attack needs one without required arguments; {entry.short} asks "
                f"for {', '.join(needed)}"
            )
        attack = entry.factory()
    _devices()
    workers = f"{demo.NUM_BYZANTINE} of {demo.NUM_WORKERS} workers"
    print(f"{workers} send {attack} in place of their gradients.")
    print(
        f"Points around {demo.CLASSES} centres, a linear model, momentum, batches of "
        f"{demo.BATCH_SIZE}. Test accuracy:\n"
    )
    names = [repr(rule) for rule in demo.rules()]
    print("  ".join(["step", *(f"{name:>16}" for name in names)]), flush=True)
    for found in demo.run(attack, arguments.steps, FEWEST):
        cells = [f"{found.step:>4}", *(f"{x:>16.2f}" for x in found.accuracy)]
        print("  ".join(cells), flush=True)
    print("\nTry another: byzjax demo --attack sign_flip, or one of byzjax attacks.")


def command_line() -> _Parser:
    """The command line."""
    main = _Parser(
        prog="byzjax",
        description="Byzantine-robust training in JAX: what is installed, what there "
        "is, and a short demo.",
        epilog=REPOSITORY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="version", version=byzjax.__version__)
    main.set_defaults(run=None, parser=None)
    commands = main.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name, run, text):
        command = commands.add_parser(name, help=text, description=f"{text}.")
        command.set_defaults(run=run, parser=command)
        return command

    add("info", info, "versions and devices, for yourself and for reports")
    one = add("rules", rules, "all rules and meta-rules, or one in full")
    one.add_argument("name", nargs="?", help="such as krum")
    one = add("attacks", attacks, "all attacks, or one in full")
    one.add_argument("name", nargs="?", help="such as alie")
    one = add("demo", train, "training under attack in about ten seconds")
    one.add_argument("--steps", type=_count, default=240, help="training steps (240)")
    one.add_argument(
        "--attack", metavar="NAME", help="one of byzjax attacks (ipm(1.5))"
    )
    return main


class _Failed(Exception):
    """Something outside of byzjax that its user can mend."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status, 2 for a mistake on the command line."""
    sys.stdout = sys.stdout or io.StringIO()  # Closed by a shell's `>&-`.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal without −, σ or ∇.
    words = sys.argv[1:] if words is None else words
    known = command_line()
    arguments = known.parse(words)
    if arguments.run is None:
        known.print_help()
        return 0
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `byzjax rules | head`: nobody reads any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # A full disk behind a redirection.
        print(f"byzjax: cannot write: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("byzjax: stopped", file=sys.stderr)
        return 130
    except _Failed as error:
        print(f"byzjax: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
