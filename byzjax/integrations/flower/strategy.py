"""`RobustStrategy`: any rule between untrusted clients and their model."""

import copy
import pathlib
from collections.abc import Callable, Iterable
from logging import INFO

import jax
import optax
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from byzjax import checks
from byzjax.base import Aggregator
from byzjax.integrations.flower import verdicts
from byzjax.integrations.flower.conversation import Conversation
from byzjax.integrations.flower.learner import Learner
from byzjax.integrations.flower.nodes import NodeHistory, Nodes
from byzjax.integrations.flower.reported import Combine, combined
from byzjax.integrations.flower.rounds import Round, Rows
from byzjax.integrations.flower.settings import (
    NAME,
    Settings,
    check_parts,
    check_start,
    checkpoint_path,
    outvoted,
)


class RobustStrategy(Strategy):
    r"""Federated training that up to f of the nodes asked cannot break or hold up.

    A drop-in where Flower's `FedAvg`, `FedMedian` or `Krum` stood; clients need not
    change. A round sends the model x, and takes from each node i the reply minus the
    model, u_i (its momentum, with `worker`); then

    .. math:: x \leftarrow x + \mathrm{server}(-A(u_1, \dots, u_m))

    with A the rule and the optimizer `server`; with its default, x + A(u).

    Of what clients report, only metrics that more than 2 f usable replies have are
    looked at, and their f lowest and f highest values are cut to the next, so that all
    lie between values of honest nodes: even their mean does.

    **Guarantee.** Whatever f nodes send, or do not, the run goes on, the model stays
    finite, and its names, shapes, dtypes and integer arrays stay as they are. A reply
    is used if it is like the model in these, finite, and the only one of its node; else
    it counts as absent, with its reason in the log. A round with fewer than 2 f + 1
    usable replies, or fewer than the rule needs, keeps the model; it ends once too few
    can still answer, and asks nobody where the nodes are too few. Who sent a reply is
    decided by the message that it answers, never by what it claims. `start` also bounds
    time and memory: the replies of a round take n copies of the model in float32, one
    on its way up to four while Flower puts it together, as does each whose body takes
    2 s, or four times as long as most. It is needed for that: Flower's own ends with a
    reply that cannot be inflated. f counts nodes: where these are not authenticated,
    anybody registers as many as they like. A round costs copying replies, and the rule.

    Args:
      aggregator: any rule, meta-rule, or function from f to one, as `lambda f:
        byzjax.ctma(byzjax.nnm(byzjax.median(), f), f)`, where f is a share; but none
        that trusts a row, as `byzjax.monna`.
      num_byzantine: f, the nodes of a round that may be hostile or lost: an int, or a
        share of those drawn below 1/2, rounded up if the rule serves that. Rules have
        an f of their own or, like the median, none; with a smaller one of its own a
        rule serves no round.
      worker: an optax transformation of each node's updates, as `byzjax.momentum(0.9)`;
        its state is kept here per node. None passes updates on.
      server: the server's optimizer, any optax transformation. None adds the
        aggregate to the model, as `optax.sgd(1.0)` does.
      max_share: most that one node's `num-examples` may weigh, in (0, 1], for rules
        that take weights: f nodes may weigh f times that, which the rule has to bear.
        None, the default, ignores these claims.
      fraction_train: share of the connected nodes that is asked to train.
      fraction_evaluate: share of them that is asked to evaluate; 0 for none.
      min_train_nodes: fewest nodes to ask to train, if as many are connected.
      min_evaluate_nodes: fewest nodes to ask to evaluate, likewise.
      min_available_nodes: fewest connected nodes to begin with. Where f is a share,
        all that you have: hostile ones that come first would be most of the others.
      weighted_by_key: metric that has the number of examples.
      train_metrics_aggr_fn: makes one `MetricRecord` of the clients' metrics, as
        FedAvg's: from a list of `RecordDict` and `weighted_by_key`. It sees only what
        f liars cannot choose; see below. None for medians.
      evaluate_metrics_aggr_fn: likewise for evaluation.
      arrayrecord_key: name of the model's record in the messages sent.
      configrecord_key: name of the configuration's record in them.
      round_seconds: longest wait for the replies of a round; None for the `timeout`
        of `start`, 3600 unless given.
      grace_seconds: wait for the last f replies once enough for the rule are in, and
        four times as long for more than f. None for half the time that these took, at
        least 3. A node that stays silent rests for 1, 2, 4, then 8 rounds: it is not
        asked, or not waited for where none can be spared; where it is needed all the
        same, the wait for it is four graces and two seconds.
      checkpoint: file for the state after each round, from which `start` goes on.
      key: a `jax.random.key` for rules that draw; None for any. A checkpoint keeps one.
      reference: for rules that need one, as `byzjax.fltrust()`: from the record that
        is sent to the reply of a client that the server trusts, its own.

    Raises:
      TypeError: an aggregator that is none, arguments of the wrong types.
      ValueError: arguments out of their ranges, a rule told a smaller f or without what
        it needs, weights for a rule that takes none; from `start` and `configure_train`
        a model without floats or with NaN, a checkpoint of another model or of other
        states (values of arguments, as a rule's f, are not compared).

    Example:
      >>> import byzjax
      >>> from byzjax.integrations.flower import RobustStrategy
      >>> strategy = RobustStrategy(
      ...     lambda f: byzjax.ctma(byzjax.nnm(byzjax.median(), f), f),
      ...     num_byzantine=0.2,
      ...     worker=byzjax.momentum(0.9),
      ... )
      >>> strategy.histories
      {}

    Source:
      Worker momentum on the server's side: Karimireddy, He, Jaggi, *Learning from
      History for Byzantine Robust Optimization* (arXiv 2012.10333). Server optimizers:
      Reddi et al., *Adaptive Federated Optimization* (arXiv 2003.00295).
    """

    def __init__(
        self,
        aggregator: Aggregator | Callable[[int], Aggregator],
        *,
        num_byzantine: int | float,
        worker: optax.GradientTransformation | None = None,
        server: optax.GradientTransformation | None = None,
        max_share: float | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        train_metrics_aggr_fn: Combine | None = None,
        evaluate_metrics_aggr_fn: Combine | None = None,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        round_seconds: float | None = None,
        grace_seconds: float | None = None,
        checkpoint: str | pathlib.Path | None = None,
        key: jax.Array | None = None,
        reference: Callable[[ArrayRecord], ArrayRecord] | None = None,
    ) -> None:
        self._settings = Settings(
            num_byzantine=num_byzantine,
            max_share=max_share,
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            round_seconds=round_seconds,
            grace_seconds=grace_seconds,
            checkpoint=checkpoint_path(checkpoint),
        )
        check_parts(aggregator, num_byzantine, worker, server, reference)
        if key is not None:
            key = checks.key(NAME, key)
        self._learner = Learner(aggregator, worker, server, max_share, key, reference)
        self._learner.check(num_byzantine)
        self._nodes = Nodes()
        self._talk = Conversation(self._settings, self._nodes)
        self._rows = Rows()

    @property
    def histories(self) -> dict[int, NodeHistory]:
        """What became of each node's replies so far, by node id; copies."""
        return copy.deepcopy(self._nodes.histories)

    @property
    def compiled(self) -> int:
        """How many programs of aggregates were compiled so far."""
        return self._learner.compiled

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages with the model for the nodes of this round; none to skip it."""
        model = self._learner.opened(arrays)
        sent, quorum = self._talk.messages(
            "train", server_round, arrays, config, grid, self._learner.needs
        )
        self._learner.forget(self._talk.connected)
        key = self._settings.weighted_by_key
        current = Round(
            sent,
            quorum.num_byzantine,
            quorum.least or 1,
            self._settings.budget(self._talk.timeout),
            refusal=quorum.why if self._talk.connected else "",
            model=model,
            rows=self._rows,
            examples_key=None if self._settings.max_share is None else key,
            drawn=quorum.drawn,
            doubtful=quorum.doubtful,
            resting=quorum.resting,
        )
        self._talk.begin("train", current)
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, or None to keep it, and the round's verdicts."""
        current = self._talk.collected("train", server_round, replies)
        if not current.sent and not current.refusal:
            return None, None
        advance = self._learner.advance(current, server_round)
        verdicts.log_advance(advance)
        self._nodes.note_training(current, advance.influence, server_round)
        told = self._settings
        reported = combined(current, told.train_metrics_aggr_fn, told.weighted_by_key)
        return advance.arrays, verdicts.metrics(current, advance, reported)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages with the model for the nodes that evaluate it; none to skip."""
        sent, quorum = self._talk.messages(
            "evaluate", server_round, arrays, config, grid, outvoted
        )
        current = Round(
            sent,
            quorum.num_byzantine,
            quorum.least or 1,
            self._settings.budget(self._talk.timeout),
            doubtful=quorum.doubtful,
            resting=quorum.resting,
        )
        self._talk.begin("evaluate", current)
        return sent

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The medians of the metrics that more than 2 f nodes sent, or as told."""
        current = self._talk.collected("evaluate", server_round, replies)
        self._nodes.note_evaluation(current, server_round)
        told = self._settings
        found = combined(current, told.evaluate_metrics_aggr_fn, told.weighted_by_key)
        return MetricRecord(dict(found)) if found else None

    def summary(self) -> None:
        """Logs what the strategy assumes."""
        told = self._settings
        log(INFO, "\t├──> Byzantine nodes: %s", told.num_byzantine)
        log(INFO, "\t├──> Seconds a round: %s", told.budget(self._talk.timeout)[0])
        log(INFO, "\t└──> Checkpoint: %s", told.checkpoint or "none")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Runs the rounds, or with a checkpoint those that are left of them.

        Replies are screened one by one and waited for while needed. A second `start`
        goes on with memories and histories: a new strategy has none.

        Args:
          grid: Flower's, as a ServerApp is given it.
          initial_arrays: the model to begin with, or what a checkpoint's is like.
          num_rounds: in all, those before the checkpoint included.
          timeout: seconds for a round, unless the strategy has its own.
          train_config: sent along to train, with the round as "server-round".
          evaluate_config: sent along to evaluate, likewise.
          evaluate_fn: evaluates on the server, before the first round and after each.

        Returns:
          Flower's result; its arrays are the last model.

        Raises:
          TypeError, ValueError: an argument or a checkpoint that cannot be used.
          RuntimeError: a checkpoint that another run writes as well.
        """
        configs = {"train_config": train_config, "evaluate_config": evaluate_config}
        self._talk.timeout = check_start(
            grid, initial_arrays, num_rounds, timeout, configs, evaluate_fn
        )
        self.summary()
        arrays, last = self._resumed(initial_arrays)
        result = Result(arrays=arrays)
        evaluated = result.evaluate_metrics_serverapp

        def evaluate_here(server_round):
            found = evaluate_fn(server_round, result.arrays) if evaluate_fn else None
            if found is not None:
                log(INFO, "round %s, evaluated here: %s", server_round, found)
                evaluated[server_round] = found

        evaluate_here(last)
        for server_round in range(last + 1, num_rounds + 1):
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            config = ConfigRecord() if train_config is None else train_config
            sent = self.configure_train(server_round, result.arrays, config, grid)
            new, found = self.aggregate_train(
                server_round, self._talk.replies("train", grid, sent, result.arrays)
            )
            if new is not None:
                result.arrays = new
            if found is not None:
                result.train_metrics_clientapp[server_round] = found
            if self._settings.checkpoint is not None:
                facts = dict(nodes=self._nodes.saved(), drawn=self._talk.most_drawn)
                self._learner.save(self._settings.checkpoint, server_round, facts)
            config = ConfigRecord() if evaluate_config is None else evaluate_config
            sent = self.configure_evaluate(server_round, result.arrays, config, grid)
            found = self.aggregate_evaluate(
                server_round, self._talk.replies("evaluate", grid, sent, ArrayRecord())
            )
            if found is not None:
                log(INFO, "round %s, evaluated by nodes: %s", server_round, found)
                result.evaluate_metrics_clientapp[server_round] = found
            evaluate_here(server_round)
        verdicts.log_histories(self._nodes.histories)
        return result

    def _resumed(self, arrays: ArrayRecord) -> tuple[ArrayRecord, int]:
        """The model to go on with, and the last round that is done."""
        path = self._settings.checkpoint
        if path is None or not path.exists():
            self._nodes.wake()
            return arrays, 0
        arrays, facts = self._learner.restore(path, arrays)
        self._nodes.restore(facts["nodes"])
        self._talk.most_drawn |= facts["drawn"]
        log(INFO, "Going on after round %s, from %s", facts["round"], path)
        return arrays, facts["round"]
