"""The table of README.md: each strategy under each kind of hostility.

python examples/flower/table.py                           # all of it, about 40 minutes
python examples/flower/table.py --kinds nan backwards
"""

import argparse
import json
import pathlib
import time

from run import network, run

STRATEGIES = ("fedavg", "fedmedian", "robust")
CLIENTS = 5
# What is wrong with the body, the sender or the time shows in a deployment only.
DEPLOYED = ("unreadable", "forged", "silent", "crash")
SIMULATED = (
    *("none", "nan", "infinity", "huge", "backwards", "noise", "shape", "dtype"),
    *("extra", "missing", "metric", "garbage", "enormous", "examples", "negative"),
)


def cell(found: dict, seconds: float) -> str:
    """The last accuracy, and how far the run came if it was ended."""
    accuracy = found["accuracy"]
    last = max(map(int, accuracy), default=0)
    if not found["finished"]:
        return f"ended in round {last + 1}"
    return f"{100 * accuracy[str(last)]:.1f} ({seconds:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=SIMULATED + DEPLOYED)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--out", type=pathlib.Path, default="results/flower.json")
    arguments = parser.parse_args()
    table: dict[str, dict[str, str]] = {}
    for engine, kinds, rounds in (
        ("simulation", SIMULATED, 10),
        ("deployment", DEPLOYED, 4),
    ):
        chosen = [kind for kind in arguments.kinds if kind in kinds]
        for kind in chosen:
            for strategy in arguments.strategies:
                config = {
                    "strategy": strategy,
                    "hostility": kind,
                    "num-rounds": rounds,
                    "timeout": 30.0,
                }
                start = time.monotonic()
                with network(engine, CLIENTS) as running:
                    found = run(running, config, CLIENTS, 600.0, False)
                seconds = time.monotonic() - start
                table.setdefault(kind, {})[strategy] = cell(found, seconds)
                print(kind, strategy, table[kind][strategy], flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(table, indent=1))
    print(f"| hostility | {' | '.join(arguments.strategies)} |")
    print("|---" * (1 + len(arguments.strategies)) + "|")
    for kind, cells in table.items():
        print(f"| {kind} | {' | '.join(cells.values())} |")


if __name__ == "__main__":
    main()
