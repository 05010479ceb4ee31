"""Checks of what users give: each error names the requirement and the value.

`arguments` has those of numbers, words and keys, `trees` those of arrays and stacks.
The first argument is the name that the error begins with.
"""

from byzjax.checks.arguments import (
    as_float,
    coefficient,
    count,
    extras,
    flag,
    functions,
    in_dtype,
    key,
    minority,
    number,
    present,
    word,
)
from byzjax.checks.trees import (
    alike,
    arrays,
    floating,
    is_dict_of_trees,
    num_workers,
    of_first_axis,
    one_worker,
    same_rows,
    stacked,
    state,
)

__all__ = [
    "alike",
    "arrays",
    "as_float",
    "coefficient",
    "count",
    "extras",
    "flag",
    "floating",
    "functions",
    "in_dtype",
    "is_dict_of_trees",
    "key",
    "minority",
    "num_workers",
    "number",
    "of_first_axis",
    "one_worker",
    "present",
    "same_rows",
    "stacked",
    "state",
    "word",
]
