"""A table on the terminal, all numbers as JSON, and time against the memory bound."""

import json
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

LIMIT = 10  # Reads of the stack that a rule over the geometry may take.


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table, so that it can be pasted."""
    lines = [f"\n### {title}\n", "| " + " | ".join(header) + " |"]
    lines.append("|" + "---|" * lines[-1].count(" | ") + "---|")
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _ms(spread: dict[str, Any]) -> str:
    low, middle, high = (1e3 * spread[k] for k in ("low", "median", "high"))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def rules_table(records: list[dict[str, Any]]) -> str:
    header = (
        "rule",
        "m",
        "d",
        "ms (quartiles)",
        "one read ms",
        "reads",
        "of copy bandwidth",
        "compile s",
        "memory in [d]",
        "torch",
        "ByzFL",
    )
    rows = []
    for r in records:
        seconds = r["seconds"]["median"]
        peers = [
            f"{r['peers'][name]['median'] / seconds:.1f}×" if name in r["peers"] else ""
            for name in ("torch", "byzfl")
        ]
        temp = r["temp_bytes"]
        rows.append(
            (
                r["rule"],
                r["m"],
                r["d"],
                _ms(r["seconds"]),
                f"{1e3 * r['read_seconds']:.2f}",
                f"{r['reads']:.1f}",
                f"{r['copy_bandwidth_share']:.0%}",
                f"{r['compile_seconds']:.2f}",
                "" if temp is None else f"{temp / 4 / r['d']:.2f}",
                *peers,
            )
        )
    title = "Rules, against one read of the stack"
    return table(title, header, rows) + _bandwidth(records) + _peers_summary(records)


def _bandwidth(records) -> str:
    copies = [r for r in records if r["rule"] == "copy"]
    rates = (8 * r["m"] * r["d"] / r["seconds"]["median"] / 1e9 for r in copies)
    rate = max(rates, default=0)
    return f"\n\nA copy moves up to {rate:.0f} GB/s, reading and writing."


def _peers_summary(records) -> str:
    lines = []
    for name, title in (("torch", "PyTorch"), ("byzfl", "ByzFL")):
        ratios = {
            r["rule"]: r["peers"][name]["median"] / r["seconds"]["median"]
            for r in records
            if name in r["peers"]
        }
        if ratios:
            least = sorted(ratios, key=ratios.__getitem__)[:5]
            lines.append(
                f"\nGeometric mean over the {len(ratios)} rules shared with {title}: "
                f"{statistics.geometric_mean(ratios.values()):.1f}×; the least are "
                + ", ".join(f"{name} {ratios[name]:.1f}×" for name in least)
                + "."
            )
    return "\n".join(["", *lines])


def trees_table(records: list[dict[str, Any]]) -> str:
    header = (
        "model",
        "leaves",
        "d",
        "rule",
        "ms (quartiles)",
        "of one leaf",
        "compile s",
    )
    rows = (
        (
            r["model"],
            r["leaves"],
            r["d"],
            r["rule"],
            _ms(r["seconds"]),
            f"{r['ratio']:.2f}×",
            f"{r['compile_seconds']:.2f}",
        )
        for r in records
    )
    return table("Trees of many leaves, against one leaf", header, rows)


def step_table(records: list[dict[str, Any]]) -> str:
    header = (
        "attack",
        "ms (quartiles)",
        "outside gradients",
        "compile s",
        "PyTorch ms",
    )
    rows = []
    for r in records:
        torch = [
            f"{_ms(r[key])}: {r[key + '_ratio']:.1f}×{note}"
            for key, note in (
                ("torch", ""),
                ("torch_one_thread", " (one thread)"),
                ("torch_honest", " (one thread, honest only)"),
            )
            if key in r
        ]
        rows.append(
            (
                r["attack"],
                _ms(r["seconds"]),
                f"{r['outside_gradients']:.0%}",
                f"{r['compile_seconds']:.1f}",
                ", ".join(torch),
            )
        )
    return table("Training step, MNIST network, 17 workers × 4 images", header, rows)


def sweep_table(records: list[dict[str, Any]]) -> str:
    header = (
        "runs",
        "steps",
        "one by one ms",
        "vmap ms",
        "lax.map ms",
        "compile s: one, vmap, lax.map",
        "vmap leads for steps, if each run compiles",
    )
    rows = (
        (
            r["runs"],
            r["steps"],
            _ms(r["one_by_one"]),
            f"{_ms(r['vmapped'])}: {r['vmapped_ratio']:.2f}×",
            f"{_ms(r['mapped'])}: {r['mapped_ratio']:.2f}×",
            ", ".join(f"{r['compile_' + k]:.1f}" for k in ("one", "vmapped", "mapped")),
            "all" if r["leads_for_steps"] is None else f"{r['leads_for_steps']:.0f}",
        )
        for r in records
    )
    return table("A sweep as one program", header, rows)


def report_table(records: list[dict[str, Any]]) -> str:
    header = ("rule", "step ms", "with report_workers ms", "ratio", "compile s: both")
    rows = [
        (
            r["rule"],
            _ms(r["seconds"]),
            _ms(r["reported"]),
            f"{r['ratio']:.2f}",
            f"{r['compile_seconds']:.1f}, {r['compile_reported']:.1f}",
        )
        for r in records
    ]
    return table("Whom the rule trusted, in the same step", header, rows)


TABLES = {
    "rules": rules_table,
    "scaling": rules_table,
    "trees": trees_table,
    "step": step_table,
    "report": report_table,
    "sweep": sweep_table,
}


def line(record: dict[str, Any]) -> str:
    """What a record is of, and its time, as soon as it is there."""
    of = ("model", "rule", "attack", "m", "d", "runs")
    names = [f"{key} {record[key]}" for key in of if key in record]
    spread = record["seconds" if "seconds" in record else "mapped"]
    return ", ".join([*names, _ms(spread) + " ms"])


def write(results: dict[str, Any], folder: pathlib.Path) -> None:
    """`results.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def plot(results: dict[str, Any], folder: pathlib.Path) -> None:
    """`rules.png`, where matplotlib is installed and rules were timed."""
    if results.get("rules"):
        _plot(results["rules"], folder / "rules.png")


def _plot(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("No plot: matplotlib is not installed.")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    largest = max((r["m"], r["d"]) for r in records)
    shown = [r for r in records if (r["m"], r["d"]) == largest]
    shown.sort(key=lambda r: r["reads"])
    figure, axis = plt.subplots(figsize=(8, 0.28 * len(shown) + 1.2))
    axis.axvline(1, color="black", lw=1)
    axis.axvline(LIMIT, color="#cc3311", lw=1, ls="--")
    for y, r in enumerate(shown):
        read = r["read_seconds"]
        low, high = r["seconds"]["low"] / read, r["seconds"]["high"] / read
        axis.plot([low, high], [y, y], color="#0072b2", lw=2, alpha=0.5)
        axis.plot(r["reads"], y, "o", color="#0072b2", ms=5)
        if "byzfl" in r["peers"]:
            axis.plot(r["peers"]["byzfl"]["median"] / read, y, "x", color="#e69f00")
    axis.set_yticks(range(len(shown)), [r["rule"] for r in shown])
    axis.set_xscale("log")
    axis.set_xlabel(
        f"time in reads of the stack, m = {largest[0]}, d = {largest[1]} "
        "(dots: byzjax, crosses: ByzFL)"
    )
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
