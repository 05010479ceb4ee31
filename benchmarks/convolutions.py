"""A training step of Flax's `nn.Conv`, as it is and with `byzjax.layers`.

    python -m benchmarks.convolutions --runs 3

Twenty workers of 32 MNIST-sized images each, two convolutions 3×3 (32 and 64 features),
two dense layers: 1.2 million parameters. Runs are interleaved; the median is shown.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import byzjax

NUM_WORKERS, BATCH = 20, 32
FAST = byzjax.layers.conv_general_dilated


class Net(nn.Module):
    fast: bool

    @nn.compact
    def __call__(self, images):
        own = FAST if self.fast else None
        for features in (32, 64):
            layer = nn.Conv(features, (3, 3), padding="VALID", conv_general_dilated=own)
            images = nn.relu(layer(images))
        images = nn.max_pool(images, (2, 2), (2, 2)).reshape(images.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(128)(images)))


def step_of(fast: bool, at_once: int):
    """A compiled step and the state it starts from."""
    model = Net(fast)

    def loss_fn(params, batch):
        logits = model.apply(params, batch[0])
        assert isinstance(logits, jax.Array)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    trainer = byzjax.trainer(
        loss_fn,
        worker=byzjax.momentum(0.9),
        aggregator=byzjax.median(),
        server=optax.sgd(0.1),
        num_workers=NUM_WORKERS,
        workers_at_once=at_once,
    )
    draw = np.random.default_rng(0)
    shape = NUM_WORKERS, BATCH
    images = jnp.asarray(draw.normal(size=(*shape, 28, 28, 1)), jnp.float32)
    batches = images, jnp.asarray(draw.integers(0, 10, shape), jnp.int32)
    key = jax.random.key(0)
    state = trainer.init(model.init(key, images[0]))
    compiled = jax.jit(trainer.step).lower(state, batches, key).compile()
    return lambda: jax.block_until_ready(compiled(state, batches, key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 5, NUM_WORKERS])
    options = parser.parse_args()
    cases = [(fast, n) for n in options.at_once for fast in (False, True)]
    steps = {case: step_of(*case) for case in cases}
    times = {case: [] for case in cases}
    for run in range(options.runs + 1):
        for case, step in steps.items():
            start = time.perf_counter()
            step()
            if run:  # The first is for the caches.
                times[case].append(time.perf_counter() - start)
    for (fast, n), each in times.items():
        name = "byzjax.layers" if fast else "nn.Conv"
        print(f"{name:14} {n:2} at once: {statistics.median(each):6.2f} s")


if __name__ == "__main__":
    main()
