"""A small transformer on a mesh: what robustness costs in nats, in bytes and in time.

    python -m benchmarks.transformer                     # docs/scaling.md's table
    python -m benchmarks.transformer --steps 20 --width 64 --layers 2

Eight workers, one on each of eight host devices, learn to continue the text of
byzjax's own source, byte by byte. The held-out loss of each rule and attack stands
beside that of the plain mean without attackers; bytes and the time of a step beside
those of ordinary data parallelism, which adds up gradients in an all-reduce. On host
devices that share cores, times say what the work costs and nothing of a network.
"""

import argparse
import functools
import importlib.resources
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from benchmarks.collectives import collectives

M, F = 8, 2
HELD_OUT = 0.1
RULES = {
    "mean": byzjax.mean(),
    "median": byzjax.median(),
    "trimmed_mean": byzjax.trimmed_mean(F),
    "nnm(trimmed_mean)": byzjax.nnm(byzjax.trimmed_mean(F), F),
    "ctma(nnm(median))": byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
}
ATTACKS = {
    "none": None,
    "sign_flip": byzjax.attacks.sign_flip(),
    "alie": byzjax.attacks.alie(),
    "ipm": byzjax.attacks.ipm(0.5),
}
RUNS = [
    ("mean", "none"),
    ("median", "none"),
    ("nnm(trimmed_mean)", "none"),
    ("ctma(nnm(median))", "none"),
    ("mean", "sign_flip"),
    ("mean", "ipm"),
    ("nnm(trimmed_mean)", "sign_flip"),
    ("nnm(trimmed_mean)", "alie"),
    ("nnm(trimmed_mean)", "ipm"),
    ("ctma(nnm(median))", "sign_flip"),
    ("ctma(nnm(median))", "alie"),
    ("ctma(nnm(median))", "ipm"),
]


class Block(nn.Module):
    """Attention to what came before, and two dense layers."""

    heads: int

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y, mask=mask)
        y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class Transformer(nn.Module):
    """Bytes [b, t] → logits of the next byte [b, t, 256]."""

    width: int
    layers: int
    length: int

    @nn.compact
    def __call__(self, text):
        x = nn.Embed(256, self.width)(text)
        x = x + nn.Embed(self.length, self.width)(jnp.arange(text.shape[1]))[None]
        for _ in range(self.layers):
            x = Block(self.width // 32)(x)
        return nn.Dense(256)(nn.LayerNorm()(x))


def corpus() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of byzjax's modules: what is learned from, and what is held out."""
    folder = pathlib.Path(str(importlib.resources.files("byzjax")))
    files = sorted(folder.rglob("*.py"))
    text = b"\n".join(file.read_bytes() for file in files)
    data = np.frombuffer(text, np.uint8).astype(np.int32)
    cut = int(len(data) * (1 - HELD_OUT))
    return data[:cut], data[cut:]


def drawn(data: np.ndarray, rng: np.random.Generator, shape, length: int) -> np.ndarray:
    """Pieces `[*shape, length + 1]` of a text."""
    starts = rng.integers(0, len(data) - length - 1, size=shape)
    return data[starts[..., None] + np.arange(length + 1)]


def losses(model: nn.Module) -> Callable[..., jax.Array]:
    """(params, pieces [b, t + 1]) → nats a byte."""

    def loss(params, pieces):
        logits: Any = model.apply(params, pieces[:, :-1])
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:])
        )

    return loss


def server(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a warm-up, as transformers are trained."""
    steps = max(steps, 10)
    return optax.adam(optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps))


def robust(loss, rule, attack, layout, optimizer) -> byzjax.Trainer:
    """A trainer on the layout."""
    return byzjax.trainer(
        loss,
        attack=attack,
        aggregator=rule,
        server=optimizer,
        num_workers=M,
        num_byzantine=0 if attack is None else F,
        layout=layout,
    )


def plain(loss, optimizer, mesh) -> Callable[..., Any]:
    """A step of ordinary data parallelism: each device's gradient, and their mean."""

    def of_own(params, batches):
        gradient = jax.grad(loss)(
            jax.lax.pcast(params, "workers", to="varying"), batches[0]
        )
        return jax.lax.pmean(gradient, "workers")

    gradient_of = jax.shard_map(
        of_own, mesh=mesh, in_specs=(jax.P(), jax.P("workers")), out_specs=jax.P()
    )

    def step(state, batches, key):
        params, inner = state
        updates, inner = optimizer.update(gradient_of(params, batches), inner, params)
        return (optax.apply_updates(params, updates), inner), jnp.zeros(())

    return step


def run(given, loss, params, layout, rule: str, attack: str) -> float:
    """The held-out loss in nats a byte after all steps of one run."""
    learned, held = corpus()
    optimizer = server(given.rate, given.steps)
    trainer = robust(loss, RULES[rule], ATTACKS[attack], layout, optimizer)
    state, step = trainer.init(params), jax.jit(trainer.step, donate_argnums=0)
    rng = np.random.default_rng(given.seed)
    for key in jax.random.split(jax.random.key(given.seed), given.steps):
        pieces = drawn(learned, rng, (M, given.batch), given.length)
        state, _ = step(state, jax.device_put(pieces, layout.batches), key)
        # Host devices share threads: steps that overlap may wait for each other.
        jax.block_until_ready(state)
    rest = drawn(held, np.random.default_rng(0), (M, 8), given.length)
    each = jax.jit(jax.vmap(loss, (None, 0)))
    return float(jnp.mean(each(state.params, jax.device_put(rest, layout.batches))))


def moved(program) -> int:
    """Bytes of a float's size and more that a device sends, by the ring's count.

    An all-reduce of n bytes is a reduce-scatter and an all-gather, n each; an
    all-to-all whose result is n bytes sends n. Less (D−1)/D, which all of them have.
    """
    twice = {"all-reduce": 2}
    moves = collectives(program.as_text())
    return sum(size * twice.get(kind, 1) for kind, size in moves)


def steps_of(given, loss, params, layout) -> dict[str, tuple[Any, Any]]:
    """Name → compiled step and its first state, of the plain one and of rules."""
    optimizer = server(given.rate, given.steps)
    batches = jax.device_put(
        np.zeros((M, given.batch, given.length + 1), np.int32), layout.batches
    )
    key = jax.random.key(0)
    everywhere = jax.sharding.NamedSharding(layout.mesh, jax.P())
    first = jax.device_put((params, optimizer.init(params)), everywhere)
    cases = {"plain all-reduce": (plain(loss, optimizer, layout.mesh), first)}
    for name, rule in RULES.items():
        trainer = robust(loss, rule, None, layout, optimizer)
        cases[name] = trainer.step, trainer.init(params)
    found = {}
    for name, (step, state) in cases.items():
        compiled = jax.jit(step).lower(state, batches, key).compile()
        found[name] = compiled, functools.partial(compiled, state, batches, key)
    return found


def costs(given, loss, params, layout) -> None:
    """Prints bytes and seconds of a step beside those of an all-reduce."""
    steps = steps_of(given, loss, params, layout)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.rounds + 1):  # The first one warms up.
        for name, (_, call) in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    first = "plain all-reduce"
    base = moved(steps[first][0])
    print("\n| step | bytes / all-reduce | time / all-reduce |\n|---|---|---|")
    for name, (program, _) in steps.items():
        ratios = [
            own / other
            for own, other in zip(seconds[name][1:], seconds[first][1:], strict=True)
        ]
        share = moved(program) / base
        print(f"| {name} | {share:.4f} | {statistics.median(ratios):.2f} |", flush=True)


def main() -> None:
    """Runs the table from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformer")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="pieces of a worker")
    parser.add_argument("--length", type=int, default=64, help="bytes of a piece")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9, help="of timing; 0: none")
    given = parser.parse_args()
    mesh = jax.make_mesh((M,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    layout = byzjax.sharding.Layout(mesh)
    model = Transformer(given.width, given.layers, given.length)
    text = jnp.zeros((1, given.length), jnp.int32)
    params = model.init(jax.random.key(given.seed), text)
    loss = losses(model)
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"{count} parameters, {len(corpus()[0])} bytes of text, {M} devices")
    print("\n| rule | attack | nats a byte | beyond the mean |\n|---|---|---|---|")
    base = None
    for rule, attack in RUNS if given.steps else []:
        nats = run(given, loss, params, layout, rule, attack)
        base = nats if base is None else base
        print(f"| {rule} | {attack} | {nats:.3f} | {nats - base:+.3f} |", flush=True)
    if given.rounds:
        costs(given, loss, params, layout)


if __name__ == "__main__":
    flag = f"--xla_force_host_platform_device_count={M}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    main()
