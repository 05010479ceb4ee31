"""The theory in practice: convex problems of known optimum, trained under attack.

What the theorems bound is measured: the squared error of the honest workers' momentum
and of the aggregate, and the excess loss. Steps run in float32 on the device, all
learning rates and seeds of a case in one compiled program; errors and losses are then
taken in float64 on the host, from the recorded iterates, so that what is subtracted is
exact. What is left is the rounding of the iterates: excess losses end near 1e-14, and
the squared error of the momentum where rounding (6e-8 of a gradient a step) has added
up to the noise that is left, after some 10^7 steps: both far below what is seen here.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

import byzjax
from experiments import names, store
from experiments.theory_problems import PROBLEMS, problem_of

# --- a case: all learning rates and seeds in one program ------------------------------


# Learning rates in units of 1/L. With the last step T = 4^k they have 1/4 and 1/(4T).
RATES = tuple(0.25 * 4.0**k for k in range(-8, 4))


def _mu2sgd(sgd, project):
    return byzjax.storm(), byzjax.anytime(sgd, projection=project)


def _momentum(sgd, project):
    # With these weights x = w: projected SGD.
    server = byzjax.anytime(sgd, weight=1.0, mixing=1.0, projection=project)
    return byzjax.momentum(0.9), server


OPTIMIZERS = {"mu2sgd": _mu2sgd, "momentum": _momentum}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one compiled program trains; workers draw from all samples, b at a time.

    Raises:
      ValueError: a name that is in no table, options that its function refuses, a
        number out of range.
    """

    problem: str = "logistic"
    optimizer: str = "mu2sgd"
    attack: str = "sign_flip"
    num_byzantine: int = 8
    num_workers: int = 17
    batch_size: int = 4
    rule: str = "ctma(geometric_median(init='mean', num_iterations=32, smoothing=0.0))"
    steps: int = 4096
    points: int = 37  # Steps that are recorded, about evenly spaced in log t.
    rates: tuple[float, ...] = RATES  # η·L

    def __post_init__(self) -> None:
        for name, table in (("problem", PROBLEMS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"Case needs {name} to be one of {', '.join(table)}; "
                    f"got {name}={getattr(self, name)!r}"
                )
        for name in ("num_workers", "batch_size", "steps", "points"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(
                    f"Case needs {name} to be an integer >= 1, got {name}={value!r}"
                )
        if not 0 <= 2 * self.num_byzantine < self.num_workers:
            raise ValueError(
                "Case needs 0 <= 2 * num_byzantine < num_workers, got num_byzantine="
                f"{self.num_byzantine} and num_workers={self.num_workers}"
            )
        if not self.rates or not all(0 < rate < np.inf for rate in self.rates):
            raise ValueError(f"Case needs positive rates, got rates={self.rates}")
        self.parts()

    def parts(self) -> tuple[byzjax.Aggregator, byzjax.Attack | None]:
        """The rule and the attack that the names stand for."""
        attack = names.make("attack", self.attack, names.ATTACKS)
        if not isinstance(attack, byzjax.Attack | None):
            raise ValueError(
                f"Case needs an attack on the messages, got attack={self.attack!r}"
            )
        rule = names.make(
            "rule", self.rule, names.RULES, num_byzantine=self.num_byzantine
        )
        return rule, attack

    def digest(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def times(self) -> np.ndarray:
        """The steps t = 1, 2, … that are recorded."""
        return np.unique(np.geomspace(1, self.steps, self.points).round().astype(int))


class Measured(NamedTuple):
    """A case's numbers, each [seeds, rates, times]."""

    case: Case
    excess: np.ndarray  # f(x_t) − f(x*)
    worker_error: np.ndarray  # ‖d_t − ∇f(x_t)‖², mean over the honest workers.
    aggregate_error: np.ndarray  # ‖d̂_t − ∇f(x_t)‖²

    def at(self, rate: float) -> int:
        """Index of a rate in units of 1/L."""
        return int(np.argmin(np.abs(np.log(np.array(self.case.rates) / rate))))


def measure(case: Case, seeds: int, compiler_options: Any = None) -> Measured:
    """Trains a case with each rate and seed."""
    problem, optimum = problem_of(case.problem)
    inputs = jnp.asarray(problem.inputs, jnp.float32)
    targets = jnp.asarray(problem.targets, jnp.float32)
    m, f = case.num_workers, case.num_byzantine
    # K: a ball around the start x_1 = 0, with the optimum well inside.
    project = functools.partial(
        optax.projections.projection_l2_ball, scale=2 * float(np.linalg.norm(optimum))
    )
    rule, attack = case.parts()

    def trajectory(key, rate):
        sgd = optax.sgd(rate / problem.smoothness)
        worker, server = OPTIMIZERS[case.optimizer](sgd, project)
        trainer = byzjax.trainer(
            problem.loss,
            worker=worker,
            attack=attack,
            aggregator=rule,
            # A trace without decay keeps the last aggregate in the state.
            server=optax.chain(optax.trace(0.0), server),
            num_workers=m,
            num_byzantine=f,
        )

        def step(t, state):
            draw, rest = jax.random.split(jax.random.fold_in(key, t))
            shape = m, case.batch_size
            chosen = jax.random.randint(draw, shape, 0, len(problem.targets))
            batches = inputs[chosen], targets[chosen]
            return trainer.step(state, batches, rest)[0]

        def record(state, interval):
            state = jax.lax.fori_loop(interval[0], interval[1], step, state)
            messages = state.worker_state.momentum[: m - f]
            return state, (state.prev_params, messages, state.server_state[0].trace)

        start = trainer.init(jnp.zeros(len(optimum)))
        times = jnp.asarray(case.times())
        intervals = jnp.concatenate([jnp.zeros_like(times[:1]), times[:-1]]), times
        return jax.lax.scan(record, start, intervals)[1]

    keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    rates = jnp.asarray(case.rates, jnp.float32)
    sweep = jax.vmap(jax.vmap(trajectory, (None, 0)), (0, None))
    program = jax.jit(sweep, compiler_options=compiler_options)
    x, messages, aggregates = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), program(keys, rates)
    )
    gradients = problem.gradient(x)
    errors = ((messages - gradients[..., None, :]) ** 2).sum(-1)
    return Measured(
        case,
        excess=problem.value(x) - problem.value(optimum),
        worker_error=errors.mean(-1),
        aggregate_error=((aggregates - gradients) ** 2).sum(-1),
    )


# --- running and storing --------------------------------------------------------------

FIELDS = Measured._fields[1:]


def _path(out: pathlib.Path, case: Case) -> pathlib.Path:
    return out / "theory" / f"{case.digest()}.json"


def load(
    out: str | os.PathLike[str], cases: Iterable[Case], seeds: int
) -> list[Measured]:
    """What was measured with at least so many seeds, of the first of them."""
    found = []
    for case in cases:
        content = _content(pathlib.Path(out), case)
        if content["seeds"] >= seeds:
            fields = {name: np.array(content[name])[:seeds] for name in FIELDS}
            found.append(Measured(case, **fields))
    return found


def _content(out: pathlib.Path, case: Case) -> dict[str, Any]:
    path = _path(out, case)
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"seeds": 0}


def plan(
    cases: Iterable[Case], seeds: int, *, out: str | os.PathLike[str] = "out"
) -> str:
    """What is to do, in a line of text; and how long it took, if some of it is done."""
    cases, out = list(dict.fromkeys(cases)), pathlib.Path(out)
    contents = [_content(out, case) for case in cases]
    done = [each["seconds"] for each in contents if each["seeds"] >= seeds]
    line = (
        f"{len(cases)} programs × {seeds} seeds of the theory: {len(done)} finished, "
        f"{len(cases) - len(done)} to do"
    )
    return line + (f", {np.mean(done):.1f} s each so far" if done else "")


def run(
    cases: Iterable[Case],
    seeds: int = 3,
    *,
    out: str | os.PathLike[str] = "out",
    compiler_options: dict[str, Any] | None = None,
    console: Console | None = None,
) -> list[Measured]:
    """Measures what is not there yet, and returns all of it."""
    cases, out = list(dict.fromkeys(cases)), pathlib.Path(out)
    todo = [case for case in cases if _content(out, case)["seeds"] < seeds]
    for case in track(todo, "convex problems", console=console):
        begun = time.monotonic()
        measured = measure(case, seeds, compiler_options)
        content = {
            **dataclasses.asdict(case),
            "seeds": seeds,
            "seconds": round(time.monotonic() - begun, 1),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "times": case.times().tolist(),
        }
        for name in FIELDS:
            digits = np.vectorize(lambda value: float(f"{value:.5g}"))
            content[name] = digits(getattr(measured, name)).tolist()
        path = _path(out, case)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.replace(path, json.dumps(content) + "\n")
        jax.clear_caches()  # Each case is a program of its own.
    return load(out, cases, seeds)
