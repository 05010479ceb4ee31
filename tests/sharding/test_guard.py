"""The guard on eight host devices: its account, its verdicts, and what it moves."""

import pytest

from tests.sharding import processes
from tests.sharding.all_guard import BAD
from tests.sharding.stacks import NUM_DEVICES, D

MEASURED = ["explicit:13", "auto:16"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded guard")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return processes.found_by("all_guard", tmp_path_factory.mktemp("guard"), *MEASURED)


@pytest.mark.parametrize("kind", MEASURED)
def test_the_same_account_as_on_one_device(found, kind):
    entry = found[kind]
    assert entry["gap"] < 1e-4
    assert entry["evidence"] < 0.05  # A sum of logarithms, over all steps.
    assert entry["suspects"] == entry["alone"] == [BAD]


def test_names_the_devices_that_workers_lie_on(found):
    lie = {kind: [len(names) for names in found[kind]["devices"]] for kind in MEASURED}
    assert lie == {kind: [1] * int(kind.split(":")[1]) for kind in MEASURED}
    # Two to a device, of 13 the last ones on fewer.
    names = [devices[0] for devices in found["auto:16"]["devices"]]
    assert names[::2] == names[1::2] and len(set(names)) == NUM_DEVICES
    assert [x[0] for x in found["explicit:13"]["devices"]] == names[:13]


@pytest.mark.parametrize("kind", MEASURED)
def test_moves_what_an_all_reduce_moves(found, kind):
    chunk, m = -(-D // NUM_DEVICES), int(kind.split(":")[1])
    padded = m + -m % NUM_DEVICES
    assert found[kind]["there"] == [4 * padded * chunk]
    back = ["all-gather", 4 * NUM_DEVICES * chunk]
    rest = list(found[kind]["rest"])
    rest.remove(back)
    assert all(size <= 4 * NUM_DEVICES * (m + 2) ** 2 for _, size in rest)
