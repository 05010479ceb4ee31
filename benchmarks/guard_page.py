"""Tables and the picture of what `benchmarks.guard` measured.

`python -m benchmarks.guard_page FOLDER` makes them of FOLDER/guard.json again.
"""

import json
import math
import pathlib
import statistics
import sys
from typing import Any

Records = list[dict[str, Any]]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def middle(record: dict[str, Any]) -> float:
    return statistics.median(record["delays"])


def _delay(record: dict[str, Any]) -> str:
    """Median and longest of the runs; a dash where most runs ended before."""
    longest, most = max(record["delays"]), record["most"]
    if math.isinf(middle(record)):
        named = sum(map(math.isfinite, record["delays"]))
        return f"{named} of {len(record['delays'])} in {most}"
    until = f"> {most}" if math.isinf(longest) else f"{longest:.0f}"
    return f"{middle(record):.0f} ({until})"


def delay_table(records: Records) -> str:
    frequencies = sorted({r["frequency"] for r in records}, reverse=True)
    rows, seen = [], {}
    for record in records:
        key = record["corruption"], record["size"]
        seen.setdefault(key, {})[record["frequency"]] = record
    for (name, size), cells in seen.items():
        first = cells[frequencies[0]]
        rows.append(
            (
                name if name.startswith("lane") else f"{name}: {size:g}",
                f"{first['largest']:.1f}",
                *(_delay(cells[p]) if p in cells else "" for p in frequencies),
            )
        )
    often = [
        "every step" if p == 1 else f"1 step in {round(1 / p)}" for p in frequencies
    ]
    return table(("corruption", "at most × as far out", *often), rows)


def clean_table(records: Records) -> str:
    rows = [
        (
            r["run"],
            f"{r['seeds']} × {r['steps']}",
            str(r["alarms"]),
            f"{r['steps_with_a_suspect'] / (r['seeds'] * r['steps']):.2%}",
            str(r["steps_outside"]),
            f"{r['strongest_once_in']:.2g}",
        )
        for r in records
    ]
    header = (
        *("clean runs", "steps", "alarms", "steps with a suspect"),
        *("steps served as outside, most of a run", "strongest evidence: once in"),
    )
    return table(header, rows)


def cost_table(records: Records) -> str:
    names = list(records[0]["seconds"])
    rows = []
    for r in records:
        plain = r["seconds"]["mean"]["median"]
        cells = [
            f"{1e3 * r['seconds'][name]['median']:.2f} "
            f"({1e3 * r['seconds'][name]['low']:.2f} to "
            f"{1e3 * r['seconds'][name]['high']:.2f})"
            for name in names
        ]
        ratio = r["seconds"]["guard(median)"]["median"] / plain
        rows.append((f"{r['m']} × {r['d']}", *cells, f"{ratio:.1f}"))
    return table(("workers × coordinates", *(f"{n} ms" for n in names), "ratio"), rows)


TABLES = {"clean": clean_table, "delay": delay_table, "cost": cost_table}
_COLORS = {1.0: "#0072b2", 0.1: "#e69f00", 0.01: "#009e73"}


def draw(records: Records, path: pathlib.Path) -> None:
    """Delays against the size of noise, and of corruptions of other kinds."""
    try:
        import matplotlib
    except ImportError:
        print("No picture: matplotlib is not installed.")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    noise = [r for r in records if r["corruption"].startswith("noise")]
    others = [r for r in records if not r["corruption"].startswith("noise")]
    kinds = list(dict.fromkeys((r["corruption"], r["size"]) for r in others))
    most = records[0]["most"]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.6), width_ratios=(1, 1.1), sharey=False
    )
    for p, color in _COLORS.items():
        label = "every step" if p == 1 else f"1 step in {round(1 / p)}"
        mine = [r for r in noise if r["frequency"] == p]
        shown = [min(middle(r), 1.6 * most) for r in mine]
        left.plot([r["size"] for r in mine], shown, "o-", color=color, label=label)
        for y, kind in enumerate(kinds):
            for r in others:
                if (r["corruption"], r["size"], r["frequency"]) == (*kind, p):
                    place = y + 0.22 * list(_COLORS).index(p) - 0.22
                    right.plot(min(middle(r), 1.6 * most), place, "o", color=color)
    left.set(xscale="log", yscale="log", xlabel="noise, in lengths of the gradient")
    left.set_ylabel("steps until it is named, median")
    left.axhline(1.25 * most, color="black", lw=0.8, ls=":")
    left.text(100, 1.3 * most, f"not in {most} steps", ha="right", va="bottom", size=9)
    right.legend(
        *left.get_legend_handles_labels(),
        title="it computes wrongly in",
        loc="center",
        bbox_to_anchor=(0.45, 0.34),
    )
    right.set(xscale="log", xlabel="steps until it is named, median")
    right.axvline(1.25 * most, color="black", lw=0.8, ls=":")
    labels = [
        k if k.startswith("lane") else f"gradient × {size:g}" for k, size in kinds
    ]
    right.set_yticks(range(len(kinds)), labels)
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Tables and picture of a folder."""
    folder = pathlib.Path(sys.argv[1])
    results = json.loads((folder / "guard.json").read_text("utf-8"))
    for part, make in TABLES.items():
        if results.get(part):
            print(make(results[part]), end="\n\n")
    draw(results["delay"], folder / "guard.png")


if __name__ == "__main__":
    main()
