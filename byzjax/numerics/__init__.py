"""Passes over a stack of workers' rows, fast on every device; the machinery of rules.

A rule's author calls the first two of these modules, and nothing behind them:

* `order`, along the worker axis, every coordinate by itself: `order_statistics`,
  `middle`, `trimmed_mean`, `nearest_mean`, their weighted forms; `mark_nearest`.
* `stacked`, whole rows: `geometry` and `norms` read a `Geometry`, in whose plane rules
  weigh the workers; `weighted_sum`, `mix`, `scale` and `along_workers` make rows of
  rows; `column_sums`, `distances_to_tree` measure them.
* `devices`, for layouts of several: `split_columns` says how columns lie, and passes
  then run on each device's own by `each`.

Small helpers beside them: `order.take`, `row_sum`, `reduce_rows`, `without_slivers`;
`stacked.normalized`, `root`, `over`, `point`, `product`, `total`, `flat_rows`.

Which way an operation takes by size and device is said in its docstring and decided in
its module: `order.order_statistics` (network, words of bits, counting; above 64 rows
`nearest_mean`, `trimmed_mean`, `take` and `stacked.along_workers` go by blocks too),
`_gram.centered_gram` (pairs, products, a GPU's kernel), `stacked.mix` and
`stacked.weighted_sum` (row by row, product, groups), and `_columns` for how all of them
cut the columns into blocks.
"""
