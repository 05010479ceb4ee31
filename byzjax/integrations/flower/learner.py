"""What is learnt: the model, and the states of the rule and of the optimizers."""

import itertools
import pathlib
import secrets
from collections.abc import Callable, Iterable
from logging import WARNING
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flwr.app import Array, ArrayRecord
from flwr.supercore import log

from byzjax import written
from byzjax.base import Aggregator
from byzjax.integrations.flower import checkpoint
from byzjax.integrations.flower.model import Model
from byzjax.integrations.flower.npy import Rejected
from byzjax.integrations.flower.programs import NAME, Programs, rows_used
from byzjax.integrations.flower.rounds import Round
from byzjax.integrations.flower.server import Server
from byzjax.integrations.flower.settings import Quorum, outvoted


class Advance(NamedTuple):
    """What a round changed."""

    arrays: ArrayRecord | None  # None: the model is kept.
    influence: dict[int, float]  # Node → share in the aggregate.
    reason: str  # Why the model is kept.


class Learner:
    """Takes the replies of a round to the next model.

    Args:
      aggregator: a rule, or a function from f to one.
      worker: kept of each node, such as `byzjax.momentum(0.9)`; None for nothing.
      server: the optimizer; None adds the aggregate.
      max_share: cap on a node's share; None if numbers of examples do not count.
      key: for rules that draw.
      reference: the server's own reply to a model, for rules that need one.
    """

    def __init__(
        self,
        aggregator: Aggregator | Callable[[int], Aggregator],
        worker: optax.GradientTransformation | None,
        server: optax.GradientTransformation | None,
        max_share: float | None,
        key: jax.Array | None,
        reference: Callable[[ArrayRecord], ArrayRecord] | None,
    ) -> None:
        self._aggregator, self._worker = aggregator, worker
        self._max_share, self._reference = max_share, reference
        self._key = jax.random.key(secrets.randbits(31)) if key is None else key
        self._server = Server(server)
        self._programs: dict[int, Programs] = {}
        self._last_f: int | None = None
        self._model: Model | None = None
        self._rule_state: Any = None
        self._server_state: Any = None
        self._form: list[tuple] | None = None  # Of the arrays that states are of.
        self._memories: dict[int, list[np.ndarray]] = {}

    def programs(self, f: int) -> Programs:
        """The programs of the rule for f Byzantine nodes."""
        if isinstance(self._aggregator, Aggregator):
            f, rule = -1, self._aggregator
        elif f not in self._programs:
            rule = self._aggregator(f)
            if not isinstance(rule, Aggregator):
                raise TypeError(
                    "RobustStrategy needs an aggregator such as byzjax.median(), or a "
                    f"function from f to one, got one that returns {rule!r}"
                )
        if f not in self._programs:
            referring = self._reference is not None
            self._programs[f] = Programs(rule, self._worker, self._max_share, referring)
        return self._programs[f]

    def check(self, num_byzantine: int | float) -> None:
        """Raises what keeps the rule from serving any number of nodes.

        Args:
          num_byzantine: f, or a share: then all that is known is that f may be 0, for
            a rule, or any number, which not every function from f to a rule takes.
        """
        share = isinstance(num_byzantine, float)
        f = num_byzantine if isinstance(num_byzantine, int) else 0
        if not isinstance(self._aggregator, Aggregator):
            f = 1 if share else f
            try:
                self._aggregator(f)
            except Exception as error:
                if share and not isinstance(error, TypeError):
                    return
                raise TypeError(
                    "RobustStrategy needs an aggregator such as byzjax.median(), or a "
                    f"function from f to one, got {written.shown(self._aggregator)}, "
                    f"which for f={f} raises {error!r}"
                    f"{written.not_called(self._aggregator)}"
                ) from error
        programs = self.programs(f)
        programs.least(f, 4 * f + 8)  # Raises if it takes no weights.
        # A refusal of one number of nodes says which; the others are of all numbers.
        tried = *range(2 * f + 1, 4 * f + 9), 6 * f + 13
        found = itertools.takewhile(bool, (programs.refused(f, m) for m in tried))
        refusals = list(found)
        alike = len(set(refusals)) == 1 or programs.are_weighted
        if len(refusals) == len(tried) and alike:
            raise ValueError(
                f"RobustStrategy has no round for its aggregator: {refusals[-1]}"
            )
        if num_byzantine and programs.rule.bears is None:
            log(
                WARNING,
                "%s does not say how many hostile nodes it bears: num_byzantine=%s is "
                "for you to know (byzjax.mean() bears none)",
                programs.rule,
                num_byzantine,
            )

    def needs(self, f: int, asked: int) -> Quorum:
        """What a round of so many nodes takes, of which f may be Byzantine."""
        quorum = outvoted(f, asked)
        if quorum.least is None:
            return quorum
        programs = self.programs(f)
        least = programs.least(f, asked)
        return Quorum(f, least, programs.refused(f, asked))

    @property
    def compiled(self) -> int:
        """How many programs of aggregates were compiled so far."""
        return sum(programs.compiled for programs in self._programs.values())

    def opened(self, arrays: ArrayRecord) -> Model:
        """The model of these arrays; the first makes the first states."""
        if self._model is None or self._model.record is not arrays:
            model = Model(arrays)
            leaves = model.leaves.items()
            form = [(name, x.value.shape, str(x.value.dtype)) for name, x in leaves]
            if self._form not in (None, form):
                raise ValueError(
                    f"{NAME} needs the model that its states are of, {self._form}, got "
                    f"one of {form}: another model is for another strategy"
                )
            self._model, self._form = model, form
        if self._server_state is None:
            self._server_state = self._server.start(self._model.tree())
        return self._model

    def advance(self, of: Round, server_round: int) -> Advance:
        """The next model from a round's replies."""
        model = of.model
        assert model is not None
        if of.refusal:
            return Advance(None, {}, of.refusal)
        if len(of.replies) < of.enough:
            reason = f"{len(of.replies)} usable replies, and {of.enough} are needed"
            return Advance(None, {}, reason)
        programs = self.programs(of.num_byzantine)
        self._last_f = of.num_byzantine
        nodes, rows, present = _gathered(of, programs)
        # Of too few that are present a rule makes zeros; some serve one number only.
        refusal = programs.refused(of.num_byzantine, len(nodes))
        if refusal:
            return Advance(None, {}, refusal)
        if self._rule_state is None:
            self._rule_state = programs.init_state(model.columns)
        examples = np.zeros(len(rows))
        for node, row in nodes.items():
            examples[row] = of.replies[node].examples
        key = jax.random.fold_in(self._key, server_round)
        result = programs.aggregate(
            rows,
            self._rule_state,
            self._remembered(nodes, len(rows), model),
            examples,
            key,
            self._own_update(model),
            present,
        )
        step, server_state = self._server.step(
            result.direction, self._server_state, model.tree()
        )
        new = model.moved(step) if np.isfinite(step).all() else None
        # Who is left out has none.
        shares = dict.fromkeys(of.replies, 0.0)
        shares |= {node: float(result.influence[row]) for node, row in nodes.items()}
        if new is None:
            return Advance(None, shares, "the step would not be finite")
        self._model, self._server_state = new, server_state
        self._rule_state = result.state
        for node, row in nodes.items():
            self._memories.pop(node, None)
            self._memories[node] = [leaf[row].copy() for leaf in result.memories]
        return Advance(new.record, shares, "")

    def forget(self, connected: Iterable[int]) -> None:
        """Drops what is kept of nodes that left, once they outnumber those here."""
        here = set(connected)
        gone = [node for node in self._memories if node not in here]
        for node in gone[: max(len(gone) - max(len(here), 16), 0)]:
            del self._memories[node]

    def _own_update(self, model: Model) -> np.ndarray | None:
        """What the server itself would send, if the rule wants to know."""
        if self._reference is None:
            return None
        row = np.empty(model.columns, np.float32)
        try:
            model.update(self._reference(model.record), row)
        except Rejected as reason:
            raise TypeError(
                "RobustStrategy needs a reference that returns arrays like the "
                f"model's, got arrays of which one {reason}"
            ) from None
        return row

    def _remembered(
        self, nodes: dict[int, int], rows: int, model: Model
    ) -> list[np.ndarray]:
        """Leaves [rows, ...] of what is kept of these nodes, in their rows."""
        if self._worker is None:
            return []
        fresh = next(iter(self._programs.values())).init_memory(model.columns)
        each = [fresh] * rows
        for node, row in nodes.items():
            each[row] = self._memories.get(node, fresh)
        return [np.stack(leaves) for leaves in zip(*each, strict=True)]

    def _memory(self) -> Any:
        """What is kept of a node, of a model of one number."""
        return None if self._worker is None else self._worker.init(jnp.zeros(1))

    def save(self, path: pathlib.Path, server_round: int, facts: dict) -> None:
        """Writes everything that the next round needs."""
        assert self._model is not None
        record = self._model.record
        arrays = {
            f"model/{i}": np.frombuffer(array.data, np.uint8)
            for i, array in enumerate(record.values())
        }
        arrays |= checkpoint.leaves("server", self._server_state)
        arrays |= checkpoint.leaves("rule", self._rule_state)
        arrays |= checkpoint.leaves("key", self._key)
        for i, memory in enumerate(self._memories.values()):
            arrays |= {f"memory/{i}/{j}": leaf for j, leaf in enumerate(memory)}
        described = [
            [name, array.dtype, list(array.shape)] for name, array in record.items()
        ]
        facts = facts | {
            "round": server_round,
            "f": self._last_f,
            "model": described,
            "remembered": [str(node) for node in self._memories],
            "has_rule_state": self._rule_state is not None,
            "forms": {
                "server": checkpoint.form(self._server_state),
                "rule": checkpoint.form(self._rule_state),
                "worker": checkpoint.form(self._memory()),
            },
        }
        checkpoint.write(path, arrays, facts)

    def restore(
        self, path: pathlib.Path, arrays: ArrayRecord
    ) -> tuple[ArrayRecord, dict]:
        """The model and the facts of `save`.

        Raises:
          ValueError: a checkpoint of another model, or of other arguments.
        """
        saved, facts = checkpoint.read(path)
        record = ArrayRecord()
        for i, (name, dtype, shape) in enumerate(facts["model"]):
            data = saved[f"model/{i}"].tobytes()
            record[name] = Array(dtype, tuple(shape), "numpy.ndarray", data)
        wanted = {n: (a.dtype, tuple(a.shape)) for n, a in arrays.items()}
        if {n: (a.dtype, tuple(a.shape)) for n, a in record.items()} != wanted:
            raise ValueError(
                f"RobustStrategy needs a checkpoint of the model it is given, got one "
                f"of another in {path}: move it away to start anew"
            )
        model = self.opened(record)
        forms = facts["forms"]
        checkpoint.check_form("server", forms["server"], self._server_state)
        checkpoint.check_form("worker", forms["worker"], self._memory())
        self._server_state = checkpoint.restored("server", saved, self._server_state)
        self._key = checkpoint.restored("key", saved, self._key)
        if facts["f"] is None:  # No round had an aggregate: nothing is remembered.
            return record, facts
        self._last_f = facts["f"]
        programs = self.programs(facts["f"])
        if facts["has_rule_state"]:
            fresh = programs.init_state(model.columns)
            checkpoint.check_form("rule", forms["rule"], fresh)
            self._rule_state = checkpoint.restored("rule", saved, fresh)
        made = [np.asarray(x) for x in programs.init_memory(model.columns)]
        for i, node in enumerate(facts["remembered"]):
            leaves = [x for name, x in saved.items() if name.startswith(f"memory/{i}/")]
            if [(x.shape, x.dtype) for x in leaves] != [
                (x.shape, x.dtype) for x in made
            ]:
                raise ValueError(
                    "RobustStrategy needs a checkpoint made with the worker it is "
                    f"given, got what another remembers in {path}: move it away to "
                    "start anew"
                )
            self._memories[int(node)] = leaves
        return record, facts


def _gathered(
    of: Round, programs: Programs
) -> tuple[dict[int, int], np.ndarray, np.ndarray | None]:
    """The nodes aggregated, with their rows in a stack; which of them are present."""
    kept = of.num_rows
    if len(of.replies) < kept and programs.take_present(kept):
        nodes, rows = of.places()
        present = np.zeros(kept, bool)
        present[list(nodes.values())] = True
        return nodes, rows, present
    found, rows = of.stack()
    used = rows_used(len(found), of.enough)
    if used < len(found):
        draws = np.random.default_rng(secrets.randbits(64))
        chosen = np.sort(draws.choice(len(found), used, replace=False))
        found, rows = [found[i] for i in chosen], rows[chosen]
    return {node: row for row, node in enumerate(found)}, rows, None
