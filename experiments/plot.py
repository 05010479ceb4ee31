"""Drawing shared by the figures: small multiples of curves and of sweeps.

A rule has the same colour and marker in every figure: its meta-rules decide, and base
rules have panels of their own. Colours are Okabe and Ito's, told apart by the
colour-blind. Lines are drawn from the widest to the thinnest, so that one that lies on
another shows it at both sides.
"""

import itertools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import error_scale
from experiments.config import Config
from experiments.store import Result

Of = Callable[[Config], Any]
# By the meta-rules around a base, or by optimizer: colour and marker, the widest first.
STYLES = {
    "mean": ("#999999", "x"),
    "{}": ("#0072b2", "o"),
    "bucketing({})": ("#cc79a7", "s"),
    "nnm({})": ("#009e73", "D"),
    "ctma({})": ("#e69f00", "^"),
    "ctma(nnm({}))": ("#000000", "v"),
    "momentum": ("#0072b2", "o"),
    "mu2sgd": ("#d55e00", "^"),
    "mu2sgd_exact": ("#d55e00", "^"),
    "sgd": ("#999999", "x"),
    "storm": ("#009e73", "D"),
    "anytime": ("#cc79a7", "s"),
}
OTHERS = (
    *(("#0072b2", "o"), ("#d55e00", "^"), ("#009e73", "D"), ("#cc79a7", "s")),
    *(("#e69f00", "v"), ("#56b4e9", "P"), ("#000000", "*"), ("#882255", "<")),
)
NAMES = {
    "{}": "base rule alone",
    "sgd": "SGD",
    "storm": "STORM",
    "anytime": "anytime SGD",
    "mu2sgd_exact": "μ²-SGD",
}
REFERENCE = "nobody attacks, mean"


def pretty(name: Any) -> str:
    """A name for readers: μ²-SGD for mu2sgd, ctma(nnm) for ctma(nnm({}))."""
    text = NAMES.get(name, str(name)).replace("({})", "")
    return text.replace("mu2sgd", "μ²-SGD").replace("_", " ")


def setting(results: Sequence[Result]) -> str:
    """What was really run: data, network, workers, steps, seeds."""
    configs = [result.config for result in results]
    counts = sorted({config.num_byzantine for config in configs})
    fs = " or ".join(map(str, counts))
    if len(counts) > 2:
        fs = f"{counts[0]} to {counts[-1]}"
    workers = {config.num_workers for config in configs}
    honest = {config.num_workers - config.num_byzantine for config in configs}
    parts = [*dict.fromkeys(f"{config.dataset}, {config.model}" for config in configs)]
    if workers == {1}:
        parts.append("one machine")
    elif len(workers) == 1:
        parts.append(f"{fs} of {workers.pop()} workers Byzantine")
    elif len(honest) == 1:
        parts.append(f"{honest.pop()} honest workers and {fs} Byzantine")
    seeds = sorted({len(result.seeds) for result in results})
    parts.append(" or ".join(f"{n} steps" for n in sorted({c.steps for c in configs})))
    parts.append(f"{seeds[0]} seed{'s' if seeds[0] > 1 else ''}")
    return ", ".join(parts)


def base_of(rule: str) -> str:
    """The innermost rule: median for ctma(nnm(median))."""
    return rule.split(",")[0].replace(")", "").split("(")[-1]


def meta_of(rule: str) -> str:
    """What is around the base: ctma(nnm({})) for ctma(nnm(median))."""
    base = base_of(rule)
    return rule if base == "mean" else rule.replace(base, "{}", 1)


def is_reference(config: Config) -> bool:
    """Whether nobody of many attacks: a line to compare all others with."""
    alone = config.num_workers == 1
    return config.num_byzantine == 0 and config.attack == "none" and not alone


def curves(
    results: Sequence[Result], *, rows: Of, columns: Of, lines: Of, title: str
) -> Figure:
    """Test accuracy against steps; bands reach from the worst seed to the best.

    Results without attackers are drawn in every panel whose row they share, or in all.
    """

    def points(group):
        (result,) = group
        return result.steps, result.accuracy

    return _multiples(results, rows, columns, lines, title, points, "step")


def sweep(
    results: Sequence[Result],
    *,
    along: Of,
    rows: Of,
    columns: Of,
    lines: Of,
    title: str,
    label: str,
    best: bool = False,
) -> Figure:
    """Final test accuracy against a number, on a logarithmic axis.

    Or the best of all evaluations, that of the mean over seeds.
    """

    def value(result):
        if not best:
            return result.final
        return result.accuracy[:, np.nan_to_num(result.accuracy).mean(0).argmax()]

    def points(group):
        group = sorted(group, key=lambda result: along(result.config))
        count = min(len(result.seeds) for result in group)
        values = np.stack([value(result)[:count] for result in group], axis=1)
        return np.array([along(result.config) for result in group]), values

    figure = _multiples(results, rows, columns, lines, title, points, label)
    for axis in figure.axes:
        axis.set_xscale("log")
        axis.minorticks_off()
    return figure


def of_grid(results: Sequence[Result]) -> Figure:
    """Any grid: a line a rule, a column an attack, a row for each other setting.

    Where no rule varies, a line is an optimizer, or else all that differs.
    """
    varying = [
        name
        for name in Config.__dataclass_fields__
        if len({getattr(result.config, name) for result in results}) > 1
    ]

    def take(*names):
        """The first of these fields that varies and is not used yet."""
        for name in names:
            if name in varying:
                varying.remove(name)
                return lambda config: getattr(config, name)
        return None

    lines = take("rule", "optimizer", "model", "dataset")
    columns = take("attack", "partition", "optimizer", "learning_rate")
    rest = tuple(varying)

    def rows(config):
        return ", ".join(
            str(getattr(config, name))
            if isinstance(getattr(config, name), str)
            else f"{pretty(name)} {getattr(config, name)}"
            for name in rest
        )

    return curves(
        results,
        rows=rows,
        columns=columns or (lambda config: config.attack),
        lines=lines or (lambda config: config.rule),
        title="Test accuracy",
    )


def save(figure: Figure, path: Any) -> None:
    """Writes an image, for a page or a README."""
    figure.savefig(path, dpi=150)


def names_of(results, of):
    """The values of a function of the configurations, in their order, each once."""
    return list(dict.fromkeys(of(result.config) for result in results))


def _multiples(results, rows, columns, lines, title, points, label):
    attacked = [r for r in results if not is_reference(r.config)] or list(results)
    quiet = [result for result in results if result not in attacked]
    names, rights = names_of(attacked, rows), names_of(attacked, columns)
    size = max(2.3 * len(rights) + 0.8, 6), 2.1 * len(names) + 1.2
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(names), len(rights), sharex=True, sharey=True, squeeze=False
    )
    handles, drawn = {}, []
    styles = _styles(names_of(attacked, lines))
    for (i, j), axis in np.ndenumerate(axes):
        here = [
            result
            for result in attacked
            if (rows(result.config), columns(result.config)) == (names[i], rights[j])
        ]
        groups = {
            line: [result for result in here if lines(result.config) == line]
            for line in styles
        }
        groups = {line: group for line, group in groups.items() if group}
        for line, group in groups.items():
            x, y = points(group)
            color, marker, width, offset = styles[line]
            every = max(1, len(x) // 8)
            (handle,) = axis.plot(
                *(x, y.mean(0)),
                **dict(color=color, linewidth=width, solid_capstyle="round"),
                **dict(
                    marker=marker,
                    markersize=2.2 + width,
                    markevery=(offset % every, every),
                ),
                **dict(markeredgecolor="white", markeredgewidth=0.4),
            )
            if marker in "x+":
                handle.set_markeredgecolor(color)
            if len(y) > 1:
                band = axis.fill_between(x, y.min(0), y.max(0), alpha=0.15)
                band.set(color=color, linewidth=0)
            drawn += [y.mean(0), y.max(0)]
            handles.setdefault(pretty(line), handle)
        for line, group in _references(quiet, here, rows, lines, names[i]).items():
            x, y = points(group)
            color = "#555555" if line is None else styles[line][0]
            style = dict(color=color, linestyle=":", linewidth=1.3, zorder=1)
            (handle,) = axis.plot(x, y.mean(0), **style)
            drawn.append(y.mean(0))
            name = REFERENCE if line is None else f"{pretty(line)}, nobody attacks"
            handles.setdefault(name, handle)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if not here:
            axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center")
        if i == 0:
            lines_of_title = textwrap.wrap(pretty(rights[j]), 30)
            axis.set_title("\n".join(lines_of_title), fontsize=10)
        if i == len(names) - 1:
            axis.set_xlabel(label)
        if j == 0:
            axis.set_ylabel(f"{pretty(names[i])}\ntest accuracy".strip())
    error_scale.apply(axes[0, 0], drawn)
    figure.suptitle(f"{title}\n{setting(attacked)}", fontsize=11)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), max(2, int(size[0] / 1.9))),
        frameon=False,
    )
    return figure


def _styles(lines):
    """Line → colour, marker, width, first marker; the widest is drawn first."""
    order = list(STYLES)
    known = sorted((line for line in lines if line in STYLES), key=order.index)
    others = [line for line in lines if line not in STYLES]
    looks = [STYLES[line] for line in known]
    looks += [look for look, _ in zip(itertools.cycle(OTHERS), others)]
    widths = np.linspace(3.0, 1.1, len(lines)) if len(lines) > 1 else [1.8]
    return {
        line: (*look, float(width), place)
        for place, (line, look, width) in enumerate(
            zip([*known, *others], looks, widths, strict=True)
        )
    }


def _references(quiet, here, rows, lines, name):
    """Line, or None where lines are rules → results without attackers, for a panel."""
    fitting = [r for r in quiet if rows(r.config) == name] or quiet
    optimizers = {result.config.optimizer for result in here}
    fitting = [r for r in fitting if r.config.optimizer in optimizers]
    found = {}
    for result in fitting:
        line = lines(result.config)
        mine = line if line in {lines(each.config) for each in here} else None
        found.setdefault(mine, []).append(result)
    return found
