"""What a run carries from step to step, and what a step reports."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from byzjax.base import Tree
from byzjax.written import Written


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    step: jax.Array  # [], int32, steps done.
    params: Tree  # x_t, where gradients are taken.
    prev_params: Tree  # x_{t-1}; x_1 before the first step.
    model_state: Tree  # Running statistics, as aggregated; None if there are none.
    worker_state: Tree  # State of the worker transform, stacked.
    attack_state: Tree
    aggregator_state: Tree
    server_state: Tree
    model_rule_states: Tree  # States of the attack on and rule for model state.


class Metrics(NamedTuple):
    """What a step reports, all scalars."""

    loss: jax.Array  # Mean loss of the honest workers, before the update.
    aggregate_norm: jax.Array  # ‖A‖, the norm of the aggregate.
    honest_distance: jax.Array  # ‖A − mean of the honest messages‖.


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
