"""Every rule against the time of reading the stack once, and against its peers."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from benchmarks import data, peers, timing
from benchmarks.apart import Process

# (m, f) → rule.
RULES: dict[str, Callable[[int, int], byzjax.Aggregator]] = {
    "mean": lambda m, f: byzjax.mean(),
    "median": lambda m, f: byzjax.median(),
    "trimmed_mean": lambda m, f: byzjax.trimmed_mean(f),
    "meamed": lambda m, f: byzjax.meamed(f),
    "phocas": lambda m, f: byzjax.phocas(f),
    "geometric_median": lambda m, f: byzjax.geometric_median(),
    "geometric_median(3)": lambda m, f: byzjax.geometric_median(
        smoothing=0.1, num_iterations=3
    ),
    "krum": lambda m, f: byzjax.krum(f),
    "multi_krum": lambda m, f: byzjax.multi_krum(f),
    "bulyan": lambda m, f: byzjax.bulyan((m - 3) // 4),
    "mda": lambda m, f: byzjax.mda(f),
    # One attacker: ByzFL goes over the stack once for every subset.
    "smea(1)": lambda m, f: byzjax.smea(1),
    "monna": lambda m, f: byzjax.monna(f),
    "medoid": lambda m, f: byzjax.medoid(),
    "cge": lambda m, f: byzjax.cge(f),
    "aksel": lambda m, f: byzjax.aksel(f),
    "centered_clipping": lambda m, f: byzjax.centered_clipping(100.0),
    "caf": lambda m, f: byzjax.caf(f),
    "dnc": lambda m, f: byzjax.dnc(f),
    "clipping(mean)": lambda m, f: byzjax.clipping(byzjax.mean(), 2.0),
    "arc(mean)": lambda m, f: byzjax.arc(byzjax.mean(), f),
    "bucketing(median)": lambda m, f: byzjax.bucketing(byzjax.median(), 2),
    "nnm(median)": lambda m, f: byzjax.nnm(byzjax.median(), f),
    "nnm(geometric_median)": lambda m, f: byzjax.nnm(byzjax.geometric_median(), f),
    "ctma(median)": lambda m, f: byzjax.ctma(byzjax.median(), f),
    "ctma(geometric_median)": lambda m, f: byzjax.ctma(byzjax.geometric_median(), f),
    "ctma(nnm(geometric_median))": lambda m, f: byzjax.ctma(
        byzjax.nnm(byzjax.geometric_median(), f), f
    ),
}
FEW = ("mean", "median", "trimmed_mean", "krum", "geometric_median", "ctma(median)")

# Leaves of a ResNet-18 for ten classes: convolutions, and scales and shifts of norms.
_STAGES = ((64, 64), (64, 128), (128, 256), (256, 512))


def read_once(x: jax.Array) -> jax.Array:
    ones = jnp.ones((x.shape[0],), x.dtype)
    return jnp.matmul(ones, x, precision=jax.lax.Precision.HIGHEST)


def _aggregate(rule: byzjax.Aggregator, x: Any) -> Any:
    return rule.aggregate(x, key=jax.random.key(0))


def measure(
    m: int, d: int, names: Sequence[str], *, rounds: int, compare: bool
) -> Iterator[dict[str, Any]]:
    """One record a rule, timed in turn with a read, a copy, and other libraries' rule.

    The first two records are the read and the copy.
    """
    f = data.assumed_byzantine(m)
    x = jnp.asarray(data.stack(m, d))
    always = {
        "one read": timing.compile_for(read_once, x),
        "copy": timing.compile_for(jnp.negative, x),
    }
    for name in (*always, *names):
        program = always.get(name)
        if program is None:
            rule = RULES[name](m, f)
            program = timing.compile_for(functools.partial(_aggregate, rule), x)
        cases = {
            case: functools.partial(timed.call, x)
            for case, timed in (always | {name: program}).items()
        }
        with contextlib.ExitStack() as stack:
            others = {
                library: stack.enter_context(Process(peers.call, library, name, m, d))
                for library in (peers.having(name) if compare else ())
            }
            spreads = timing.interleaved(cases, apart=others, rounds=rounds)
        seconds = spreads[name].median
        read, copy = spreads["one read"].median, spreads["copy"].median
        yield {
            "rule": name,
            "m": m,
            "d": d,
            "seconds": spreads[name]._asdict(),
            "reads": seconds / read,
            "read_seconds": read,
            # A copy moves the stack twice; a rule has to read it once.
            "copy_bandwidth_share": copy * (m + 1) / (2 * m) / seconds,
            "compile_seconds": program.compile_seconds,
            "program_lines": program.program_lines,
            "temp_bytes": program.temp_bytes,
            "peers": {library: spreads[library]._asdict() for library in others},
        }


def resnet_shapes() -> list[tuple[int, ...]]:
    """The 62 leaves of a ResNet-18, 11 million parameters."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, 64), (64,), (64,)]
    for before, after in _STAGES:
        for inner in (before, after, after, after):
            shapes += [(3, 3, inner, after), (after,), (after,)]
        if before != after:
            shapes += [(1, 1, before, after), (after,), (after,)]
    return [*shapes, (512, 10), (10,)]


def transformer_shapes(layers: int = 8, width: int = 128) -> list[tuple[int, ...]]:
    """The hundred leaves of a small transformer, 2 million parameters."""
    shapes: list[tuple[int, ...]] = [(2000, width), (64, width)]
    for _ in range(layers):
        shapes += [(width, width)] * 4
        shapes += [(width,)] * 4
        shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, (width,), (width,)]


TREES = {"ResNet-18": resnet_shapes, "transformer": transformer_shapes}


def measure_tree(
    model: str, m: int, names: Sequence[str], *, rounds: int
) -> list[dict[str, Any]]:
    """Rules on a tree of many leaves, and on the same numbers as one leaf."""
    f = data.assumed_byzantine(m)
    shapes = TREES[model]()
    sizes = [int(np.prod(shape)) for shape in shapes]
    host = data.stack(m, sum(sizes))
    matrix = jnp.asarray(host)
    ends = np.cumsum([0, *sizes])
    tree = [
        jnp.asarray(host[:, a:b].reshape(m, *shape))
        for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
    ]
    records, cases = [], {}
    for name in names:
        call = functools.partial(_aggregate, RULES[name](m, f))
        on_tree, on_matrix = (timing.compile_for(call, x) for x in (tree, matrix))
        cases[f"{name} tree"] = functools.partial(on_tree.call, tree)
        cases[f"{name} matrix"] = functools.partial(on_matrix.call, matrix)
        records.append(
            {
                "model": model,
                "leaves": len(shapes),
                "rule": name,
                "m": m,
                "d": sum(sizes),
                "compile_seconds": on_tree.compile_seconds,
                "program_lines": on_tree.program_lines,
                "temp_bytes": on_tree.temp_bytes,
            }
        )
    spreads = timing.interleaved(cases, rounds=rounds)
    for record in records:
        tree_seconds = spreads[f"{record['rule']} tree"]
        one = spreads[f"{record['rule']} matrix"]
        record["seconds"] = tree_seconds._asdict()
        record["one_leaf_seconds"] = one._asdict()
        record["ratio"] = tree_seconds.median / one.median
    return records
