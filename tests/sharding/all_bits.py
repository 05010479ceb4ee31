"""The bits of some rules, as one of several processes that share eight devices."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import sharding
from tests import rules, stacks
from tests.sharding import processes
from tests.sharding.stacks import NUM_DEVICES, strict
from tests.sharding.stacks import rows as stack

M, D = 16, 1003
# Of each kind: sums of squares, products, a loop on them, counts, a sample, a draw.
NAMES = [
    "mean",
    "geometric_median",
    "centered_clipping",
    "ctma(nnm(median))",
    "dnc",
    "fltrust",
    "signguard",
    "foolsgold",
]


def main(path, address, count, rank, *names):
    strict()
    count, rank = int(count), int(rank)
    if count > 1:
        jax.distributed.initialize(
            address, count, rank, coordinator_bind_address=address if not rank else None
        )
    assert jax.process_count() == count
    assert jax.device_count() == NUM_DEVICES
    writer = processes.Writer(path)
    layout = sharding.Layout(jax.make_mesh((NUM_DEVICES,), ("workers",)))
    x = stack(M, D)
    own = layout.workers_of_process(M)
    updates = sharding.place(layout, x[own])
    key = jax.random.key(rules.KEY)
    with jax.set_mesh(layout.mesh):
        for rule in rules.RULES:
            if rule.name not in (names or NAMES):
                continue
            made = rule.make(M, stacks.some_f(rule, M))
            given = rules.arguments(rule, jnp.asarray(x)) | (
                {"key": key} if rule.random else {}
            )
            given = {k: np.asarray(v) if k != "key" else v for k, v in given.items()}
            spread = sharding.aggregate(made, layout)
            out = jax.jit(lambda x, g, s=spread: s.aggregate(x, **g))(updates, given)
            bits = np.asarray(out.addressable_data(0)).tobytes()
            writer.write(
                rule.name, bits=hashlib.sha256(bits).hexdigest(), rows=list(own)
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
