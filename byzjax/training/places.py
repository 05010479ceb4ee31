"""Where a step's arrays lie on a layout's devices: batches, and what it returns."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from byzjax import trees
from byzjax.sharding import region
from byzjax.sharding.layout import Layout
from byzjax.sharding.way import Way
from byzjax.training.setup import Setup
from byzjax.training.state import TrainState
from byzjax.trees import Tree


def computed_batches(setup: Setup, layout: Layout, batches: Any) -> Any:
    """Batches `[num_rows, ...]` on their workers' devices, attackers' poisoned.

    Rows that there are too many, so that devices have equally many, are computed and
    dropped: to cut them off here would move the others.
    """
    count = setup.num_rows
    h = len(layout.live(setup.num_honest))

    def placed(x):
        x = jnp.asarray(x)
        lacking = count - x.shape[0]
        if lacking > 0:  # The last once more: what is computed of it is a number.
            x = jnp.concatenate([x, *[x[-1:]] * lacking])
        x = x[:count]
        spec = PartitionSpec(layout.workers)
        return region.constrained(layout, x, spec)

    batches = jax.tree.map(placed, batches)
    if setup.poison is None:
        return batches
    poisoned = jax.vmap(setup.poison)(batches)
    # Nothing is cast or broadcast: what would be refused where rows are put together.
    jax.eval_shape(
        lambda x, y: trees.stack_rows(x, y, "trainer.step", "poison's batches"),
        batches,
        poisoned,
    )
    own = jnp.arange(count) < h

    def either(x, y):
        return jnp.where(own.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(either, batches, poisoned)


def specs_of_state(setup: Setup, state: TrainState, *, first: bool = False) -> Any:
    """A `PartitionSpec` for each leaf of a `TrainState`, or `region.ANYWHERE`.

    Args:
      setup: with a layout.
      state: as it is kept between steps.
      first: whether it is the first, all of which is placed.
    """
    layout = setup.layout
    assert layout is not None
    way = Way(layout, state.params)
    params = way.specs_of_tree()
    named = _named(state.params, params)
    model_attack, model_rule = state.model_rule_states
    models = Way(layout.of_replicated, state.model_state)

    def of_part(way, part, state):
        return None if part is None else way.specs_of_state(part.init, state)

    return state._replace(
        step=PartitionSpec(),
        params=params,
        prev_params=params,
        model_state=jax.tree.map(lambda x: PartitionSpec(), state.model_state),
        worker_state=_like_params(
            state.worker_state, named, (layout.workers,), PartitionSpec(layout.workers)
        ),
        attack_state=of_part(way, setup.attack, state.attack_state),
        aggregator_state=of_part(way, setup.aggregator, state.aggregator_state),
        server_state=_like_params(
            state.server_state, named, (), PartitionSpec() if first else region.ANYWHERE
        ),
        model_rule_states=(
            of_part(models, setup.model_attack, model_attack),
            of_part(models, setup.model_rule, model_rule)
            if setup.has_model_state
            else None,
        ),
    )


def anywhere(tree: Tree) -> Tree:
    """That the leaves of a tree may lie anywhere."""
    return jax.tree.map(lambda x: region.ANYWHERE, tree)


def _named(params, specs):
    """Shape and spec of each parameter by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    pairs = zip(leaves, found, strict=True)
    return {path: (leaf.shape, spec) for (path, leaf), spec in pairs}


def _like_params(tree, named, lead, other):
    """Specs of a transform's state: a leaf like a parameter lies as that does.

    Optimizers keep trees like the parameters, whose leaves end in the same path. What
    is like none is `other`, or if a scalar everywhere.
    """

    def of_leaf(path, x):
        shape = x.shape[len(lead) :]
        for start in range(len(path) + 1):
            like = named.get(path[start:])
            if like is not None and like[0] == shape:
                return PartitionSpec(*lead, *like[1])
        return PartitionSpec() if not x.ndim else other

    return jax.tree_util.tree_map_with_path(of_leaf, tree)
