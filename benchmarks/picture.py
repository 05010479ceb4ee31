"""The table and the picture of benchmarks/README.md, from what was measured.

python -m benchmarks.picture   # draws results/rules.png, prints the table
"""

import json
import pathlib
from typing import Any

from benchmarks import report

FOLDER = pathlib.Path(__file__).parent / "results"
FAMILIES = {
    "by coordinate": ("mean", "median", "trimmed_mean", "meamed", "phocas"),
    "over all distances": (
        "medoid",
        "krum",
        "multi_krum",
        "geometric_median(3)",
        "geometric_median",
        "bulyan",
        "mda",
        "smea(1)",
        "caf",
    ),
    "norms, a centre, a sample": (
        "cge",
        "monna",
        "centered_clipping",
        "aksel",
        "dnc",
    ),
    "compositions": (
        "clipping(mean)",
        "arc(mean)",
        "bucketing(median)",
        "ctma(median)",
        "ctma(geometric_median)",
        "ctma(nnm(geometric_median))",
        "nnm(geometric_median)",
        "nnm(median)",
    ),
}
# What is measured beside the rules, to compare them with.
BESIDE = ("one read", "copy")
# Device, its title, a colour, and the reads that a rule over all distances may take.
PANELS = (("cpu", "CPU", "#0072b2", 10), ("gpu", "GPU", "#b3470a", 2))


def measured(folder: pathlib.Path = FOLDER) -> dict[str, Any]:
    """For "cpu" and "gpu": where it was measured, m, d, and a record for each rule."""
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))


def _of_device(data: dict[str, Any], device: str) -> dict[str, dict[str, Any]]:
    return {record["rule"]: record for record in data[device]["rules"]}


def table(data: dict[str, Any]) -> str:
    """Every rule on both devices, as a Markdown table."""
    header = (
        "rule",
        "CPU ms",
        "reads",
        "compile s",
        "PyTorch",
        "ByzFL",
        "GPU ms",
        "reads",
        "PyTorch",
    )
    cpu, gpu = (_of_device(data, device) for device in ("cpu", "gpu"))
    rows = []
    for name in (*BESIDE, *(name for names in FAMILIES.values() for name in names)):
        here, there = cpu[name], gpu[name]
        rows.append(
            (
                f"`{name}`" if name not in BESIDE else name,
                f"{here['ms']:.2f}",
                f"{here['reads']:.1f}",
                f"{here['compile_s']:.2f}",
                _times(here, "times_torch"),
                _times(here, "times_byzfl"),
                f"{there['ms']:.2f}",
                f"{there['reads']:.1f}",
                _times(there, "times_torch"),
            )
        )
    return report.table("Every rule", header, rows)


def _times(record: dict[str, Any], key: str) -> str:
    return f"{record[key]:.1f}×" if key in record else ""


def draw(data: dict[str, Any], path: pathlib.Path) -> None:
    """Reads of the stack of every rule, the CPU beside the GPU."""
    from matplotlib.figure import Figure

    places, headings, y = {}, {}, 0.0
    for family, names in FAMILIES.items():
        headings[family] = y
        places |= {name: y + i for i, name in enumerate(names, 1)}
        y += len(names) + 1.4
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharex=True, sharey=True)
    for axis, (device, title, colour, target) in zip(axes, PANELS, strict=True):
        records = _of_device(data, device)
        axis.axvline(1, color="black", lw=1.2)
        axis.axvline(target, color="#555555", lw=1, ls="--")
        for name, at in places.items():
            reads = records[name]["reads"]
            axis.plot([1, reads], [at, at], color=colour, lw=5, solid_capstyle="butt")
            axis.plot(reads, at, "o", color=colour, ms=7)
            axis.annotate(
                f"{reads:.1f}",
                (reads, at),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
        m, d = data[device]["m"], data[device]["d"]
        machine = data[device]["source"]["machine"]
        axis.set_title(
            f"{title}: {machine}\nm = {m}, d = {d:,}",
            fontsize=10,
            loc="left",
        )
        axis.set_xscale("log")
        axis.set_xlim(0.9, 90)
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.set_xlabel(
            "time in reads of the stack\n"
            f"(dashed: {target}, the target of rules over all distances)",
            fontsize=9.5,
        )
        axis.grid(axis="x", alpha=0.25)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(
        [*places.values(), *headings.values()], [*places, *headings], fontsize=10
    )
    for label in axes[0].get_yticklabels()[len(places) :]:
        label.set_fontweight("bold")
    axes[0].set_ylim(y - 0.4, -0.8)
    figure.savefig(path, dpi=150)


def main() -> None:
    data = measured()
    draw(data, FOLDER / "rules.png")
    print(table(data))


if __name__ == "__main__":
    main()
