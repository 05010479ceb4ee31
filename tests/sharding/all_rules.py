"""Every row of the table on eight devices: its result and its compiled program."""

import sys

import jax
import numpy as np

from benchmarks.collectives import collectives, largest
from byzjax import sharding
from tests import rules, stacks
from tests.sharding import processes
from tests.sharding.stacks import beside_itself, flat, layout_of, placed, ragged, strict
from tests.sharding.stacks import rows as stack


def main(path, kind, workers, *names):
    strict()
    writer = processes.Writer(path)
    layout, m = layout_of(kind), int(workers)
    x = stack(m)
    updates = placed(layout, ragged(x))
    for rule in rules.RULES:
        if names and rule.name not in names:
            continue
        aggregator = rule.make(m, stacks.some_f(rule, m))
        arguments = rules.arguments(rule, updates)
        on_devices = jax.jit(sharding.aggregate(aggregator, layout).aggregate)
        program = on_devices.lower(updates, **arguments).compile()
        text = program.as_text()
        got = flat(program(updates, **arguments))
        alone = None
        if beside_itself(rule):
            alone = jax.jit(aggregator.aggregate)(ragged(x), **arguments)
            alone = float(np.max(np.abs(flat(alone) - got)))
        writer.write(
            rule.name,
            got=got.tolist(),
            alone=alone,
            collectives=collectives(text),
            largest=largest(text),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
