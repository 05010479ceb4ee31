"""What a run carries from step to step, and what a step reports."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from byzjax.trees import Tree
from byzjax.written import Written


class TrainState(NamedTuple):
    """Everything that a run carries from step to step: a tree to scan, save and donate.

    Attributes:
      step: steps done, `[]`, int32.
      params: x_t, where gradients are taken, and the result of training. With
        `anytime` it is the average; its iterate w_t is in `server_state`.
      prev_params: x_{t−1}, like `params`; x_1 before the first step.
      model_state: running statistics such as those of batch norm, as aggregated; None
        if there are none.
      worker_state: state of the worker transform, one a worker, leaves `[n, ...]`. n is
        m, or m − f if the attack reads the honest messages only.
      attack_state: state of the attack; None without one.
      aggregator_state: state of the rule, such as the centre of `centered_clipping`.
      server_state: state of the server's transform, such as Adam's moments.
      model_rule_states: states of the attack on the model state and of its rule.
    """

    step: jax.Array  # []
    params: Tree
    prev_params: Tree
    model_state: Tree
    worker_state: Tree  # Leaves [n, ...].
    attack_state: Tree
    aggregator_state: Tree
    server_state: Tree
    model_rule_states: Tree


class WorkerMetrics(NamedTuple):
    """What each worker had to do with the aggregate, the last f Byzantine.

    Attributes:
      influence: how far the aggregate follows each worker's message, `[m]`: its weight,
        or for rules that decide by coordinates its mean weight; 0 for one that is left
        out. As `byzjax.influence` of the messages, in the state before the step; of
        messages in half precision each is rounded to it.
      distance: ‖d^i − A‖ of each worker's message as the server got it, `[m]`; +inf for
        one that is not finite or was absent.
    """

    influence: jax.Array  # [m]
    distance: jax.Array  # [m]


class Metrics(NamedTuple):
    """What a step reports; nothing in it is read by the step itself.

    Attributes:
      loss: mean loss of the m − f honest workers' batches at x_t, before the update,
        `[]`. What Byzantine workers computed is left out.
      aggregate_norm: ‖A‖, the length of the aggregate that the server was given, `[]`.
      honest_distance: ‖A − the mean of the honest messages‖, how far the attack and
        the rule together led away from what an undisturbed server would have had, `[]`.
      aux: with `has_aux`, what `loss_fn` returned beside the loss at x_t, by worker,
        of the honest ones, leaves `[m − f, ...]`; else None.
      workers: with `report_workers`, a `WorkerMetrics`; else None.
      enough: with `present`, whether enough workers were there for the rule and that of
        the model state, `[]`; for which they were not, that stayed: params and the
        server's state, or the model state. Else None, and where the aggregator is a
        chain, which does not say: give it the rule alone, and what follows to the
        server. Losses and means then are of the honest workers that were there, and
        `aux` of all.
    """

    loss: jax.Array  # []
    aggregate_norm: jax.Array  # []
    honest_distance: jax.Array  # []
    aux: Tree = None  # Leaves [h, ...].
    workers: WorkerMetrics | None = None
    enough: jax.Array | None = None  # []


class _Pair(NamedTuple):
    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]


class Trainer(Written, _Pair):
    """A pure pair: `init(params, model_state=None)` and `step(state, batches, key)`.

    Attributes:
      init: params `[...]`, and the model state if there is one → `TrainState`.
      step: state, batches `[m, b, ...]`, key, extra arguments of the aggregator →
        `TrainState`, `Metrics`.
    """
