"""What rules move between devices and keep on each, counted in compiled programs.

    python -m benchmarks.scaling                       # docs/scaling.md's table
    python -m benchmarks.scaling --devices 1 8 --dim 100000 --rules median krum

Host devices, one process for each number of them. Only counts mean something: devices
that share two cores say nothing of time.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

import byzjax
from benchmarks.collectives import collectives, largest

F = 2
RULES = {
    "mean": byzjax.mean(),
    "median": byzjax.median(),
    "krum": byzjax.krum(F),
    "geometric_median": byzjax.geometric_median(),
    "centered_clipping": byzjax.centered_clipping(1.0),
    "ctma(nnm(median))": byzjax.ctma(byzjax.nnm(byzjax.median(), F), F),
    "dnc": byzjax.dnc(F),
}
FLOAT = 4  # Bytes.


def wire(m: int, d: int, devices: int, sums: int = 0) -> dict[str, float]:
    """Bytes that a device sends and receives for one aggregation, by the model.

    Args:
      m: workers.
      d: coordinates, of float32.
      devices: over which both are spread.
      sums: floats that are added up over all devices, such as m².

    Returns:
      `there`, `back` and `sums` of the rule, and `all_reduce` of plain data
      parallelism, in which every device first adds up what its workers computed.
    """
    away = (devices - 1) / devices
    own = -(-m // devices)
    return {
        "there": own * d * FLOAT * away,
        "back": d * FLOAT * away,
        "sums": 2 * sums * FLOAT * away,
        "all_reduce": 2 * d * FLOAT * away,
    }


def measured(
    devices: int, m: int, d: int, names: list[str]
) -> Iterator[dict[str, Any]]:
    """What the programs of some rules and of a plain mean have; on `devices`."""
    mesh = jax.make_mesh((devices,), ("workers",))
    layout = byzjax.sharding.Layout(mesh)
    stack = jax.ShapeDtypeStruct((m, d), jnp.float32, sharding=layout.batches)
    yield counted("plain all-reduce", devices, plain_mean(mesh, m), stack)
    for name in names:
        rule = byzjax.sharding.aggregate(RULES[name], layout)
        run = functools.partial(rule.aggregate, key=jax.random.key(0))
        yield counted(name, devices, run, stack)
    plain: dict[str, Any] = {"aggregator": RULES["median"]}
    forged = {
        "worker": byzjax.momentum(0.9),
        "attack": byzjax.attacks.sign_flip(),
        "num_byzantine": F,
        "aggregator": RULES["ctma(nnm(median))"],
    }
    yield step_of(
        "a step: momentum, sign_flip, ctma(nnm(median))", layout, m, d, forged
    )
    yield step_of("a step: median", layout, m, d, plain)
    if m // devices > 1:
        plain["workers_at_once"] = devices
        yield step_of("the same, a device's workers one by one", layout, m, d, plain)


def plain_mean(mesh, m):
    def of_one(x):
        return jax.lax.psum(jnp.sum(x, axis=0), "workers") / m

    return jax.shard_map(
        of_one, mesh=mesh, in_specs=PartitionSpec("workers"), out_specs=PartitionSpec()
    )


def step_of(name, layout, m, d, arguments):
    """A step of which the gradients are the batches."""
    trainer = byzjax.trainer(
        jnp.vdot, server=optax.sgd(0.1), num_workers=m, layout=layout, **arguments
    )
    state = trainer.init(jnp.zeros(d))
    batches = jax.ShapeDtypeStruct((m, d), jnp.float32, sharding=layout.batches)
    key = jax.random.key(0)
    return counted(name, layout.num_devices, trainer.step, state, batches, key)


def counted(name, devices, function, *args):
    program = jax.jit(function).lower(*args).compile()
    text, memory = program.as_text(), program.memory_analysis()
    assert text is not None and memory is not None
    moves = collectives(text)
    return {
        "name": name,
        "devices": devices,
        "collectives": moves,
        "largest": largest(text),
        "temporary": memory.temp_size_in_bytes,
    }


def row(record: dict[str, Any], m: int, d: int) -> str:
    """A line of the table."""
    moves = record["collectives"]
    there = [size for kind, size in moves if kind == "all-to-all"]
    whole = [size for kind, size in moves if size >= d * FLOAT and kind != "all-to-all"]
    rest = [size for kind, size in moves if kind != "all-to-all" and size < d * FLOAT]
    cells = [
        record["name"],
        record["devices"],
        f"{len(there)} of {sum(there) / 2**20:.2f}",
        f"{len(whole)} of {sum(whole) / 2**20:.2f}",
        f"{len(rest)} of {sum(rest) / 2**10:.1f}",
        f"{record['largest'] / (m * d):.3f}",
        f"{record['temporary'] / 2**20:.1f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = """\
| rule | devices | all-to-all, MiB | result, MiB | sums, KiB | largest/md | temp, MiB |
|---|---|---|---|---|---|---|"""


def predicted() -> Iterator[str]:
    """The model for accelerators, one worker each, beside a plain all-reduce."""
    yield "| devices = workers | parameters | median / all-reduce | krum / all-reduce |"
    yield "|---|---|---|---|"
    for devices in (64, 512, 4096):
        for d in (10**8, 10**9, 10**10):
            by_rule = [wire(devices, d, devices, sums) for sums in (0, devices**2)]
            ratios = [
                (x["there"] + x["back"] + x["sums"]) / x["all_reduce"] for x in by_rule
            ]
            cells = [devices, f"10^{len(str(d)) - 1}", *(f"{r:.4f}" for r in ratios)]
            yield "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Runs the counts from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--dim", type=int, default=2**20)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        for record in measured(given.devices[0], given.workers, given.dim, given.rules):
            print(json.dumps(record), flush=True)
        return
    print(HEAD)
    for count in given.devices:
        flag = f"--xla_force_host_platform_device_count={count}"
        command = [sys.executable, "-m", "benchmarks.scaling", "--here"]
        command += ["--devices", str(count), "--workers", str(given.workers)]
        command += ["--dim", str(given.dim), "--rules", *given.rules]
        done = subprocess.run(
            command,
            env=os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for line in done.stdout.splitlines():
            print(row(json.loads(line), given.workers, given.dim), flush=True)
    print()
    print("\n".join(predicted()))


if __name__ == "__main__":
    main()
