"""A real network on loopback: processes are killed, and nothing is left running."""

import json
import os
import pathlib
import signal
import sys
import time

import pytest

pytest.importorskip("flwr")
if not pathlib.Path("/proc/self/stat").exists():
    pytest.skip("finds processes in /proc", allow_module_level=True)

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "flower"
CLIENTS = 5


@pytest.fixture
def example(monkeypatch):
    """The example's scripts, which import each other by their folder."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import processes
    import run

    yield run, processes
    for name in ("processes", "run"):
        sys.modules.pop(name, None)


def wait_for(condition, seconds):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.3)
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("flower deployment")
def test_killed_clients_and_servers_end_nothing(example, tmp_path):
    """One client's replies cannot be inflated, one's machine dies, then the server."""
    run, processes = example
    result, checkpoint = tmp_path / "result.json", tmp_path / "state"
    config = {
        "strategy": "robust",
        "hostility": "unreadable",
        "num-rounds": 4,
        "timeout": 60.0,
        "result": str(result),
        "checkpoint": str(checkpoint),
    }

    def rounds():
        if not result.exists() or not result.read_text():
            return {}
        return json.loads(result.read_text())["accuracy"]

    members = {}
    with run.network("deployment", CLIENTS) as running:
        following = running.submit(config, CLIENTS)
        wait_for(lambda: "1" in rounds(), 120)
        running.kill("supernode0")
        wait_for(lambda: "2" in rounds(), 120)
        for process in running.processes.values():
            members |= processes.family(process.pid)
        servers = [pid for pid in members if "flwr-serverapp" in processes.command(pid)]
        assert servers and checkpoint.exists()
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: following.poll() is not None, 180)
        running.kill("run")
        following = running.submit(config, CLIENTS)
        wait_for(lambda: following.poll() is not None, 240)
        log = (running.folder / "run.log").read_text()
        for process in running.processes.values():
            members |= processes.family(process.pid)
    assert "Going on after round" in log
    assert not processes.running(members)
    found = json.loads(result.read_text())
    assert found["finished"]
    first, *_, last = found["verdicts"]
    assert int(first) > 2 and last == "4"
    for metrics in found["verdicts"].values():
        assert metrics["accepted"] == 3 and metrics["model-kept"] == 0
    assert found["accuracy"]["4"] > 0.7
