"""One command for all numbers; see benchmarks/README.md.

python -m benchmarks                     # everything, about ten minutes
python -m benchmarks --quick             # seconds, to see that it runs
python -m benchmarks --parts rules step --out results/bench
python -m benchmarks --parts rules --rules krum monna --workers 33 --dim 4000000
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks import report, rules, step, timing

PARTS = ("rules", "scaling", "trees", "step", "report", "sweep")
Records = Iterator[dict[str, Any]]


def _rules(arguments: argparse.Namespace) -> Records:
    d = 10_000 if arguments.quick else arguments.dim
    names = arguments.rules or (rules.FEW if arguments.quick else tuple(rules.RULES))
    yield from rules.measure(
        arguments.workers, d, names, rounds=arguments.rounds, compare=True
    )


def _scaling(arguments: argparse.Namespace) -> Records:
    least = arguments.dim // 10
    sizes = [(17, factor * least) for factor in (1, 10, 40)]
    sizes += [(m, least) for m in (8, 33, 64, 128, 512)]
    if arguments.quick:
        sizes = [(8, 1000), (17, 1000)]
    for m, d in sizes:
        yield from rules.measure(
            m, d, rules.FEW, rounds=arguments.rounds, compare=False
        )


def _trees(arguments: argparse.Namespace) -> Records:
    models = ["transformer"] if arguments.quick else list(rules.TREES)
    names = rules.FEW[:1] if arguments.quick else rules.FEW
    for model in models:
        yield from rules.measure_tree(model, 9, names, rounds=arguments.rounds)


def _step(arguments: argparse.Namespace) -> Records:
    yield from step.measure(rounds=arguments.rounds)


def _report(arguments: argparse.Namespace) -> Records:
    names = ["median"] if arguments.quick else list(step.REPORTED)
    for name in names:
        yield step.measure_report(name, rounds=arguments.rounds)


def _sweep(arguments: argparse.Namespace) -> Records:
    for runs in (2,) if arguments.quick else (2, 4, 8):
        yield step.measure_sweep(runs, rounds=arguments.rounds)


MEASURES = dict(
    zip(PARTS, (_rules, _scaling, _trees, _step, _report, _sweep), strict=True)
)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time of every rule and of the training step, beside the memory's "
        "and other libraries'. Runs on the backend that JAX finds.",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--rounds", type=int, default=15, help="repetitions, at least 3"
    )
    parser.add_argument(
        "--dim",
        type=int,
        # On a GPU as much as its cache does not hold.
        default=10**6 if jax.default_backend() == "cpu" else 10**7,
        help="d of the rules' table, ten times that of the growth with m; here "
        "%(default)s unless given",
    )
    parser.add_argument(
        "--workers", type=int, default=17, help="m of the rules' table, at least 5"
    )
    parser.add_argument(
        "--rules",
        nargs="+",
        choices=rules.RULES,
        metavar="RULE",
        help="rows of the rules' table; else all",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rules")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/benchmarks")
    )
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds needs at least 3, got {arguments.rounds}")
    if arguments.workers < 5:
        parser.error(f"--workers needs at least 5, got {arguments.workers}")
    if arguments.dim < 10:
        parser.error(f"--dim needs at least 10, got {arguments.dim}")
    results: dict[str, Any] = {"machine": timing.machine()}
    print(json.dumps(results["machine"], indent=1, ensure_ascii=False))
    for part in arguments.parts:
        results[part] = []
        for record in MEASURES[part](arguments):
            results[part].append(record)
            # So that a run that is interrupted keeps, and has shown, what it has.
            report.write(results, arguments.out)
            print(report.line(record), file=sys.stderr, flush=True)
        print(report.TABLES[part](results[part]), flush=True)
    report.plot(results, arguments.out)
    print(f"\nWritten to {arguments.out}")


if __name__ == "__main__":
    main()
