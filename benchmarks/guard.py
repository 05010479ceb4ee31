"""What the guard finds, how soon, how often it is wrong, and what it costs.

python -m benchmarks.guard                    # everything, about a quarter of an hour
python -m benchmarks.guard --quick            # to see that it runs
python -m benchmarks.guard --parts delay --out results/guard

A small network learns scikit-learn's digits on 8 replicas with batches of their own,
drawn anew in each step. The last replica computes wrongly from step 500 on: how many
steps later is it under suspicion? Prints tables, and writes `guard.json` and, where
matplotlib is installed, `guard.png`.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from benchmarks import guard_page, timing

M, BATCH, WIDTH, RATE = 8, 16, 32, 0.1
ONSET, CHUNK = 500, 500
FREQUENCIES = (1.0, 0.1, 0.01)
FALSE_ALARMS = 1e-6
PARTS = ("clean", "delay", "cost")


class Task(NamedTuple):
    """Digits in [0, 1], their labels, and which of them each replica draws from."""

    images: jax.Array  # [n, 64]
    labels: jax.Array  # [n]
    places: jax.Array  # [m, most], indices; the first ones count.
    counts: jax.Array  # [m]


def digits(shards: str = "all") -> Task:
    """All digits for every replica, or each one's own: "iid" or by a Dirichlet draw."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    rng = np.random.default_rng(0)
    makers = {
        "all": lambda: [np.arange(len(labels))] * M,
        "epochs": lambda: [np.arange(len(labels))] * M,
        "iid": lambda: byzjax.partition.iid(labels, M, rng=rng),
        "dirichlet": lambda: byzjax.partition.dirichlet(labels, M, alpha=1.0, rng=rng),
    }
    parts = makers[shards]()
    counts = np.array([len(shard) for shard in parts])
    places = np.stack([np.resize(shard, counts.max()) for shard in parts])
    return Task(
        jnp.asarray(images),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(places, jnp.int32),
        jnp.asarray(counts, jnp.int32),
    )


def initial(key: jax.Array) -> dict[str, jax.Array]:
    one, two = jax.random.split(key)
    return {
        "w": jax.random.normal(one, (64, WIDTH)) / 8,
        "b": jnp.zeros(WIDTH),
        "v": jax.random.normal(two, (WIDTH, 10)) / WIDTH**0.5,
        "c": jnp.zeros(10),
    }


def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    hidden = jnp.tanh(images @ params["w"] + params["b"][None])
    scores = jax.nn.log_softmax(hidden @ params["v"] + params["c"][None])
    return -jnp.mean(jnp.take_along_axis(scores, labels[:, None], axis=1))


def share_of_length(size: jax.Array) -> byzjax.Attack:
    """The gradient and noise of `size` times its length."""

    def forge(honest, own, state, *, num_byzantine, key, **extra):
        leaves, structure = jax.tree.flatten(own)
        squares = [jnp.sum(jnp.square(x.reshape(len(x), -1)), axis=1) for x in leaves]
        count = sum(x[0].size for x in leaves)
        scale = size * jnp.sqrt(sum(squares) / count)
        keys = jax.random.split(key, len(leaves))
        noise = [
            scale.reshape((-1,) + (1,) * (x.ndim - 1)) * jax.random.normal(k, x.shape)
            for x, k in zip(leaves, keys, strict=True)
        ]
        return structure.unflatten(
            [x + n for x, n in zip(leaves, noise, strict=True)]
        ), state

    return byzjax.Attack(forge, needs_own=True)


def scaled(size: jax.Array) -> byzjax.Attack:
    """The gradient, `size` times as long."""

    def forge(honest, own, state, *, num_byzantine, key=None, **extra):
        return jax.tree.map(lambda x: size * x, own), state

    return byzjax.Attack(forge, needs_own=True)


def _lane(*bits: int) -> Callable[[Any], byzjax.Attack]:
    return lambda size: byzjax.attacks.bit_flips(bits, period=64, offset=5)


# name → (what the worker sends, of a size; the sizes).
CORRUPTIONS: dict[str, tuple[Callable[[Any], byzjax.Attack], tuple[float, ...]]] = {
    "noise, in lengths of the gradient": (
        share_of_length,
        (0.1, 0.3, 0.5, 1.0, 3.0, 100.0),
    ),
    "scaled gradient": (scaled, (-1.0, 0.0, 0.5, 0.9, 1.1, 1.5, 2.0)),
    "lane, bit 10 (± a quarter)": (_lane(10), (1.0,)),
    "lane, sign": (_lane(0), (1.0,)),
    "lane, bits 8 and 9 (factors up to 3)": (_lane(8, 9), (1.0,)),
    "lane, bits 6 and 8 (factors of 8 and 32)": (_lane(6, 8), (1.0,)),
    "lane, bit 4 (a factor of 2^16)": (_lane(4), (1.0,)),
    "lane, bits 2 and 3 (factors of 2^32 and 2^96)": (_lane(2, 3), (1.0,)),
}


def of_epoch(key: jax.Array, step: jax.Array, n: int) -> jax.Array:
    """Each step's images [m, b] of data that are shuffled anew in every epoch."""
    steps_an_epoch = n // (M * BATCH)
    epoch, within = step // steps_an_epoch, step % steps_an_epoch
    order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
    order = order[: steps_an_epoch * M * BATCH].reshape(steps_an_epoch, M, BATCH)
    return order[within]


class Options(NamedTuple):
    """How replicas are told apart in a run."""

    momentum: float = 0.0  # Of the workers, before the guard.
    shards: str = "all"  # Of the data that each draws from.


ALIKE = Options()


def watch() -> byzjax.Aggregator:
    return byzjax.guard(byzjax.median(), M, false_alarms=FALSE_ALARMS)


def start(seed: jax.Array) -> Any:
    params = initial(jax.random.key(seed))
    zeros = jax.tree.map(lambda p: jnp.zeros((M, *p.shape)), params)
    return params, zeros, watch().init(params)


@functools.partial(jax.jit, static_argnames=("make", "length", "options"))
def steps(
    state: Any,
    key: jax.Array,
    frequency: Any,
    size: Any,
    task: Task,
    *,
    make: Callable[[Any], byzjax.Attack] = scaled,
    length: int = CHUNK,
    options: Options = ALIKE,
) -> tuple[Any, Any]:
    """Trains on; the state after it, and who was under suspicion in each step."""
    rule = watch()
    attack = byzjax.attacks.intermittent(make(size), frequency, num_byzantine=1)

    def step(state, key):
        params, momenta, known = state
        draw, attack_key = jax.random.split(key)
        if options.shards == "epochs":
            index = of_epoch(key_of_run, known.step, len(task.labels))
        else:
            drawn = jax.random.randint(draw, (M, BATCH), 0, task.counts[:, None])
            index = jnp.take_along_axis(task.places, drawn, axis=1)
        rows = jax.vmap(jax.grad(loss_fn), (None, 0, 0))(
            params, task.images[index], task.labels[index]
        )
        beta = options.momentum
        rows = momenta = jax.tree.map(
            lambda m, g: beta * m + (1 - beta) * g, momenta, rows
        )
        rows, _ = attack.update(rows, attack.init(params), key=attack_key)
        update, after = rule.update(rows, known)
        params = jax.tree.map(lambda p, u: p - RATE * u, params, update)
        known: Any = after
        return (params, momenta, known), known.suspected

    key_of_run = jax.random.fold_in(key, 0)
    return jax.lax.scan(step, state, jax.random.split(key, length))


def delays(quick: bool) -> Iterator[dict[str, Any]]:
    """For each corruption, size and frequency the steps until it is named."""
    task = digits()
    seeds, most = (2, 2 * CHUNK) if quick else (5, 8 * CHUNK)
    numbers = jnp.arange(seeds)
    states = jax.vmap(start)(numbers)
    keys = jax.vmap(jax.random.key)(100 + numbers)
    run = {
        name: jax.vmap(
            functools.partial(steps, make=make), in_axes=(0, 0, None, None, None)
        )
        for name, (make, _) in CORRUPTIONS.items()
    }
    clean, _ = run["scaled gradient"](states, keys, 0.0, 1.0, task)
    for name, (_, sizes) in list(CORRUPTIONS.items())[: 2 if quick else None]:
        for size in sizes[-2:] if quick else sizes:
            for frequency in FREQUENCIES[:1] if quick else FREQUENCIES:
                state, found = clean, np.full(seeds, np.inf)
                wrong, chunk = 0, 0
                while not np.isfinite(found).all() and chunk * CHUNK < most:
                    keys = jax.vmap(jax.random.key)(1000 + chunk * seeds + numbers)
                    state, named = run[name](state, keys, frequency, size, task)
                    named = np.asarray(named)
                    first = chunk * CHUNK + 1 + named[:, :, -1].argmax(axis=1)
                    new = named[:, :, -1].any(axis=1) & ~np.isfinite(found)
                    found[new] = first[new]
                    wrong += int(named[:, :, :-1].any(axis=1).sum())
                    chunk += 1
                known = state[2]
                yield {
                    "corruption": name,
                    "size": size,
                    "frequency": frequency,
                    "delays": [float(x) for x in found],
                    "most": most,
                    "wrongly_named": wrong,
                    "farthest_share": float(
                        jnp.mean(known.farthest[:, -1] / known.steps[:, -1])
                    ),
                    "largest": float(jnp.median(known.largest[:, -1])),
                }


CLEAN = {
    "batches of all data": ALIKE,
    "epochs of all data, shuffled between": Options(shards="epochs"),
    "batches of all data, momentum 0.9 of the workers": Options(momentum=0.9),
    "a shard each for good, of one shuffle": Options(shards="iid"),
    "a shard each for good, of unlike data": Options(shards="dirichlet"),
}


def clean(quick: bool) -> Iterator[dict[str, Any]]:
    """False alarms of clean runs, and the share of their steps that were the rule's."""
    seeds, length = (1, 200) if quick else (5, 10_000)
    for name, options in CLEAN.items():
        task, numbers = digits(options.shards), jnp.arange(seeds)
        run = functools.partial(steps, length=length, options=options)
        states = jax.vmap(start)(numbers)
        keys = jax.vmap(jax.random.key)(numbers)
        (params, _, known), named = jax.vmap(run, (0, 0, None, None, None))(
            states, keys, 0.0, 1.0, task
        )
        losses = jax.vmap(loss_fn, (0, None, None))(params, task.images, task.labels)
        yield {
            "run": name,
            "seeds": seeds,
            "steps": length,
            "alarms": int(known.alarms.sum()),
            "steps_with_a_suspect": int(jnp.any(named, axis=2).sum()),
            "steps_outside": int(jnp.max(known.outside.sum(axis=1))),
            "strongest_once_in": float(np.expm1(np.max(known.strongest)) / M),
            "loss": float(losses.mean()),
        }


def cost(quick: bool, rounds: int) -> Iterator[dict[str, Any]]:
    """The guard's time beside the mean's and the rule's, of one step of a stack."""
    for m, d in ((8, 10_000),) if quick else ((8, 10**5), (8, 10**6), (32, 10**6)):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((m, d), np.float32))
        rules = {
            "mean": byzjax.mean(),
            "guard(median)": byzjax.guard(byzjax.median(), m),
            "median": byzjax.median(),
            "krum": byzjax.krum(2),
        }
        cases = {}
        for name, rule in rules.items():
            state = rule.init(jnp.zeros(d))
            update = jax.jit(rule.update)
            for _ in range(3):  # So that the spread is known, and the mean serves.
                _, state = update(x, state)
            cases[name] = functools.partial(update, x, state)
        spreads = timing.interleaved(cases, rounds=rounds)
        yield {
            "m": m,
            "d": d,
            "seconds": {name: spread._asdict() for name, spread in spreads.items()},
        }


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard",
        description="How soon byzjax.guard names a replica that computes wrongly, how "
        "often it is wrong on clean runs, and what it costs.",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--quick", action="store_true", help="few and short runs")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/guard")
    )
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error(f"--rounds needs at least 3, got {arguments.rounds}")
    measures = {
        "clean": lambda: clean(arguments.quick),
        "delay": lambda: delays(arguments.quick),
        "cost": lambda: cost(arguments.quick, arguments.rounds),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "guard.json"
    results = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    results["machine"] = timing.machine()
    for part in arguments.parts:
        results[part] = []
        for record in measures[part]():
            results[part].append(record)
            # So that a run that is interrupted keeps, and has shown, what it has.
            path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
            print(json.dumps(record), flush=True)
        print(guard_page.TABLES[part](results[part]), flush=True)
    if results.get("delay"):
        guard_page.draw(results["delay"], arguments.out / "guard.png")


if __name__ == "__main__":
    main()
