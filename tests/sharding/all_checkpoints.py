"""Saves or restores a state, as one of several processes of several devices."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import sharding
from tests.sharding import processes
from tests.sharding.stacks import strict

M, D = 8, 13


def make_trainer(layout):
    return byzjax.trainer(
        lambda params, batch: jnp.mean((batch @ params["w"]) ** 2),
        worker=byzjax.momentum(0.9),
        # One that remembers coordinates, and a key.
        aggregator=byzjax.with_key(
            byzjax.bucketing(byzjax.centered_clipping(1.0), 2), jax.random.key(5)
        ),
        server=optax.sgd(0.1, momentum=0.9),
        num_workers=M,
        layout=layout,
    )


def digests(state):
    """Hashes: of what is shared by leaf, and of each own worker's rows by worker."""

    def digest(x):
        return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()

    replicate = jax.jit(
        lambda tree: [
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
            for x in jax.tree.leaves(tree)
        ],
        out_shardings=jax.tree.leaves(state)[0].sharding,  # The step's: replicated.
    )
    shared = [
        digest(x.addressable_data(0))
        for x in replicate(state._replace(worker_state=()))
    ]
    rows = {}
    for leaf in jax.tree.leaves(state.worker_state):
        for shard in leaf.addressable_shards:
            begin = shard.index[0].start or 0
            for k, row in enumerate(np.asarray(shard.data)):
                rows[begin + k] = rows.get(begin + k, "") + digest(row)
    return shared, rows


def main(path, address, count, rank, verb, folder):
    strict()
    count, rank = int(count), int(rank)
    if count > 1:
        sharding.start(address, count, rank)
    mesh = jax.make_mesh((jax.device_count(),), ("workers",))
    layout = sharding.Layout(mesh)
    trainer = make_trainer(layout)
    checkpoints = sharding.Checkpoints(folder)
    with jax.set_mesh(mesh):
        state = jax.jit(trainer.init)({"w": jnp.ones(D)})
        if verb == "save":
            draw = np.random.default_rng(0)
            batches = draw.normal(size=(M, 4, D)).astype(np.float32)
            own = sharding.place(layout, batches[layout.workers_of_process(M)])
            step = jax.jit(trainer.step, donate_argnums=0)
            for t in range(2):
                state, _ = step(state, own, jax.random.key(t))
            checkpoints.save(2, {"state": state, "key": jax.random.key(7)}, layout)
        else:
            like = {"state": state, "key": jax.random.key(0)}
            step, found = checkpoints.restore(like, layout)
            assert step == 2
            assert jax.random.key_data(found["key"]).tolist() == [0, 7]
            state = found["state"]
            assert jax.tree.all(
                jax.tree.map(
                    lambda x, y: x.sharding == y.sharding, state, like["state"]
                )
            )
        shared, rows = digests(state)
    devices = jax.device_count(), jax.local_device_count()
    processes.Writer(path).write("state", shared=shared, rows=rows, devices=devices)
    sharding.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
