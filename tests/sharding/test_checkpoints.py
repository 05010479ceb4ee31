"""Checkpoints of one number of processes and devices, taken up by others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import byzjax
from byzjax import sharding
from tests.sharding import processes
from tests.sharding.all_checkpoints import M

SECONDS = 240


def found_by(folder, verb, count, devices):
    """What each of so many processes of so many devices has."""
    address = processes.free_address()
    paths = [folder / f"{verb}-{count}-{devices}-{rank}" for rank in range(count)]
    arguments = [
        [str(path), address, str(count), str(rank), verb, str(folder / "checkpoints")]
        for rank, path in enumerate(paths)
    ]
    processes.together("all_checkpoints", arguments, devices, SECONDS)
    found = [processes.read(path)["state"] for path in paths]
    assert all(each["devices"] == [count * devices, devices] for each in found)
    shared = {tuple(each["shared"]) for each in found}
    assert len(shared) == 1
    rows = {row: digest for each in found for row, digest in each["rows"].items()}
    assert sorted(map(int, rows)) == list(range(M))
    return shared.pop(), rows


@pytest.mark.slow
@pytest.mark.xdist_group("crashes")
def test_a_state_moves_between_numbers_of_processes_and_devices(tmp_path):
    saved = found_by(tmp_path, "save", 4, 2)
    assert len(set(saved[1].values())) == M
    for count, devices in ((2, 4), (1, 8), (2, 1), (1, 1)):
        assert found_by(tmp_path, "restore", count, devices) == saved


# --- in this process ------------------------------------------------------------------


def one(**arguments):
    return sharding.Layout(jax.make_mesh((1,), ("workers",)), **arguments)


class State(NamedTuple):
    params: jax.Array
    worker_state: jax.Array  # [n, d]


def state_of(num_workers, d, layout, begin=1):
    count = num_workers - len(layout.absent)
    rows = np.repeat(begin * np.arange(1.0, count + 1, dtype=np.float32)[:, None], d, 1)
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    return State(
        jax.device_put(np.ones(d, np.float32), everywhere),
        jax.device_put(rows, layout.batches),
    )


def numbers(state):
    return np.asarray(state.worker_state)[:, 0].tolist()


def test_rows_are_found_by_their_workers(tmp_path):
    checkpoints = sharding.Checkpoints(tmp_path, keep=None)
    some, others = one(absent=(1, 4)), one(absent=(0, 4))
    checkpoints.save(1, state_of(6, 3, some), some)  # 1 2 3 4 for workers 0 2 3 5.
    like = state_of(6, 3, one(), begin=0)
    assert numbers(checkpoints.restore(like, one())[1]) == [1, 0, 2, 3, 0, 4]
    like = state_of(6, 3, others, begin=0)
    assert numbers(checkpoints.restore(like, others)[1]) == [0, 2, 3, 4]


def test_the_latest_stay_and_an_unfinished_one_is_none(tmp_path):
    checkpoints = sharding.Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.steps() == []
    with pytest.raises(FileNotFoundError, match="got none"):
        checkpoints.restore({"x": jnp.ones(2)})
    for step in (1, 10, 2):
        checkpoints.save(step, {"x": jnp.full(2, step), "none": jnp.ones((0, 3))})
    assert checkpoints.steps() == [2, 10]
    (tmp_path / "new" / "11.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.steps() == [2, 10]
    like = {"x": jnp.zeros(2, int), "none": jnp.ones((0, 3))}
    step, found = checkpoints.restore(like)
    assert step == 10 and found["x"].tolist() == [10, 10]
    assert checkpoints.restore(like, step=2)[1]["x"].tolist() == [2, 2]
    with pytest.raises(FileNotFoundError, match=r"of step 3 .* got those of \[2, 10\]"):
        checkpoints.restore(like, step=3)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    layout, checkpoints = one(), sharding.Checkpoints(tmp_path)
    checkpoints.save(1, state_of(6, 3, layout), layout)
    for like, words in (
        (state_of(6, 4, layout), r"float32 \(4,\) at params, got float32 \(3,\)"),
        (state_of(7, 3, layout), r"as many workers"),
        ({"params": jnp.ones(3)}, "as it was"),
    ):
        with pytest.raises(ValueError, match=words):
            checkpoints.restore(like, layout)


def test_numbers_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        sharding.Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step=-1"):
        sharding.Checkpoints(tmp_path).save(-1, jnp.ones(2))


def test_columns_in_another_order_are_refused(tmp_path):
    """A rule's memory would be permuted, without a word."""
    checkpoints = sharding.Checkpoints(tmp_path)
    mesh = jax.make_mesh((1, 1), ("workers", "model"))
    spread = sharding.Layout(mesh, params={"w": PartitionSpec(None, "model")})
    plain = sharding.Layout(jax.make_mesh((1,), ("workers",)))

    def state(rule, layout):
        trainer = byzjax.trainer(
            lambda params, batch: jnp.sum((params["w"] - batch) ** 2),
            aggregator=rule,
            server=optax.sgd(0.1),
            num_workers=3,
            layout=layout,
        )
        return trainer.init({"w": jnp.ones((6, 8))})

    remembers = byzjax.centered_clipping(0.5)
    checkpoints.save(1, state(remembers, spread), spread)
    with pytest.raises(ValueError, match=r"aggregator_state.* remember columns"):
        checkpoints.restore(state(remembers, plain), plain)
    assert checkpoints.restore(state(remembers, spread), spread)[0] == 1
    checkpoints.save(2, state(byzjax.median(), spread), spread)
    assert checkpoints.restore(state(byzjax.median(), plain), plain)[0] == 2


def test_what_was_just_saved_stays(tmp_path):
    checkpoints = sharding.Checkpoints(tmp_path, keep=2)
    for step in (100, 200, 50):
        checkpoints.save(step, {"w": jnp.ones(2)})
    assert checkpoints.steps() == [50, 200]


def test_leaves_of_one_name_are_refused(tmp_path):
    tree = {"a": {"b": jnp.ones(2)}, "a.b": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"several called \['a\.b'\]"):
        sharding.Checkpoints(tmp_path).save(1, tree)
