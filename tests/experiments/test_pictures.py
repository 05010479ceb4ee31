"""What pictures show: errors on their scale, every line, bold beyond the spread."""

import matplotlib.colors
import numpy as np
import pytest

from experiments import error_scale, heat_map, plot, theory_chart
from experiments.config import Config, grid
from experiments.figures import bucketing, fig3, heterogeneity, mu2sgd_convex
from experiments.store import Result


def result(config, *seeds):
    """A run of two evaluations, of seeds that end with the accuracies given."""
    accuracy = np.array([[0.5 * last, last] for last in seeds])
    steps, numbers = np.array([1, 2]), tuple(range(len(seeds)))
    return Result(config, numbers, steps, {"test_accuracy": accuracy})


def test_errors_are_logarithmic():
    given = np.array([0.0, 0.5, 0.9, 0.99])
    np.testing.assert_allclose(error_scale.accuracy(error_scale.height(given)), given)
    heights = error_scale.height(given)
    np.testing.assert_allclose(heights[3] - heights[2], heights[2] - heights[0])
    assert np.isfinite(error_scale.height(1.0))
    ticks = error_scale.ticks(*error_scale.height([0.85, 0.985]))
    assert ticks == [0.9, 0.95, 0.97, 0.98]
    # Where the usual ones are few, even ones.
    assert error_scale.ticks(*error_scale.height([0.2, 0.42])) == pytest.approx(
        [0.2, 0.25, 0.3, 0.35, 0.4]
    )


def test_every_line_is_seen_and_one_of_nobody():
    results = [result(config, 0.9, 0.92) for config in fig3.configs()]
    figure = fig3.plot(results)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        *("base rule alone", "bucketing", "nnm", "ctma", "ctma(nnm)"),
        plot.REFERENCE,
    ]
    for axis in figure.axes:  # All lie on one another, as all end with 0.91.
        *rules, nobody = axis.get_lines()
        widths = [line.get_linewidth() for line in rules]
        assert len(rules) == 5 and widths == sorted(widths, reverse=True)
        assert min(np.diff(widths[::-1])) > 0.3
        assert nobody.get_linestyle() == ":"
        low, high = axis.get_ylim()
        assert low <= 0.45 and 0.92 < high < 0.95


def test_lines_without_attackers_are_of_the_same_data():
    configs = heterogeneity.configs()
    figure = heterogeneity.plot(
        [result(c, 0.9 if c.num_byzantine else 0.97) for c in configs]
    )
    for axis in figure.axes:
        nobody = axis.get_lines()[-1]
        np.testing.assert_array_equal(nobody.get_xdata(), heterogeneity.ALPHAS)
        np.testing.assert_allclose(nobody.get_ydata(), 0.97)


def test_one_machine_is_no_line_to_compare_with():
    figure = mu2sgd_convex.plot(
        [result(c, 0.5) for c in mu2sgd_convex.configs() if c.attack != "label_flip"]
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["one machine", "sign flip, 8 of 17"]
    assert all(len(axis.get_lines()) == 5 for axis in figure.axes)


@pytest.mark.parametrize(
    ("median", "mean", "bold"),
    [
        ((0.90, 0.91), (0.80, 0.81), "0.905"),  # Ahead by far.
        ((0.90, 0.91), (0.88, 0.92), None),  # Within the spread.
        ((0.90,), (0.80,), None),  # Of one seed no spread is known.
    ],
)
def test_bold_is_beyond_the_spread(median, mean, bold):
    configs = grid(Config(), rule=["median", "mean"], attack=["little", "empire"])
    results = [
        result(c, *np.add(median if c.rule == "median" else mean, c.attack == "none"))
        for c in configs
    ]
    figure = heat_map.draw(
        results,
        rows=lambda config: config.rule,
        columns=lambda config: config.attack,
        panels=lambda config: config.optimizer,
        title="",
    )
    texts = [
        text.get_text()
        for text in figure.axes[0].texts
        if text.get_fontweight() == "bold"
    ]
    assert texts == ([bold] if bold else [])


def test_cells_that_were_not_run_are_empty():
    cells = bucketing.cell("mimic", "mean"), bucketing.cell("ipm", "krum", 0.9, 2)
    figure = bucketing.plot([result(config, 0.9) for config in cells])
    shown = [[text.get_text() for text in axis.texts] for axis in figure.axes[:2]]
    # 0.68 is the mean of 0.45 and 0.9; the worst of a row needs all of it.
    assert shown == [["0.68", *"–" * 5], [*"–" * 4, "0.68", "–"]]


def test_no_colour_is_light():
    colors = [look[0] for look in [*plot.STYLES.values(), *plot.OTHERS]]
    colors += [style[0] for style in theory_chart.STYLES.values()]
    for color in colors:
        red, green, blue = matplotlib.colors.to_rgb(color)
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.7, color
