"""A run as one of several processes, some of which tests kill.

Steps at which it is to wait are given; it goes on when the file of that step is there.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from byzjax import sharding
from tests.sharding import processes
from tests.sharding.stacks import strict

M, ATTACKERS = 8, 2
TOO_FEW = 3
SECONDS = 300


def loss_fn(params, batch):
    out = jnp.tanh(batch @ params["w"]) + params["b"][None]
    return jnp.mean((out - 0.5) ** 2)


def first_params():
    draw = np.random.default_rng(0)
    w = draw.normal(size=(6, 3)).astype(np.float32)
    return {"w": w, "b": np.zeros(3, np.float32)}


def batches(step, workers):
    draws = [np.random.default_rng((step, worker)) for worker in workers]
    return np.stack([draw.normal(size=(4, 6)) for draw in draws]).astype(np.float32)


def make_trainer(layout, f):
    return byzjax.trainer(
        loss_fn,
        worker=byzjax.momentum(0.9),
        # It reads the honest workers only, so that rows and batches part company.
        attack=byzjax.attacks.alie(1.0),
        aggregator=byzjax.trimmed_mean(f),
        server=optax.sgd(0.5, momentum=0.5),
        num_workers=M,
        num_byzantine=ATTACKERS,
        layout=layout,
    )


def key():
    return jax.random.key(3)


def quarter(present):
    return present // 4


def bits(tree):
    leaves = [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(tree)]
    return [leaf.tobytes().hex() for leaf in leaves]


def main(path, address, count, rank, settings):
    strict()
    settings, folder = json.loads(settings), pathlib.Path(path).parent
    writer = processes.Writer(path)
    if int(count) > 1:
        sharding.start(
            address, int(count), int(rank), dead_after=settings["dead_after"]
        )
    if settings.get("dies") == int(rank):  # Once all have come, before a step.
        assert len(jax.devices()) > 1
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.get("disagree"):
        mine = {"key": jax.random.key(int(rank)), "params": np.ones(9)}
        try:
            sharding.agree(**mine)
        except ValueError as error:
            writer.write("disagree", message=str(error))

    def on_step(step, metrics, present):
        writer.write(
            f"step {step}",
            step=step,
            time=time.time(),
            present=present.tolist(),
            loss=float(metrics.loss),
        )
        begun = time.monotonic()
        while step in settings["holds"] and not (folder / f"go {step}").exists():
            assert time.monotonic() - begun < SECONDS
            time.sleep(0.02)

    f = settings["f"]
    try:
        done = sharding.run(
            make_trainer,
            first_params(),
            batches,
            key(),
            num_workers=M,
            num_byzantine=quarter if f is None else f,
            num_steps=settings["steps"],
            checkpoints=sharding.Checkpoints(folder / "checkpoints"),
            save_every=settings["save_every"],
            copy_every=settings.get("copy_every", 1),
            on_step=on_step,
        )
    except sharding.TooFewWorkers as error:
        writer.write("too few", message=str(error), step=error.step)
        sharding.stop()
        sys.exit(TOO_FEW)
    writer.write("end", bits=bits(done.state.params), step=done.step)
    sharding.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
