"""The training step of the paper's MNIST experiment, against the same in PyTorch."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import byzjax
from benchmarks import timing, torch_step
from benchmarks.apart import Process
from experiments.models import make_model

NUM_WORKERS = 17
NUM_BYZANTINE = 8
BATCH_SIZE = 4
MAX_NORM = 2.0
LEARNING_RATE = 0.1
MODEL = make_model("convnet", "mnist")
ATTACKS = {"sign flip": byzjax.attacks.sign_flip(), "little": byzjax.attacks.alie()}


def workers_at_once() -> int | None:
    """Nine on a CPU, where one to seventeen were tried; a GPU wants all of them.

    A program's memory is new at each call. Above 32 MB glibc has the kernel map it page
    by page, which takes as long as the gradients; a scan over steps pays once.
    """
    return 9 if jax.default_backend() == "cpu" else None


def data() -> tuple[np.ndarray, np.ndarray]:
    """Random images `[m, b, 28, 28, 1]` and labels `[m, b]`: time is what counts."""
    draw = np.random.default_rng(0)
    shape = NUM_WORKERS, BATCH_SIZE
    images = draw.standard_normal((*shape, 28, 28, 1), dtype=np.float32)
    return images, draw.integers(0, 10, shape, dtype=np.int32)


def on_device(host: tuple[np.ndarray, np.ndarray]) -> dict[str, jax.Array]:
    return dict(zip(("image", "label"), map(jnp.asarray, host), strict=True))


AUTHORS = byzjax.ctma(
    byzjax.geometric_median(smoothing=0.1, num_iterations=3, init="zeros"),
    NUM_BYZANTINE,
)
REPORTED = {
    "the authors'": AUTHORS,
    "median": byzjax.median(),
    "trimmed_mean": byzjax.trimmed_mean(NUM_BYZANTINE),
    "nnm(median)": byzjax.nnm(byzjax.median(), NUM_BYZANTINE),
    "krum": byzjax.krum(7),
}


def trainer_for(
    attack: byzjax.Attack,
    chunk: int | None = None,
    loss: Callable[..., Any] = MODEL.loss,
    rule: byzjax.Aggregator = AUTHORS,
    report: bool = False,
) -> byzjax.Trainer:
    """μ²-SGD with CTMA over the geometric median, the authors' setting."""
    return byzjax.trainer(
        loss,
        worker=byzjax.storm(byzjax.authors_beta),
        attack=attack,
        aggregator=rule,
        server=byzjax.anytime(
            optax.sgd(LEARNING_RATE), weight=1.0, mixing=byzjax.authors_mixing
        ),
        num_workers=NUM_WORKERS,
        num_byzantine=NUM_BYZANTINE,
        max_grad_norm=MAX_NORM,
        has_model_state=True,
        workers_at_once=chunk,
        report_workers=report,
    )


def initial(trainer: byzjax.Trainer, key: jax.Array) -> byzjax.TrainState:
    return trainer.init(*MODEL.init(key))


def _free_loss(params, statistics, batch):
    """A loss whose gradient costs next to nothing: all else of a step is left."""
    scale = jnp.mean(batch["image"])
    return scale * optax.tree.norm(params, squared=True), statistics


def measure(*, rounds: int) -> list[dict[str, Any]]:
    """One record an attack."""
    key, host, chunk = jax.random.key(0), data(), workers_at_once()
    batches = on_device(host)
    cases, loops, records = {}, {}, []
    for name, attack in ATTACKS.items():
        trainer = trainer_for(attack, chunk=chunk)
        state = initial(trainer, key)
        step = timing.compile_for(trainer.step, state, batches, key)
        cases[name] = functools.partial(step.call, state, batches, key)
        outside = trainer_for(attack, chunk=chunk, loss=_free_loss).step
        cases[f"{name} outside"] = functools.partial(
            timing.compile_for(outside, state, batches, key).call, state, batches, key
        )
        loops[f"{name} torch"] = name, NUM_WORKERS, None
        loops[f"{name} torch one thread"] = name, NUM_WORKERS, 1
        if not attack.needs_own:
            loops[f"{name} torch honest"] = name, NUM_WORKERS - NUM_BYZANTINE, 1
        records.append({"attack": name, "compile_seconds": step.compile_seconds})
    with contextlib.ExitStack() as stack:
        others = {
            name: stack.enter_context(Process(torch_step.call, host, *loop))
            for name, loop in (loops if torch_step.available() else {}).items()
        }
        spreads = timing.interleaved(
            cases, apart=others, rounds=rounds, case_seconds=20
        )
    for record in records:
        name = record["attack"]
        seconds = spreads[name].median
        record["seconds"] = spreads[name]._asdict()
        record["outside_gradients"] = spreads[f"{name} outside"].median / seconds
        for case in ("torch", "torch one thread", "torch honest"):
            if f"{name} {case}" in spreads:
                spread = spreads[f"{name} {case}"]
                record[case.replace(" ", "_")] = spread._asdict()
                record[case.replace(" ", "_") + "_ratio"] = spread.median / seconds
    return records


def measure_report(name: str, *, rounds: int) -> dict[str, Any]:
    """A step that says whom its rule trusted, in turn with one that does not."""
    key, batches, chunk = jax.random.key(0), on_device(data()), workers_at_once()
    steps = {}
    for report in (False, True):
        trainer = trainer_for(
            ATTACKS["little"], chunk, rule=REPORTED[name], report=report
        )
        state = initial(trainer, key)
        steps[report] = timing.compile_for(trainer.step, state, batches, key)
    spreads = timing.interleaved(
        {
            str(report): functools.partial(step.call, state, batches, key)
            for report, step in steps.items()
        },
        rounds=rounds,
        case_seconds=20,
    )
    return {
        "rule": name,
        "seconds": spreads["False"]._asdict(),
        "reported": spreads["True"]._asdict(),
        "compile_seconds": steps[False].compile_seconds,
        "compile_reported": steps[True].compile_seconds,
        "ratio": spreads["True"].median / spreads["False"].median,
    }


def measure_sweep(runs: int, *, rounds: int, steps: int = 3) -> dict[str, Any]:
    """Seeds and strengths: one program for all runs against one run after another."""
    keys = jax.random.split(jax.random.key(0), runs)
    strengths = jnp.linspace(0.5, 1.5, runs)
    batches = on_device(data())

    def run(key, strength, chunk):
        trainer = trainer_for(byzjax.attacks.alie(strength), chunk)

        def step(state, key):
            return trainer.step(state, batches, key)

        state = initial(trainer, key)
        return jax.lax.scan(step, state, jax.random.split(key, steps))[1].loss

    chunk = workers_at_once()
    run_one = functools.partial(run, chunk=chunk)
    one = timing.compile_for(run_one, keys[0], strengths[0])
    # Under vmap a chunk holds so many workers of every run: one of each is enough.
    inner = None if chunk is None else max(1, chunk // runs)
    programs = {
        "vmapped": jax.vmap(functools.partial(run, chunk=inner)),
        "mapped": lambda *sweep: jax.lax.map(lambda pair: run_one(*pair), sweep),
    }
    compiled = {
        name: timing.compile_for(program, keys, strengths)
        for name, program in programs.items()
    }
    spreads = timing.interleaved(
        {
            **{
                name: functools.partial(program.call, keys, strengths)
                for name, program in compiled.items()
            },
            "one by one": lambda: [
                one.call(*pair) for pair in zip(keys, strengths, strict=True)
            ],
        },
        rounds=rounds,
    )
    one_by_one = spreads["one by one"].median
    vmapped = spreads["vmapped"].median
    # The program of all is compiled once; those of the runs too, as strengths are
    # traced. Were each compiled anew, the first would lead for so many steps:
    saved = runs * one.compile_seconds - compiled["vmapped"].compile_seconds
    behind = (vmapped - one_by_one) / steps
    return {
        "runs": runs,
        "steps": steps,
        "one_by_one": spreads["one by one"]._asdict(),
        "vmapped": spreads["vmapped"]._asdict(),
        "mapped": spreads["mapped"]._asdict(),
        "vmapped_ratio": one_by_one / vmapped,
        "mapped_ratio": one_by_one / spreads["mapped"].median,
        "compile_one": one.compile_seconds,
        "compile_vmapped": compiled["vmapped"].compile_seconds,
        "compile_mapped": compiled["mapped"].compile_seconds,
        "leads_for_steps": saved / behind if behind > 0 else None,
    }
