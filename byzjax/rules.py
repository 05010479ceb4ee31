"""Writing a rule of one's own: from a few lines of mathematics to an `Aggregator`.

    from byzjax import rules

    def trimmed_range(num_byzantine):
        def reduce(rows):  # [m, ...] -> [...], in float32 at least
            f = num_byzantine
            m = rows.shape[0]
            low, high = rules.order_statistics(rows, [f, m - f - 1])
            return 0.5 * low + 0.5 * high

        return rules.coordinatewise("trimmed_range", reduce)

Which lift a rule takes:

* `coordinatewise(name, reduce)`: a function of one leaf along axis 0, called with the
  leaf `[m, ...]` or blocks of its columns, NaN and all.
* `geometric(name, weigh)`: weights of the workers `[m]`, from where their rows lie: a
  `Geometry` has `norms`, `squared_distances`, `finite`, and `squared_distances_to`.
  With `absent=True` the rule takes `present=`: then count `num_present` workers.
* `premixed(name, rule, matrix)`: a meta-rule on means of the rows, `W [n, m]` of a
  `Geometry`; `prescaled(name, rule, factors)`: on each row times a factor.
* none of them: `byzjax.Aggregator(init, update)`, with a state or extra arguments, over
  `geometry`, `norms` and `weighted_sum`.

What is made so composes with everything: meta-rules, chains, trainers, `influence`. Its
meta-rules over geometric bases work on m×m arrays, and its passes are the library's own
fast ones. `byzjax.testing.check_rule` runs the library's properties on it.

Of the sums and sorts along the worker axis use `order_statistics`, `middle`, `row_sum`
and `mark_nearest`: those of `jax.numpy` are 30 to 300 times slower on a CPU. A row that
is not finite is an attacker's: select before you multiply, as 0·inf is NaN; the lifts
leave such rows out of sums whatever their weight.
"""

from byzjax.aggregators.lift import (
    coordinatewise,
    geometric,
    premixed,
    prescaled,
)
from byzjax.numerics.order import mark_nearest, middle, order_statistics, row_sum
from byzjax.numerics.stacked import (
    Geometry,
    geometry,
    normalized,
    norms,
    weighted_sum,
)

__all__ = [
    "Geometry",
    "coordinatewise",
    "geometric",
    "geometry",
    "mark_nearest",
    "middle",
    "normalized",
    "norms",
    "order_statistics",
    "premixed",
    "prescaled",
    "row_sum",
    "weighted_sum",
]
