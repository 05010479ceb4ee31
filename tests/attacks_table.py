"""The table of all attacks, and the stacks that tests give them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import attacks
from tests import attacks_reference as oracle

M, F = 11, 4
H = M - F
KEY = jax.random.key(3)


class Row(NamedTuple):
    """One attack of the table."""

    name: str
    make: Callable[..., byzjax.Attack]  # Takes num_byzantine.
    oracle: Callable[..., np.ndarray] | None = None  # (honest, own) → [f, d].
    draws: bool = False  # Needs a key.
    needs_own: bool = False


def of(factory, *args, **kwargs):
    return functools.partial(factory, *args, **kwargs)


def searched(attack, rule):
    return of(attacks.optimized, attack, rule)


TRIMMED = byzjax.trimmed_mean(F)
TABLE = [
    Row("sign_flip own", attacks.sign_flip, oracle.sign_flip, needs_own=True),
    Row("sign_flip mean", of(attacks.sign_flip, of="mean"), of(oracle.ipm, scale=1)),
    Row("scaled_sign_flip", attacks.scaled_sign_flip, oracle.scaled_sign_flip),
    Row("ipm", attacks.ipm, of(oracle.ipm, scale=0.5)),
    Row("ipm 2", of(attacks.ipm, 2.0), of(oracle.ipm, scale=2.0)),
    Row("alie", attacks.alie, oracle.alie),
    Row(
        "alie all",
        of(attacks.alie, quantile="all", direction="positive"),
        of(oracle.alie, quantile="all", sign=1),
    ),
    Row("alie 1.5", of(attacks.alie, 1.5, ddof=0), of(oracle.alie, z=1.5, ddof=0)),
    Row("gaussian", of(attacks.gaussian, 3.0), draws=True),
    Row(
        "gaussian mean",
        of(attacks.gaussian, 3.0, around="mean"),
        draws=True,
    ),
    Row(
        "constant",
        of(attacks.constant, -7.0),
        lambda honest, own: np.full_like(own, -7.0),
    ),
    Row("infinity", attacks.infinity, lambda honest, own: np.full_like(own, np.inf)),
    Row("nan", attacks.nan, lambda honest, own: np.full_like(own, np.nan)),
    Row("random_garbage", attacks.random_garbage, draws=True),
    Row("free_rider", attacks.free_rider, lambda honest, own: np.zeros_like(own)),
    Row("free_rider stale", of(attacks.free_rider, "stale")),
    Row(
        "mimic",
        of(attacks.mimic, 2),
        lambda honest, own: oracle.repeated(honest[2], own),
    ),
    Row("mimic warmup", of(attacks.mimic, warmup=2)),
    *(
        Row(f"min_max {p}", of(attacks.min_max, p), of(oracle.min_max, p=p))
        for p in ("unit", "sign", "std")
    ),
    *(
        Row(f"min_sum {p}", of(attacks.min_sum, p), of(oracle.min_sum, p=p))
        for p in ("unit", "sign", "std")
    ),
    Row(
        "min_sum min",
        of(attacks.min_sum, bound="min"),
        of(oracle.min_sum, p="unit", bound="min"),
    ),
    Row(
        "small_perturbation",
        attacks.small_perturbation,
        of(oracle.small_perturbation, coordinate=-1),
    ),
    Row(
        "small_perturbation 9",
        of(attacks.small_perturbation, 9.0, coordinate=3),
        of(oracle.small_perturbation, scale=9.0, coordinate=3),
    ),
    Row(
        "small_perturbation all",
        of(attacks.small_perturbation, coordinate=None),
        of(oracle.small_perturbation, coordinate=None),
    ),
    Row("anti_cge", attacks.anti_cge, oracle.anti_cge),
    Row("fang krum", of(attacks.fang, "krum"), oracle.fang_krum),
    Row(
        "fang trimmed_mean",
        of(attacks.fang, "trimmed_mean", random=False),
        oracle.fang_trimmed_mean,
    ),
    Row(
        "fang trimmed_mean drawn",
        of(attacks.fang, "trimmed_mean"),
        draws=True,
    ),
    Row("rop", attacks.rop, oracle.rop),
    Row(
        "rop 180",
        of(attacks.rop, 2.0, angle=150.0, relocation=0.0, mixing=0.5),
        of(oracle.rop, z=2.0, angle=150.0, relocation=0.0, mixing=0.5),
    ),
    Row("rop informed", of(attacks.rop, aggregator=byzjax.centered_clipping(1.0))),
    Row(
        "optimized ipm",
        searched(attacks.ipm, TRIMMED),
        of(
            oracle.optimized,
            attack=lambda honest, own, scale: oracle.ipm(honest, own, scale=scale),
            rule=oracle.trimmed_mean,
        ),
    ),
    Row(
        "optimized alie",
        searched(lambda z: attacks.alie(z, direction="positive"), TRIMMED),
        of(
            oracle.optimized,
            attack=lambda honest, own, z: oracle.alie(honest, own, z=z, sign=1),
            rule=oracle.trimmed_mean,
        ),
    ),
    Row("adaptive", of(attacks.adaptive, TRIMMED, num_steps=5)),
    *(
        Row(
            f"bit_flips {how}",
            of(attacks.bit_flips, (0, 6, 8), period=5, offset=3, how=how),
            of(oracle.bit_flips, bits=(0, 6, 8), period=5, offset=3, how=how),
            needs_own=True,
        )
        for how in ("flip", "one", "zero")
    ),
    Row(
        "intermittent",
        lambda **f: attacks.intermittent(attacks.ipm(), 0.5, **f),
        draws=True,
        needs_own=True,
    ),
]


def where(condition):
    rows = [row for row in TABLE if condition(row)]
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


table = where(lambda row: True)


def matrix(seed=0, d=12):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(M, d)) + rng.normal(size=d)).astype(np.float32)


def as_tree(x):
    """A matrix [m, 12] as a tree whose leaves in tree order ravel to it."""
    x = jnp.asarray(x)
    return {"a": x[:, :6].reshape(-1, 2, 3), "b": (x[:, 6], x[:, 7:])}


def as_matrix(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def key_of(row):
    return KEY if row.draws else None


def applied(row, updates):
    return compiled(row.name)(updates)


@functools.cache
def compiled(name):
    """One program for each row and shape, shared by the tests."""
    (row,) = (row for row in TABLE if row.name == name)
    return jax.jit(lambda x: row.make().apply(x, num_byzantine=F, key=key_of(row)))
