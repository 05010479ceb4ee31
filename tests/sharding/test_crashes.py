"""Runs of several processes that are killed and frozen, by real signals."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from byzjax.sharding.runtime import ENDED
from tests.sharding import processes
from tests.sharding.all_crashes import (
    TOO_FEW,
    M,
    batches,
    bits,
    first_params,
    key,
    make_trainer,
    quarter,
)
from tests.sharding.processes import free_address

# One at a time: each is several processes, and they tell the dead by the clock.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("crashes")]
SECONDS = 240  # On machines that do much else; docs/scaling.md has what was measured.
DEAD_AFTER = 5


class Job:
    """Processes of one run, each by its handle.

    Args:
      folder: what they write goes here.
      count: how many.
      devices: of each.
      settings: see all_crashes.
    """

    def __init__(self, folder, count, devices=1, **settings):
        self.folder, address = folder, free_address()
        self.paths = [folder / f"{count}.{rank}" for rank in range(count)]
        self.errors = [path.with_suffix(f"{path.suffix}.err") for path in self.paths]
        settings = {"dead_after": DEAD_AFTER, "holds": [], "save_every": 99, **settings}
        command = [sys.executable, "-m", "tests.sharding.all_crashes"]
        self.running = []
        for rank, path in enumerate(self.paths):
            with self.errors[rank].open("w") as errors:
                self.running.append(
                    subprocess.Popen(
                        [
                            *(*command, str(path), address, str(count), str(rank)),
                            json.dumps(settings),
                        ],
                        env=processes.environment(devices),
                        cwd=processes.ROOT,
                        stderr=errors,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()

    def read(self, rank):
        path = self.paths[rank]
        return processes.read(path) if path.exists() else {}

    def said(self, rank):
        return self.errors[rank].read_text(encoding="utf-8")

    def wait_for(self, ranks, name):
        """Until they have written an entry."""
        until = time.monotonic() + SECONDS
        for rank in ranks:
            while name not in self.read(rank):
                state = self.running[rank].poll()
                assert state is None, (rank, state, self.said(rank)[-3000:])
                assert time.monotonic() < until, (rank, name, self.said(rank)[-3000:])
                time.sleep(0.05)

    def send(self, rank, number):
        self.running[rank].send_signal(number)
        return time.time()

    def go(self, step):
        (self.folder / f"go {step}").touch()

    def ends(self, ranks):
        """Their exit statuses."""
        return [self.running[rank].wait(timeout=SECONDS) for rank in ranks]

    def steps(self, rank):
        """Numbers of the steps that it was told of, in order, and who was present."""
        found = [x for x in self.read(rank).values() if "present" in x]
        return [x["step"] for x in found], [x["present"] for x in found]


def reference(history, anew=None, f_of=lambda present: 1):
    """Bits of the parameters of a plain run with the same history of `present`.

    Args:
      history: bools `[m]` of each step.
      anew: a step, and workers whose states then begin anew.
      f_of: number present → f.
    """
    trainers = {}
    state = first = make_trainer(None, 1).init(first_params())
    for t, present in enumerate(np.asarray(history)):
        if anew is not None and t == anew[0]:
            rows = [
                w
                for w in anew[1]
                if w < jax.tree.leaves(first.worker_state)[0].shape[0]
            ]
            fresh = jax.tree.map(
                lambda x, y, rows=rows: x.at[np.asarray(rows, int)].set(
                    y[np.asarray(rows, int)]
                ),
                state.worker_state,
                first.worker_state,
            )
            state = state._replace(worker_state=fresh)
        f = f_of(int(present.sum()))
        if f not in trainers:
            trainers[f] = jax.jit(make_trainer(None, f).step)
        own = jax.random.fold_in(key(), t)
        state, _ = trainers[f](state, batches(t, range(M)), own, present=present)
    return bits(state.params)


def far(these, those):
    """The largest difference between parameters, of order one."""
    a, b = (
        np.concatenate([np.frombuffer(bytes.fromhex(x), np.float32) for x in leaves])
        for leaves in (these, those)
    )
    return float(np.max(np.abs(a - b)))


def without(*workers):
    return [worker not in workers for worker in range(M)]


def test_two_of_four_are_killed_and_no_step_is_lost_or_done_twice(tmp_path):
    with Job(tmp_path, 4, steps=9, holds=[3, 6], f=None, copy_every=2) as job:
        job.wait_for(range(4), "step 3")
        killed = job.send(2, signal.SIGKILL)
        job.go(3)
        job.wait_for([0, 1, 3], "step 6")
        first = job.read(0)["step 4"]["time"] - killed
        killed = job.send(3, signal.SIGKILL)
        job.go(6)
        assert job.ends([0, 1]) == [0, 0], job.said(0)[-3000:]
        second = job.read(0)["step 7"]["time"] - killed
        print(f"seconds until the next step: {first:.1f}, {second:.1f}")
        # Copies were of steps 2 and 6: step 3 was done again, and told once.
        history = [*[without()] * 2, *[without(4, 5)] * 4, *[without(4, 5, 6, 7)] * 3]
        told = [*[without()] * 3, *history[3:]]
        for rank in (0, 1):
            assert job.steps(rank) == (list(range(1, 10)), told)
            assert job.read(rank)["end"]["step"] == 9
        more = dict(f_of=quarter)
        wanted = reference(history, **more)
        assert job.read(0)["end"]["bits"] == job.read(1)["end"]["bits"]
        assert far(job.read(0)["end"]["bits"], wanted) <= 1e-6
        # What the comparison would see: a step less, or one with those that were dead.
        assert far(reference(history[:-1], **more), wanted) > 1e-4
        assert far(reference([*history[:-1], history[0]], **more), wanted) > 1e-4


def test_who_dies_before_the_first_step_had_workers(tmp_path):
    """They are absent, and nobody else is asked for their batches."""
    with Job(tmp_path, 4, steps=3, f=1, dies=1) as job:
        assert job.ends([0, 2, 3]) == [0, 0, 0], job.said(0)[-3000:]
        assert job.steps(0) == ([1, 2, 3], [without(2, 3)] * 3)
        assert "6 of 8 workers are left, without [2, 3]" in job.said(0)
        wanted = reference([without(2, 3)] * 3)
        assert far(job.read(0)["end"]["bits"], wanted) <= 1e-6


def test_a_frozen_one_is_dead_and_without_the_coordinator_all_end_and_resume(tmp_path):
    settings = dict(f=1, save_every=4)
    with Job(tmp_path, 4, steps=99, holds=[2, 6], **settings) as job:
        job.wait_for(range(4), "step 2")
        frozen = job.send(1, signal.SIGSTOP)
        job.go(2)
        job.wait_for([0, 2, 3], "step 6")
        print(f"seconds: {job.read(0)['step 3']['time'] - frozen:.1f}")
        # It wakes up: nobody waits for it any more.
        job.send(1, signal.SIGCONT)
        assert job.ends([1]) != [0]
        job.send(0, signal.SIGKILL)
        job.go(6)
        assert job.ends([2, 3]) == [ENDED, ENDED]
        assert "lost the coordinator" in job.said(2)
    with Job(tmp_path, 2, devices=2, steps=8, **settings) as job:
        assert job.ends([0, 1]) == [0, 0], job.said(0)[-3000:]
        assert job.steps(0)[0] == [5, 6, 7, 8]
        history = [*[without()] * 2, *[without(2, 3)] * 2, *[without()] * 4]
        more = dict(anew=(4, [2, 3]))
        wanted = reference(history, **more)
        assert job.read(0)["end"]["bits"] == job.read(1)["end"]["bits"]
        assert far(job.read(0)["end"]["bits"], wanted) <= 1e-6
        assert far(reference(history), wanted) > 1e-5  # The frozen one's old momentum.


def test_too_few_survivors_stop_with_their_state_saved(tmp_path):
    settings = dict(steps=9, holds=[3], f=2, disagree=True)
    with Job(tmp_path, 2, **settings) as job:
        job.wait_for([0, 1], "step 3")
        for rank in (0, 1):
            assert (
                "at key ([0, 0] in process 0, [0, 1] in [1])"
                in (job.read(rank)["disagree"]["message"])
            )
        job.send(1, signal.SIGKILL)
        job.go(3)
        assert job.ends([0]) == [TOO_FEW], job.said(0)[-3000:]
        found = job.read(0)["too few"]
        assert found["step"] == 3
        assert "num_byzantine=2, got 4 of 8, without [4, 5, 6, 7]" in found["message"]
        assert (tmp_path / "checkpoints" / "3").is_dir()
