"""Train under attack in two minutes: handwritten digits, 17 workers, 8 of them lie.

    make demo            # or: python -m experiments.demo --steps 300 --out demo.png

Claim: with almost half of the workers Byzantine the mean collapses under the strong
attacks, while the right rule still trains; which rule is right depends on the attack.
And whom does a rule trust, step by step? The second picture shows it.
Data: scikit-learn's bundled digits (1 797 real images of 8×8), nothing is downloaded.
"""

import argparse
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from sklearn.datasets import load_digits

import byzjax
from experiments import demo_pictures

NUM_WORKERS = 17
NUM_BYZANTINE = 8
BATCH_SIZE = 4
NUM_CURVE_POINTS = 10
F = NUM_BYZANTINE

# name: what the Byzantine workers send, and what they do to their data.
ATTACKS = {
    "sign flip": (byzjax.attacks.sign_flip(), None),
    "label flip": (None, byzjax.poisoning.label_flip(10)),
    "little": (byzjax.attacks.alie(), None),
    # Beyond (m − f) / f = 9/8 it turns the mean around.
    "empire": (byzjax.attacks.ipm(1.5), None),
}
RULES = {
    "mean": byzjax.mean(),
    "median": byzjax.median(),
    "ctma(median)": byzjax.ctma(byzjax.median(), F),
    "nnm(median)": byzjax.nnm(byzjax.median(), F),
    "ctma(nnm(median))": byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
}
# name: what a worker does to its gradient, and what the server does to the aggregate.
OPTIMIZERS = {
    "momentum": (byzjax.momentum(0.9), optax.sgd(0.1)),
    # The schedules of the paper's own experiments; w moves by the plain step.
    "μ²-SGD": (
        byzjax.storm(byzjax.authors_beta),
        byzjax.anytime(optax.sgd(0.1), weight=1.0, mixing=byzjax.authors_mixing),
    ),
}


class Data(NamedTuple):
    """Train and test images `[n, 8, 8, 1]` in [0, 1], labels `[n]`."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


class ConvNet(nn.Module):
    """Two convolutions and a linear head, 6 000 parameters."""

    @nn.compact
    def __call__(self, images):
        for features in (16, 32):
            images = nn.relu(nn.Conv(features, (3, 3))(images))
            images = nn.max_pool(images, (2, 2), (2, 2))
        return nn.Dense(10)(images.reshape(images.shape[0], -1))


def load() -> Data:
    """The digits, shuffled once with a fixed seed, 360 of them held out."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = jnp.asarray(images[order].reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(labels[order], jnp.int32)
    return Data(images[360:], labels[360:], images[:360], labels[:360])


def chosen_by_state(rules) -> byzjax.Aggregator:
    """Any of some rules, by its number: one program to compile for all of them."""

    def update(updates, number, params=None, **extra):
        branches = [rule.aggregate for rule in rules]
        return jax.lax.switch(number, branches, updates), number

    return byzjax.Aggregator(lambda params: jnp.int32(0), update)


def make_run(model, params, data, attack, poison, worker, server, steps, report):
    """start(number of the rule) → state; chunk(state, key) → state and what came of it.

    That is the test accuracy and, with `report`, each worker's influence [steps, m].
    """

    def loss_fn(params, batch):
        images, labels = batch
        logits = model.apply(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    trainer = byzjax.trainer(
        loss_fn,
        worker=worker,
        attack=attack,
        poison=poison,
        aggregator=chosen_by_state(RULES.values()),
        server=server,
        num_workers=NUM_WORKERS,
        num_byzantine=NUM_BYZANTINE,
        max_grad_norm=2.0,
        report_workers=report,
    )

    def step(state, key):
        draw, key = jax.random.split(key)
        shape, count = (NUM_WORKERS, BATCH_SIZE), data.train_labels.shape[0]
        index = jax.random.randint(draw, shape, 0, count)
        batches = data.train_images[index], data.train_labels[index]
        return trainer.step(state, batches, key)

    def chunk(state, key):
        keys = jax.random.split(key, steps // NUM_CURVE_POINTS)
        state, metrics = jax.lax.scan(step, state, keys)
        predicted = jnp.argmax(model.apply(state.params, data.test_images), axis=-1)
        accuracy = jnp.mean((predicted == data.test_labels).astype(jnp.float32))
        of_workers = metrics.workers
        return state, (accuracy, of_workers and of_workers.influence)

    def start(number):
        return trainer.init(params)._replace(aggregator_state=jnp.int32(number))

    return start, jax.jit(chunk, donate_argnums=0)


def run_all(steps: int, console: Console):
    """Test accuracy curves, by (optimizer, attack, rule); influences, by the last two.

    Influences [steps, m] are those with the first of the optimizers.
    """
    model, data, curves, influences = ConvNet(), load(), {}, {}
    params = model.init(jax.random.key(0), data.train_images[:1])
    columns = (
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    total = len(OPTIMIZERS) * len(ATTACKS) * len(RULES) * NUM_CURVE_POINTS
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        for optimizer, (worker, server) in OPTIMIZERS.items():
            report = optimizer == next(iter(OPTIMIZERS))
            for attack_name, (attack, poison) in ATTACKS.items():
                start, chunk = make_run(
                    *(model, params, data, attack, poison, worker, server, steps),
                    report,
                )
                for number, rule_name in enumerate(RULES):
                    label = f"{optimizer}, {attack_name}, {rule_name}"
                    progress.update(task, description=label)
                    state, curve, trusted = start(number), [], []
                    keys = jax.random.split(jax.random.key(1), NUM_CURVE_POINTS)
                    for key in keys:
                        state, (accuracy, influence) = chunk(state, key)
                        curve.append(float(accuracy))
                        trusted.append(influence)
                        progress.advance(task)
                    curves[optimizer, attack_name, rule_name] = np.array(curve)
                    if report:
                        influences[attack_name, rule_name] = np.concatenate(trusted)
    return curves, influences


def print_tables(curves, console: Console) -> None:
    """One table an optimizer; the mean of the last three points of each curve."""
    for optimizer in OPTIMIZERS:
        table = Table(
            title=f"Test accuracy, {optimizer}, {NUM_BYZANTINE} of {NUM_WORKERS} "
            "workers Byzantine"
        )
        table.add_column("rule")
        for name in (*ATTACKS, "worst"):
            table.add_column(name, justify="right")
        for rule in RULES:
            final = [curves[optimizer, a, rule][-3:].mean() for a in ATTACKS]
            shades = [_shade(value) for value in (*final, min(final))]
            table.add_row(rule, *shades)
        console.print(table)


def _shade(accuracy: float) -> str:
    color = "green" if accuracy > 0.8 else "yellow" if accuracy > 0.5 else "red"
    return f"[{color}]{accuracy:.2f}[/{color}]"


def main() -> None:
    """Runs the demo from the command line."""
    parser = argparse.ArgumentParser(
        description="Train under attack on digits: 17 workers, 8 Byzantine."
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps a run")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo.png"))
    arguments = parser.parse_args()
    if arguments.steps < NUM_CURVE_POINTS:
        parser.error(
            f"--steps needs to be at least {NUM_CURVE_POINTS}, got {arguments.steps}"
        )
    if not arguments.out.parent.is_dir():
        parser.error(f"--out needs a file in an existing folder, got {arguments.out}")
    console = Console()
    curves, influences = run_all(arguments.steps, console)
    print_tables(curves, console)
    workers = NUM_WORKERS, NUM_BYZANTINE
    demo_pictures.accuracy(curves, arguments.steps, workers, arguments.out)
    trust = arguments.out.with_stem(f"{arguments.out.stem}_trust")
    demo_pictures.trust(influences, workers, trust)
    console.print(f"Curves drawn in {arguments.out}, whom the rules trusted in {trust}")


if __name__ == "__main__":
    main()
