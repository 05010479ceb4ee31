"""The same bits of eight devices in one, two and four processes."""

import pytest

from tests.sharding import processes
from tests.sharding.all_bits import NAMES, M
from tests.sharding.stacks import NUM_DEVICES

COUNTS = [1, 2, 4]
SECONDS = 600


def found_by(count, folder, *names):
    """What each of so many processes wrote, which share the devices."""
    address = processes.free_address()
    paths = [folder / f"{count}-{rank}.jsonl" for rank in range(count)]
    arguments = [
        [str(path), address, str(count), str(rank), *names]
        for rank, path in enumerate(paths)
    ]
    processes.together("all_bits", arguments, NUM_DEVICES // count, SECONDS)
    return [processes.read(path) for path in paths]


@pytest.mark.slow
def test_bits_do_not_depend_on_the_processes(tmp_path):
    found = {count: found_by(count, tmp_path) for count in COUNTS}
    for name in NAMES:
        bits = {each[name]["bits"] for entries in found.values() for each in entries}
        assert len(bits) == 1, name
    for count, entries in found.items():
        rows = [each["mean"]["rows"] for each in entries]
        assert sorted(row for own in rows for row in own) == list(range(M))
        assert all(len(own) == M // count for own in rows)
