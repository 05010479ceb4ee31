"""The pictures of `experiments.demo`: what accuracy came out, and who was trusted."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.cm
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np


def accuracy(curves, steps: int, workers: tuple[int, int], path: pathlib.Path) -> None:
    """Accuracy against steps: a row for each optimizer, a column for each attack.

    Args:
      curves: accuracies, by (optimizer, attack, rule).
      steps: of a run.
      workers: how many there are, and how many of them are Byzantine.
      path: of the picture.
    """
    optimizers, attacks, rules = map(dict.fromkeys, zip(*curves, strict=True))
    points = len(next(iter(curves.values())))
    at = np.arange(1, points + 1) * (steps // points)
    figure, axes = plt.subplots(
        len(optimizers), len(attacks), figsize=(12, 5.6), sharex=True, sharey=True
    )
    styles = zip(
        rules,
        ("#999999", "#0072b2", "#e69f00", "#009e73", "#cc3311"),
        "osD^v",
        strict=True,
    )
    for rule, color, marker in styles:
        for axis_row, optimizer in zip(axes, optimizers, strict=True):
            for axis, attack in zip(axis_row, attacks, strict=True):
                curve = curves[optimizer, attack, rule]
                axis.plot(
                    at, curve, marker + "-", color=color, ms=3.5, lw=1.4, label=rule
                )
    for axis, attack in zip(axes[0], attacks, strict=True):
        axis.set_title(attack)
    for axis, optimizer in zip(axes[:, 0], optimizers, strict=True):
        axis.set_ylabel(f"{optimizer}\ntest accuracy")
    for axis in axes.flat:
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.suptitle(
        f"Digits, {workers[0]} workers, {workers[1]} Byzantine: "
        "one rule's triumph is another's failure"
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(rules), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def trust(influences, workers: tuple[int, int], path: pathlib.Path) -> None:
    """Each worker's influence, step by step: a row for each rule, a column an attack.

    Args:
      influences: `[steps, m]` of `Metrics.workers`, by (attack, rule).
      workers: m, and how many of them, the last ones, are Byzantine.
      path: of the picture.
    """
    attacks, rules = map(dict.fromkeys, zip(*influences, strict=True))
    m, f = workers
    size = 2.7 * len(attacks) + 1.5, 1.5 * len(rules) + 1
    figure, axes = plt.subplots(
        len(rules), len(attacks), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    norm = matplotlib.colors.Normalize(0, 2 / m)
    for axis_row, rule in zip(axes, rules, strict=True):
        for axis, attack in zip(axis_row, attacks, strict=True):
            shares = influences[attack, rule]
            axis.imshow(
                shares.T,
                aspect="auto",
                cmap="magma",
                norm=norm,
                interpolation="nearest",
                extent=(0.5, len(shares) + 0.5, m, 0),
            )
            axis.axhline(m - f, color="white", lw=1.2)
            share = shares[:, m - f :].sum(axis=1).mean()
            axis.set_title(f"Byzantine share {share:.0%}", fontsize=8, pad=3)
            axis.set_yticks([(m - f) / 2, m - f / 2], ["honest", "Byzantine"])
            axis.tick_params(length=0)
    for axis, attack in zip(axes[0], attacks, strict=True):
        axis.annotate(
            attack, (0.5, 1.22), xycoords="axes fraction", ha="center", fontsize=11
        )
    for axis, rule in zip(axes[:, 0], rules, strict=True):
        axis.set_ylabel(rule, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.suptitle("Whom the rule trusts: each worker's influence, step by step")
    right = 1 - 1 / size[0]  # An inch for the bar.
    figure.tight_layout(rect=(0, 0, right, 0.98))
    colors = matplotlib.cm.ScalarMappable(norm, "magma")
    bar = figure.colorbar(
        colors, cax=figure.add_axes((right + 0.15 / size[0], 0.2, 0.15 / size[0], 0.6))
    )
    bar.set_ticks([0, 1 / m, 2 / m], labels=["0", "1/m", "≥ 2/m"])
    figure.savefig(path, dpi=150)
    plt.close(figure)
