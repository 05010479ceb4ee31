"""Rules on eight host devices: the unsharded result, at the price of an all-reduce."""

import functools

import numpy as np
import pytest

from benchmarks.collectives import Collective
from tests import stacks
from tests.rules import RULES
from tests.sharding import processes
from tests.sharding.stacks import NUM_DEVICES, D, beside_itself, rows

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded rules")]
# The mesh as `jax.make_mesh` gives it, of workers that devices do not divide, for all;
# and the other kind, of workers that they do, but for conventions of another row.
UNEVEN, EVEN = ("explicit", 13, "all"), ("auto", 16, "named")
NAMED = [rule for rule in RULES if not rule.variant]
every = pytest.mark.parametrize(
    "rule, mesh",
    [
        *(pytest.param(rule, EVEN, id=f"{rule.name}-even") for rule in NAMED),
        *(pytest.param(rule, UNEVEN, id=f"{rule.name}-uneven") for rule in RULES),
    ],
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")

    @functools.cache
    def on(kind, m, which):
        return processes.found_by("all_rules", folder, kind, str(m), which)

    return on


@every
def test_equals_the_definition(found, rule, mesh):
    m = mesh[1]
    entry, x = found(*mesh)[rule.name], rows(m)
    got = np.asarray(entry["got"], np.float32)
    if beside_itself(rule):
        assert entry["alone"] <= 1e-5 * stacks.size(x)
    else:
        stacks.assert_oracle(rule, x, stacks.some_f(rule, m), got)


@every
def test_moves_what_an_all_reduce_moves(found, rule, mesh):
    m = mesh[1]
    moves = [Collective(*move) for move in found(*mesh)[rule.name]["collectives"]]
    there = [move for move in moves if move.kind == "all-to-all"]
    chunk = -(-D // NUM_DEVICES)
    padded = m + -m % NUM_DEVICES
    assert [move.bytes for move in there] == [4 * padded * chunk]
    rest = [move for move in moves if move.kind != "all-to-all"]
    back = Collective("all-gather", 4 * NUM_DEVICES * chunk)
    assert rest.count(back) == 1
    rest.remove(back)
    # Sums of m×m and less, some of them for rows out of range only.
    assert {move.kind for move in rest} <= {"all-gather", "all-reduce"}
    assert all(move.bytes <= 4 * NUM_DEVICES * (m + 2) ** 2 for move in rest)
    assert len(rest) <= 8


@pytest.mark.parametrize("rule", NAMED, ids=lambda rule: rule.name)
def test_no_device_holds_the_stack(found, rule):
    m = EVEN[1]  # Of other workers the stack comes in on all devices.
    # smea has matrices of all subsets, which do not grow with D.
    limit = m * D if rule.name == "smea" else m * D / 2
    assert found(*EVEN)[rule.name]["largest"] < limit
