"""The guard on eight devices beside itself on one, over steps with a bad worker."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from benchmarks.collectives import collectives
from byzjax import sharding
from tests.sharding import processes
from tests.sharding.stacks import flat, layout_of, placed, ragged, strict
from tests.sharding.stacks import rows as stack

STEPS, BAD = 14, 4


def main(path, *kinds_and_workers):
    strict()
    writer = processes.Writer(path)
    for each in kinds_and_workers:
        kind, workers = each.split(":")
        layout, m = layout_of(kind), int(workers)
        alone = byzjax.guard(byzjax.nnm(byzjax.median(), 2), m)
        spread = sharding.aggregate(alone, layout)
        rng = np.random.default_rng(0)
        x = stack(m)
        params = jax.tree.map(lambda leaf: leaf[0], ragged(x))
        states = [jax.jit(alone.init)(params), spread.init(params)]
        updates = [jax.jit(alone.update), None]
        gaps, moves = [], []
        for _ in range(STEPS):
            rows = x + rng.normal(size=x.shape).astype(np.float32)
            rows[BAD] += 2 * rng.normal(size=x.shape[1]).astype(np.float32)
            tree = ragged(rows)
            on_devices = placed(layout, tree)
            if updates[1] is None:
                lowered = jax.jit(spread.update).lower(on_devices, states[1])
                moves = collectives(lowered.compile().as_text())
                updates[1] = jax.jit(spread.update)
            one, states[0] = updates[0](tree, states[0])
            two, states[1] = updates[1](on_devices, states[1])
            gaps.append(float(np.max(np.abs(flat(one) - flat(two)))))
        report = byzjax.guard_report(states[1], layout)
        writer.write(
            each,
            gap=max(gaps),
            evidence=float(jnp.max(jnp.abs(states[0].evidence - states[1].evidence))),
            suspects=[worker.worker for worker in report.suspects],
            alone=np.flatnonzero(states[0].suspected).tolist(),
            devices=[worker.devices for worker in report.workers],
            there=[move.bytes for move in moves if move.kind == "all-to-all"],
            rest=[[x.kind, x.bytes] for x in moves if x.kind != "all-to-all"],
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
