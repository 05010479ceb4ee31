"""Trains on handwritten digits under attack, on one process or many that may die.

python examples/cluster/train.py
python examples/cluster/train.py --coordinator 127.0.0.1:12345 --processes 4 --process 2

Under Slurm, Kubernetes, Open MPI and on TPU pods the first line is all: JAX knows how
many processes there are. See README.md.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import byzjax

TOO_FEW = 3  # Exit status; a lost coordinator's is 75.


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Digits under attack.")
    where = parser.add_argument_group("processes, where nothing else says so")
    where.add_argument("--coordinator", metavar="HOST:PORT", help="process 0's address")
    where.add_argument("--processes", type=int, help="how many")
    where.add_argument("--process", type=int, help="which this is, from 0")
    where.add_argument("--dead-after", type=int, default=5, help="seconds of silence")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--byzantine", type=int, default=2, help="how many attack")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", help="for checkpoints, shared by all processes")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a step")
    return parser.parse_args()


def loss_fn(params, batch):
    images, labels = batch
    logits = logits_of(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def logits_of(params, images):
    hidden = jnp.tanh(images @ params["in"])
    return hidden @ params["out"]


def first_params():
    keys = jax.random.split(jax.random.key(1))
    return {
        "in": np.asarray(jax.random.normal(keys[0], (64, 32)) / 8),
        "out": np.asarray(jax.random.normal(keys[1], (32, 10)) / 6),
    }


class Digits:
    """Training images, dealt out to the workers, and test images."""

    def __init__(self, num_workers: int):
        images, labels = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32)
        labels = labels.astype(np.int32)
        self.test = images[1500:], labels[1500:]
        self.train = images[:1500], labels[:1500]
        self.parts = byzjax.partition.iid(
            self.train[1], num_workers, rng=np.random.default_rng(0)
        )

    def batches(self, step: int, workers: list[int]):
        """Of a step and a worker always the same, whichever process asks."""
        rows = [
            np.random.default_rng((step, worker)).choice(self.parts[worker], 32)
            for worker in workers
        ]
        return self.train[0][rows], self.train[1][rows]

    def accuracy(self, params) -> float:
        params = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), params)
        found = logits_of(params, self.test[0]).argmax(-1)
        return float((found == self.test[1]).mean())


def main() -> int:
    options = arguments()
    byzjax.sharding.start(
        options.coordinator,
        options.processes,
        options.process,
        dead_after=options.dead_after,
    )
    digits, begun = Digits(options.workers), time.monotonic()

    def make_trainer(layout, f):
        return byzjax.trainer(
            loss_fn,
            worker=byzjax.momentum(0.9),
            attack=byzjax.attacks.sign_flip(),
            aggregator=byzjax.ctma(byzjax.median(), num_byzantine=f),
            server=optax.sgd(0.5),
            num_workers=options.workers,
            num_byzantine=options.byzantine,
            layout=layout,
        )

    def on_step(step, metrics, present):
        time.sleep(options.pause)
        if jax.process_index() == 0 and (step % 10 == 0 or not present.all()):
            print(
                f"{time.monotonic() - begun:6.1f} s  step {step}  "
                f"loss {metrics.loss:.3f}  present {present.sum()}",
                flush=True,
            )

    checkpoints = None
    if options.folder:
        checkpoints = byzjax.sharding.Checkpoints(options.folder)
    try:
        done = byzjax.sharding.run(
            make_trainer,
            first_params(),
            digits.batches,
            jax.random.key(0),
            num_workers=options.workers,
            num_byzantine=options.byzantine,
            num_steps=options.steps,
            checkpoints=checkpoints,
            save_every=options.save_every,
            on_step=on_step,
        )
    except byzjax.sharding.TooFewWorkers as error:
        print(error, file=sys.stderr)
        byzjax.sharding.stop()
        return TOO_FEW
    if jax.process_index() == 0:
        accuracy = digits.accuracy(done.state.params)
        print(f"{done.step} steps, test accuracy {accuracy:.1%}", flush=True)
    byzjax.sharding.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
