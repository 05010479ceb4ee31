"""What `RobustStrategy` was told, checked once."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flwr.app import ArrayRecord, ConfigRecord, MessageType
from flwr.serverapp import Grid

from byzjax import checks, written
from byzjax.aggregators import bearing
from byzjax.base import Aggregator
from byzjax.integrations.flower import checkpoint
from byzjax.integrations.flower.programs import NAME
from byzjax.integrations.flower.reported import Combine
from byzjax.integrations.flower.rounds import Budget


class Quorum(NamedTuple):
    """What a round of some number of nodes takes."""

    num_byzantine: int
    least: int | None  # Usable replies for an aggregate; None: the nodes are too few.
    why: str = ""  # They are too few.
    drawn: int = 0  # Nodes of which f is a share, those left to rest among them.
    doubtful: frozenset[int] = frozenset()  # Of those asked, lately silent or refused.
    resting: frozenset[int] = frozenset()  # Asked all the same, to have some to spare.


def outvoted(f: int, asked: int) -> Quorum:
    """More than twice f: what it takes where no rule has a minimum of its own."""
    if asked > 2 * f:
        return Quorum(f, 2 * f + 1)
    return Quorum(f, None, f"it takes more than twice num_byzantine={f}, got {asked}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments that are plain values; see `RobustStrategy`."""

    num_byzantine: int | float
    max_share: float | None
    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    train_metrics_aggr_fn: Combine | None
    evaluate_metrics_aggr_fn: Combine | None
    arrayrecord_key: str
    configrecord_key: str
    round_seconds: float | None
    grace_seconds: float | None
    checkpoint: pathlib.Path | None

    def __post_init__(self) -> None:
        _check_byzantine(self.num_byzantine)
        for name in ("fraction_train", "fraction_evaluate"):
            checks.coefficient(
                NAME,
                f"0 <= {name} <= 1",
                lambda v: 0 <= v <= 1,
                static=True,
                **{name: getattr(self, name)},
            )
        for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            checks.count(NAME, **{name: getattr(self, name)})
        for name in ("weighted_by_key", "arrayrecord_key", "configrecord_key"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{NAME} needs {name} to be a string, got {getattr(self, name)!r}"
                )
        for name in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise TypeError(
                    f"{NAME} needs {name} to be a function from the list of clients' "
                    "records and weighted_by_key to a MetricRecord, or None, got "
                    f"{given!r}"
                )
        if self.arrayrecord_key == self.configrecord_key:
            raise ValueError(
                f"{NAME} needs an arrayrecord_key other than its configrecord_key, got "
                f"{self.arrayrecord_key!r} for both"
            )
        for name, some in (("round_seconds", True), ("grace_seconds", False)):
            if getattr(self, name) is not None:
                given = {name: getattr(self, name)}
                checks.number(NAME, static=True, open_interval=some, **given)
        if self.max_share is not None:
            checks.coefficient(
                NAME,
                "0 < max_share <= 1",
                lambda v: 0 < v <= 1,
                static=True,
                max_share=self.max_share,
            )

    def f(self, drawn: int) -> tuple[int, int]:
        """How many of the nodes drawn may be Byzantine: of a share, and rounded up.

        Up: when honest nodes are lost, hostile ones are a larger share of the rest.
        """
        if isinstance(self.num_byzantine, int):
            return self.num_byzantine, self.num_byzantine
        # A share such as 0.07 times 100 is a little more than 7.
        nodes = self.num_byzantine * drawn
        return math.floor(nodes + 1e-9), math.ceil(nodes - 1e-9)

    def budget(self, timeout: float) -> Budget:
        """How long a round waits, if it is not told otherwise."""
        seconds = timeout if self.round_seconds is None else self.round_seconds
        return Budget(seconds, self.grace_seconds)

    def wanted(self, kind: str, connected: int) -> tuple[int, int]:
        """How many of the connected nodes to ask, and how many to wait for."""
        fraction, fewest = (
            (self.fraction_train, self.min_train_nodes)
            if kind == MessageType.TRAIN
            else (self.fraction_evaluate, self.min_evaluate_nodes)
        )
        if fraction == 0:
            return 0, 0
        size = max(int(connected * fraction), fewest, 1)
        return size, max(self.min_available_nodes, fewest, 1)


def _check_byzantine(given: Any) -> None:
    if isinstance(given, float):
        if not 0 <= given < 0.5:
            raise ValueError(
                f"{NAME} needs 0 <= num_byzantine < 0.5 as a share of the nodes drawn, "
                f"got num_byzantine={given}"
            )
    elif isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(
            f"{NAME} needs num_byzantine to be an int, or a float as a share of the "
            f"nodes drawn, got num_byzantine={given!r}"
        )
    else:
        checks.count(NAME, num_byzantine=given)


def checkpoint_path(given: object) -> pathlib.Path | None:
    """Where the checkpoint is to be, if anywhere."""
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike):
        raise TypeError(
            f"{NAME} needs checkpoint to be the path of a file, got {given!r}"
        )
    path = pathlib.Path(given)
    try:
        # pathlib's questions take no for an answer to bad names.
        for name in (path, checkpoint.unfinished(path)) if path.name else (path,):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                name.stat()
        is_folder, is_below_file = path.is_dir(), path.parent.is_file()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{NAME} needs checkpoint to be the path of a file, got {given!r}: {error}"
        ) from error
    if is_below_file:
        raise ValueError(
            f"{NAME} needs checkpoint to be the path of a file in a folder, got "
            f"{given!r}, which is below a file"
        )
    if is_folder:
        raise ValueError(
            f"{NAME} needs checkpoint to be a file's path, got that of the folder "
            f"{given!r}"
        )
    return path


def check_parts(
    aggregator: object,
    num_byzantine: int | float,
    worker: object,
    server: object,
    reference: object,
) -> None:
    """Raises unless each is of its kind."""
    _check_rule(aggregator, num_byzantine)
    if server is not None:
        _check_optimizer("server", server)
    if worker is not None:
        _check_worker(_check_optimizer("worker", worker))
    if reference is not None and not callable(reference):
        raise TypeError(
            f"{NAME} needs reference to be a function from the model's ArrayRecord to "
            f"a trusted client's reply, or None, got {reference!r}"
        )
    if (
        reference is not None
        and isinstance(aggregator, Aggregator)
        and "reference" not in aggregator.takes
    ):
        raise TypeError(
            f"{NAME} needs reference=None with a rule that reads none, got "
            f"{aggregator!r}: byzjax.fltrust() reads one"
        )


def check_start(
    grid: object,
    arrays: object,
    num_rounds: int,
    timeout: float,
    configs: Mapping[str, object],
    evaluate_fn: object,
) -> float:
    """Returns the seconds of a round; raises of what a run cannot be of."""
    if not isinstance(grid, Grid):
        raise TypeError(
            f"{NAME}.start needs the grid that a ServerApp is given, got {grid!r}"
        )
    for name, config in configs.items():
        if not isinstance(config, ConfigRecord | None):
            raise TypeError(
                f"{NAME}.start needs {name} to be a flwr.app.ConfigRecord or None, got "
                f"{config!r}"
            )
    if evaluate_fn is not None and not callable(evaluate_fn):
        raise TypeError(
            f"{NAME}.start needs evaluate_fn to be a function of the round and the "
            f"model's ArrayRecord, or None, got {evaluate_fn!r}"
        )
    if not isinstance(arrays, ArrayRecord):
        raise TypeError(
            f"{NAME}.start needs initial_arrays to be a flwr.app.ArrayRecord, got "
            f"{type(arrays).__name__}: ArrayRecord(arrays) makes one of a list of "
            "NumPy arrays, or of a state_dict of PyTorch's"
        )
    checks.count(f"{NAME}.start", num_rounds=num_rounds)
    checks.number(f"{NAME}.start", timeout=timeout, open_interval=True)
    return float(timeout)


def _check_rule(aggregator: object, num_byzantine: int | float) -> None:
    """Raises unless it is a rule that bears so many, or may return one."""
    if not isinstance(aggregator, Aggregator) and not callable(aggregator):
        raise TypeError(
            f"{NAME} needs an aggregator such as byzjax.median(), or a function from "
            f"f to one, got {aggregator!r}"
        )
    if isinstance(aggregator, Aggregator) and isinstance(num_byzantine, int):
        bearing.check_told(NAME, aggregator, num_byzantine)


def _check_worker(link: optax.GradientTransformation) -> None:
    """Raises unless it can be run for a node whose parameters nobody knows."""
    row = jnp.zeros(8, jnp.float32)
    needs = (
        f"{NAME} needs a worker that transforms one vector of updates and reads no "
        f"params, such as byzjax.momentum(0.9), got {written.shown(link)}"
    )
    try:
        state = jax.eval_shape(link.init, row)
        sent, after = jax.eval_shape(link.update, row, state)
    except Exception as error:
        raise ValueError(f"{needs}: {error}") from error
    if (jnp.shape(sent), jnp.result_type(sent)) != (row.shape, row.dtype):
        raise ValueError(f"{needs}, which makes {sent} of {row.dtype}{[*row.shape]}")
    leaves = jax.tree.leaves(after)
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves):
        raise ValueError(
            f"{NAME} needs a worker that keeps numbers of a node, got "
            f"{written.shown(link)}, whose state has a random key: noise belongs into "
            "server=, for all nodes together"
        )


def _check_optimizer(name: str, link: object) -> optax.GradientTransformation:
    """Returns an optax transformation; raises of anything else."""
    if not isinstance(link, optax.GradientTransformation):
        raise TypeError(
            f"{NAME} needs {name} to be an optax transformation such as "
            f"optax.sgd(1.0), got {link!r}{written.not_called(link)}"
        )
    if isinstance(link, Aggregator):
        raise TypeError(
            f"{NAME} needs {name} to be an optax transformation of one update, got the "
            f"rule {link!r}: a rule is the first argument, aggregator"
        )
    return link
