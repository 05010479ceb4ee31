"""Rules on eight host devices: the unsharded result, at the price of an all-reduce."""

import numpy as np
import pytest

from benchmarks.collectives import Collective
from tests import stacks
from tests.rules import RULES
from tests.sharding import processes
from tests.sharding.stacks import NUM_DEVICES, D, beside_itself, rows

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded rules")]
# The mesh as `jax.make_mesh` gives it, of workers that devices do not divide; and the
# other kind, of workers that they do.
MEASURED = [("explicit", 13), ("auto", 16)]
every = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
each_mesh = pytest.mark.parametrize("kind, m", MEASURED)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    return {
        (kind, m): processes.found_by("all_rules", folder, kind, str(m))
        for kind, m in MEASURED
    }


@each_mesh
@every
def test_equals_the_definition(found, rule, kind, m):
    entry, x = found[kind, m][rule.name], rows(m)
    got = np.asarray(entry["got"], np.float32)
    if beside_itself(rule):
        assert entry["alone"] <= 1e-5 * stacks.size(x)
    else:
        stacks.assert_oracle(rule, x, stacks.some_f(rule, m), got)


@each_mesh
@every
def test_moves_what_an_all_reduce_moves(found, rule, kind, m):
    moves = [Collective(*move) for move in found[kind, m][rule.name]["collectives"]]
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


@every
def test_no_device_holds_the_stack(found, rule):
    kind, m = MEASURED[1]  # Of other workers the stack comes in on all devices.
    # smea has matrices of all subsets, which do not grow with D.
    limit = m * D if rule.name == "smea" else m * D / 2
    assert found[kind, m][rule.name]["largest"] < limit
