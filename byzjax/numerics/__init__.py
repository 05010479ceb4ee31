"""Passes over a stack of workers' rows, fast on every device; the machinery of rules.

A rule's author calls two modules, and nothing behind them:

* `order`, along the worker axis, every coordinate by itself: `order_statistics`,
  `middle`, `trimmed_mean`, `nearest_mean`, their weighted forms; `mark_nearest`.
* `stacked`, whole rows: `geometry` and `norms` read a `Geometry`, in whose plane rules
  weigh the workers; `weighted_sum`, `mix`, `scale` and `along_workers` make rows of
  rows; `column_sums` and `squared_distances_to_tree` measure them.

Which way goes by size and device is chosen in one function for each operation, whose
docstring has the sizes: `order.order_statistics` (network, words of bits, counting),
`_gram.centered_gram` (pairs, products, a GPU's kernel), `stacked.mix` and
`stacked.weighted_sum` (row by row, product, groups), and `_columns` for how all of them
cut the columns into blocks.
"""
