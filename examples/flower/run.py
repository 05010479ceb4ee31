"""Runs the example, in one command; starts what it needs, and ends it.

python examples/flower/run.py simulation  --hostility nan
python examples/flower/run.py deployment  --hostility unreadable
python examples/flower/run.py simulation  --hostility backwards --strategy fedavg
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from processes import end, family

HERE = pathlib.Path(__file__).resolve().parent
BIN = pathlib.Path(sys.executable).parent
QUIET = {  # No telemetry, no look for updates.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def free_ports(count: int) -> list[int]:
    """Ports of this machine on which nobody listens."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Network:
    """A SuperLink and its SuperNodes on loopback, every process by its handle.

    Args:
      folder: for Flower's own files and for logs.
      nodes: SuperNodes to start; 0 for a SuperLink that simulates them.
    """

    def __init__(self, folder: pathlib.Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.environment = {**os.environ, **QUIET, "FLWR_HOME": str(folder)}
        # Processes that Flower starts are to find this Python's commands first.
        self.environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.port, *self.node_ports = free_ports(1 + nodes)
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Network":
        address = f"127.0.0.1:{self.port}"
        (self.folder / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "{address}"\ninsecure = true\n'
        )
        try:
            self.start_superlink()
            for node in range(self.nodes):
                self.start_supernode(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_superlink(self) -> None:
        """Starts the SuperLink, and waits until it listens."""
        more = [] if self.nodes else ["--simulation"]
        self.start(
            "superlink",
            "flower-superlink",
            *("--insecure", "--disable-runtime-dependency-installation"),
            *("--port", str(self.port), *more),
        )
        limit = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if (
                time.monotonic() > limit
                or self.processes["superlink"].poll() is not None
            ):
                raise RuntimeError(f"no SuperLink: see {self.folder / 'superlink.log'}")
            time.sleep(0.2)

    def start_supernode(self, node: int) -> None:
        """Starts one SuperNode; the last one is hostile."""
        self.start(
            f"supernode{node}",
            "flower-supernode",
            *("--insecure", "--superlink", f"127.0.0.1:{self.port}"),
            *("--port", str(self.node_ports[node]), "--node-config"),
            f"partition-id={node} num-partitions={self.nodes}",
        )

    def start(self, name: str, command: str, *arguments: str) -> subprocess.Popen:
        """Starts a command in a process group of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command), *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.processes[name]

    def submit(self, config: dict[str, object], clients: int) -> subprocess.Popen:
        """Hands the app to the SuperLink, and follows its log until it ends."""
        # JSON's strings and numbers are TOML's too.
        settings = " ".join(f"{k}={json.dumps(v)}" for k, v in config.items())
        simulated = ("--federation-config", f"num-supernodes={clients}")
        return self.start(
            "run",
            "flwr",
            *("run", str(HERE / "app"), "--stream", "--run-config", settings),
            *(() if self.nodes else simulated),
        )

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """Ends a process, and sees to it that what it started ends too."""
        process = self.processes.pop(name)
        members = family(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Those of other groups look after their parent every few seconds.
        end(members, 15)

    def __exit__(self, *_) -> None:
        # SuperNodes first: a SuperLink that is gone is what they wait for.
        for name in sorted(self.processes, reverse=True):
            self.kill(name, signal.SIGTERM)


@contextlib.contextmanager
def network(engine: str, clients: int) -> Iterator[Network]:
    """A network in a folder that goes with it."""
    nodes = clients if engine == "deployment" else 0
    # Whoever ends this script ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Network(pathlib.Path(folder), nodes) as running,
    ):
        yield running


def run(
    running: Network,
    config: dict[str, object],
    clients: int,
    seconds: float,
    show: bool,
) -> dict:
    """Runs the app once; what its server found.

    Returns:
      `accuracy` by round, `verdicts` by round, and whether it `finished`.
    """
    result, log = running.folder / "result.json", running.folder / "run.log"
    result.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    following = running.submit({**config, "result": str(result)}, clients)
    limit = time.monotonic() + seconds
    with log.open(errors="replace") as lines:
        going = True
        while going and time.monotonic() < limit:
            going = following.poll() is None
            new = lines.read()
            if show:
                print(new, end="", flush=True)
            time.sleep(0.2)
    running.kill("run")
    if not result.exists():
        return {"accuracy": {}, "finished": False}
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", choices=("simulation", "deployment"))
    parser.add_argument("--strategy", default="robust")
    parser.add_argument("--hostility", default="none", help="see app/digits/hostile.py")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=900.0, help="for all of it")
    arguments = parser.parse_args()
    config = {
        "strategy": arguments.strategy,
        "hostility": arguments.hostility,
        "num-rounds": arguments.rounds,
    }
    with network(arguments.engine, arguments.clients) as running:
        found = run(running, config, arguments.clients, arguments.seconds, True)
    print("accuracy by round:", found["accuracy"])
    if not found["finished"]:
        sys.exit("the run ended early: see above")


if __name__ == "__main__":
    main()
