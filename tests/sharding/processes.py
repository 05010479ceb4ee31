"""Runs a module of these tests in a process with several host devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from tests.compiling import QUICK_FLAGS

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 1500


def environment(num_devices):
    """This one's, for a process of so many host devices."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    path = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "XLA_FLAGS": f"{QUICK_FLAGS} "
        f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path),
    }


def found_by(module, folder, *arguments, num_devices=8):
    """What a module wrote: a dict of its entries by name, of JSON lines.

    It is called with the file to write to, and the arguments.
    """
    out = folder / f"{module}-{'-'.join(arguments)}.jsonl"
    command = [sys.executable, "-m", f"tests.sharding.{module}", str(out), *arguments]
    done = subprocess.run(
        command,
        env=environment(num_devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return read(out)


def free_address():
    """On loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def together(module, arguments, num_devices, seconds):
    """Runs a module in as many processes at once as it has lists of arguments."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.sharding.{module}", *own],
            env=environment(num_devices),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in arguments
    ]
    try:
        ends = [process.communicate(timeout=seconds)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, said in zip(running, ends, strict=True):
        assert process.returncode == 0, said[-4000:]


def read(path):
    """Entries of a file by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


class Writer:
    """Entries by name to a file of JSON lines."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.write_text("", encoding="utf-8")

    def write(self, name, **entry):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **entry}) + "\n")
