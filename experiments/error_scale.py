"""An axis of accuracies on which errors are logarithmic: 0.9 to 0.98 gets its room."""

import matplotlib.ticker
import numpy as np

# Accuracies that are written at the axis, where there is room for enough of them.
TICKS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
LEAST_ERROR = 1e-4


def height(accuracy):
    """Where an accuracy stands on an axis on which errors are logarithmic."""
    return -np.log10(np.maximum(1 - np.asarray(accuracy, float), LEAST_ERROR))


def accuracy(height):
    """The accuracy that stands there."""
    return 1 - 10.0 ** -np.asarray(height, float)


def ticks(low, high):
    """Round accuracies between two heights."""
    found = [tick for tick in TICKS if low <= height(tick) <= high]
    if len(found) < 4:
        even = matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 5, 10])
        ends = float(accuracy(low)), float(accuracy(high))
        found = np.round(even.tick_values(*ends), 6)
    return [float(tick) for tick in found if low <= height(tick) <= high]


def apply(axis, drawn):
    """Scales the y axis for lines [n] of accuracies."""
    values = np.concatenate([y[np.isfinite(y)] for y in drawn] + [np.zeros(0)])
    if not values.size:
        values = np.array([0.0, 0.9])
    low, high = height(values.min()), height(values.max())
    room = 0.04 * max(high - low, 0.05)
    low, high = max(0, low - room), high + room
    axis.set_yscale("function", functions=(height, accuracy))
    axis.set_ylim(accuracy(low), accuracy(high))
    shown = ticks(low, high)
    axis.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_yticks([], minor=True)
