"""Training steps on eight host devices."""

import pytest

from tests.sharding import processes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded steps")]
STEPS = ["flat", "explicit", "parts", "absent", "two axes", "two explicit axes"]
D = 40 + 17 * 40 + 40


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return processes.found_by("all_steps", tmp_path_factory.mktemp("steps"))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_what_it_is_without_a_layout(found, name):
    assert found[name]["far"] <= 2e-5


def test_a_run_is_one_program(found):
    assert found["scan"]["far"] <= 1e-5


def test_a_run_of_survivors_may_have_two_axes(found):
    assert found["survivors"]["steps"] == 2
    assert found["survivors"]["far"] <= 2e-5


def test_a_seed_on_each_device_is_a_run_by_itself(found):
    assert found["seeds"]["far"] <= 1e-5


@pytest.mark.parametrize("name", STEPS)
def test_workers_keep_their_states(found, name):
    assert all(spec[0] == "workers" for spec in found[name]["workers"])
    assert all(shape[0] in (12, 16) for shape in found[name]["shapes"])


def test_parameters_stay_on_the_second_axis(found):
    wanted = [[None], [None, "model"], ["model"]]  # bias, first, last
    for name in ("two axes", "two explicit axes"):
        assert found[name]["params"] == wanted
        assert ["workers", None, "model"] in found[name]["workers"]
        assert [None, "model"] in found[name]["server"]


def test_what_a_rule_remembers_of_coordinates_is_on_all_devices(found):
    assert found["explicit"]["remembered"].count(["workers"]) == 3
    both = [["workers", "model"]]
    assert found["two explicit axes"]["remembered"].count(both) >= 3


def test_a_step_moves_what_an_all_reduce_moves(found):
    kinds = [kind for kind, _ in found["flat"]["collectives"]]
    sizes = dict(found["flat"]["collectives"])
    chunk = -(-D // 8)
    assert kinds.count("all-to-all") == 1
    assert sizes["all-to-all"] == 4 * 16 * chunk
    assert kinds.count("collective-permute") == 0
    back = ["all-gather", 4 * 8 * chunk]
    assert found["flat"]["collectives"].count(back) == 1
    others = [move for move in found["flat"]["collectives"] if move != back]
    assert sum(n for kind, n in others if kind != "all-to-all") <= 4 * 8 * 17**2
    assert found["flat"]["largest"] < 16 * D / 2


def test_a_step_on_two_axes_moves_the_stack_once(found):
    kinds = [kind for kind, _ in found["two axes"]["collectives"]]
    assert kinds.count("all-to-all") == 1
    assert kinds.count("collective-permute") == 0
    assert found["two axes"]["largest"] < 16 * D / 2


def test_chunks_of_workers_are_sent_one_by_one(found):
    """In m·d/D + 2·c·d floats of a device, c workers of which are on the way."""
    m, d, shards = 32, 2**16, 8
    for name, c in (("at once", 4), ("chunked", 1), ("uneven", 2)):
        case = found[f"chunks {name}"]
        moves = [n for kind, n in case["collectives"] if kind == "all-to-all"]
        assert moves == [4 * c * d], name
        assert case["checksum"] == found["chunks at once"]["checksum"], name
    for name, c in (("chunked", 1), ("uneven", 2)):
        budget = m * d / shards + 2 * c * d
        assert found[f"chunks {name}"]["floats"] <= 1.02 * budget, name
    assert found["chunks chunked"]["floats"] < 0.75 * found["chunks at once"]["floats"]


@pytest.mark.parametrize("way", ["", " jit"])
@pytest.mark.parametrize(
    "name, words",
    [
        ("few workers", "num_workers=7 and 8 devices"),
        ("other devices", "{'workers': 8}, got one on {'workers': 4}"),
        ("another mesh", "mesh"),
    ],
)
def test_bad_input_is_refused_by_name(found, name, words, way):
    message = found[name + way]["message"]
    assert message is not None and words in message
