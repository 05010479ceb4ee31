"""What a round made of each node, as Flower's metrics and as lines of the log."""

from collections.abc import Mapping
from logging import INFO, WARNING

from flwr.app import MetricRecord
from flwr.supercore import log

from byzjax.integrations.flower.learner import Advance
from byzjax.integrations.flower.nodes import NodeHistory
from byzjax.integrations.flower.rounds import Round


def metrics(
    of: Round, advance: Advance, reported: dict[str, float | int]
) -> MetricRecord:
    """A round's verdicts beside the metrics that were reported.

    Nodes are in the keys: values are numbers of 64 bits.
    """
    found = dict(reported)
    found |= {
        "accepted": len(of.replies),
        "rejected": len(of.rejected),
        "silent": len(of.silent),
        "unheard": len(of.unheard),
        "byzantine-assumed": of.num_byzantine,
        "model-kept": int(advance.arrays is None),
    }
    found |= {f"influence.{node}": x for node, x in sorted(advance.influence.items())}
    found |= {f"rejected.{node}": 1 for node in sorted(of.rejected)}
    found |= {f"silent.{node}": 1 for node in sorted(of.silent)}
    found |= {f"unheard.{node}": 1 for node in sorted(of.unheard)}
    return MetricRecord(dict(found))


def log_replies(kind: str, of: Round, server_round: int) -> None:
    """Who answered, who did not, and whose reply is not used for which reason."""
    log(
        INFO,
        "%s, round %s: %s of %s replies can be used",
        kind,
        server_round,
        len(of.replies),
        len(of.asked),
    )
    for node, reason in sorted(of.rejected.items()):
        log(WARNING, "\t> the reply of node %s counts as absent: %s", node, reason)
    for node in sorted(of.silent):
        log(WARNING, "\t> node %s did not answer in time", node)
    for node in sorted(of.late):
        log(
            WARNING,
            "\t> all others waited for node %s, next time for no more than four graces "
            "and two seconds; grace_seconds says how long a grace is",
            node,
        )
    for node in sorted(of.hindering):
        log(
            WARNING,
            "\t> node %s left, or was out long after all others: it is doubted as one "
            "that was silent",
            node,
        )
    if of.unheard:
        nodes = ", ".join(map(str, sorted(of.unheard)))
        why = "resting, and did" if of.has_enough else "too few can still answer; did"
        log(WARNING, "\t> %s not answer: %s", why, nodes)
    if of.strangers:
        log(WARNING, "\t> %s replies that nobody was asked for", of.strangers)


def log_advance(advance: Advance) -> None:
    """Each node's influence, or why the model is kept."""
    if advance.reason:
        log(WARNING, "\t> the model is kept: %s", advance.reason)
    for node, share in sorted(advance.influence.items()):
        log(INFO, "\t> influence of node %s: %.3f", node, share)


def log_histories(histories: Mapping[int, NodeHistory]) -> None:
    """One line a node, at the end of a run."""
    log(INFO, "Nodes: asked, accepted, rejected, silent, unheard, mean influence")
    for node, history in sorted(histories.items()):
        log(
            INFO,
            "\t%s: %s, %s, %s, %s, %s, %.3f%s",
            node,
            history.asked,
            history.accepted,
            history.rejected,
            history.silent,
            history.unheard,
            history.influence / max(history.accepted, 1),
            "".join(f"; {n}× {reason}" for reason, n in history.reasons.items()),
        )
