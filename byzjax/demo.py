"""Training under attack in a few seconds: clouds of points, the mean beside two rules.

Needs what the library needs and nothing else, so that a wheel shows what it is for.
`python -m byzjax demo` runs it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax

NUM_WORKERS, NUM_BYZANTINE = 17, 8
CLASSES, DIM, SAMPLES, BATCH_SIZE = 10, 16, 4000, 8
LEARNING_RATE = 0.1


class Row(NamedTuple):
    """What came of every rule after some steps.

    Attributes:
      step: steps done.
      accuracy: by rule, on points that were not trained on.
    """

    step: int
    accuracy: tuple[float, ...]


def rules() -> tuple[byzjax.Aggregator, ...]:
    """The mean, a rule, and a meta-rule over it."""
    median = byzjax.median()
    return byzjax.mean(), median, byzjax.nnm(median, NUM_BYZANTINE)


def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Points `[n, d]` around ten centres, and the number of their centre `[n]`."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, DIM))
    labels = rng.integers(0, CLASSES, SAMPLES)
    points = centres[labels] + rng.normal(size=(SAMPLES, DIM))
    return points.astype(np.float32), labels.astype(np.int32)


def run(attack: byzjax.Attack, steps: int, rows: int = 8) -> Iterator[Row]:
    """Trains with every rule under one attack; the first row is before any step.

    Args:
      attack: what the last 8 of the 17 workers send.
      steps: of training, the same for every rule.
      rows: after how many equal parts of them accuracy is reported.

    Raises:
      ValueError: fewer steps than rows.

    Example:
      >>> import byzjax
      >>> from byzjax import demo
      >>> *_, last = demo.run(byzjax.attacks.ipm(1.5), steps=64)
      >>> mean, median, mixed = last.accuracy
      >>> mean < 0.2 < 0.6 < mixed
      True
    """
    if not 0 < rows <= steps:
        raise ValueError(
            f"demo needs at least one step a row, got steps={steps} and rows={rows}"
        )
    points, labels = map(jnp.asarray, clouds())
    train, test = slice(SAMPLES // 5, None), slice(SAMPLES // 5)

    def loss_fn(params, batch):
        inputs, targets = batch
        scores = inputs @ params
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(scores, targets)
        )

    def chunk_of(rule):
        trainer = byzjax.trainer(
            loss_fn,
            worker=byzjax.momentum(0.9),
            attack=attack,
            aggregator=rule,
            server=optax.sgd(LEARNING_RATE),
            num_workers=NUM_WORKERS,
            num_byzantine=NUM_BYZANTINE,
        )

        def step(state, key):
            draw, key = jax.random.split(key)
            shape = NUM_WORKERS, BATCH_SIZE
            index = jax.random.randint(draw, shape, 0, len(labels[train]))
            batches = points[train][index], labels[train][index]
            return trainer.step(state, batches, key)[0], None

        def chunk(state, keys):
            state, _ = jax.lax.scan(step, state, keys)
            return state, accuracy(state.params)

        return trainer.init(jnp.zeros((DIM, CLASSES))), jax.jit(chunk)

    def accuracy(params):
        found = jnp.argmax(points[test] @ params, axis=-1) == labels[test]
        return jnp.mean(found.astype(jnp.float32))

    runs = [chunk_of(rule) for rule in rules()]
    states = [state for state, _ in runs]
    yield Row(0, tuple(float(accuracy(state.params)) for state in states))
    keys = jax.random.split(jax.random.key(0), (rows, steps // rows))
    for row, of_row in enumerate(keys, start=1):
        found = []
        for number, (_, chunk) in enumerate(runs):
            states[number], after = chunk(states[number], of_row)
            found.append(float(after))
        yield Row(row * (steps // rows), tuple(found))
