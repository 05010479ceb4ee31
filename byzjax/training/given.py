"""What a step is given, checked when it is traced: batches, state, extra arguments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byzjax.training.setup import Setup
from byzjax.training.state import TrainState
from byzjax.trees import Tree


def check_batches(setup: Setup, batches: Tree) -> None:
    """Raises unless every leaf is `[num_workers, ...]`."""
    m, given = setup.num_workers, setup.num_given
    if not jax.tree.leaves(batches):
        raise ValueError(f"trainer.step needs batches of arrays, got {batches!r}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != given:
            absent = f" less {m - given} absent from the layout" if given < m else ""
            raise ValueError(
                f"trainer.step needs batches with num_workers={m}{absent} in front of "
                f"every leaf, got shape {shape} at "
                f"{jax.tree_util.keystr(path) or 'the leaf'}"
            )


def check_state(init: Callable[[Tree, Tree], TrainState], state: TrainState) -> None:
    """Raises unless a state is one that a trainer's `init` makes of its parameters."""
    if not isinstance(state, TrainState):
        raise TypeError(
            "trainer.step needs a state of trainer.init(params), or of a step before, "
            f"got {type(state).__name__}"
        )
    made = jax.eval_shape(init, state.params, state.model_state)
    for field in ("worker_state", "server_state", "aggregator_state", "attack_state"):
        mine, own = getattr(state, field), getattr(made, field)
        got, want = jax.tree.structure(mine), jax.tree.structure(own)
        if got == want and field != "attack_state":
            got = [jnp.shape(leaf) for leaf in jax.tree.leaves(mine)]
            want = [leaf.shape for leaf in jax.tree.leaves(own)]
        if got != want:
            part = field.removesuffix("_state")
            part += " or num_workers" if part == "worker" else ""
            raise ValueError(
                "trainer.step needs a state that its own init makes, got one of "
                f"another {part}: {got}, not {want}"
            )


def check_read(aggregate: Callable[[Any], Any], extra: dict[str, Any]) -> None:
    """Raises for an extra argument that no link of a chain reads: it is traced once."""
    arrays = {k: v for k, v in extra.items() if jax.tree.leaves(v)}
    traced = jax.make_jaxpr(aggregate)(arrays).jaxpr
    read = {id(x) for equation in traced.eqns for x in equation.invars}
    read |= {id(x) for x in traced.outvars}
    left = iter(traced.invars)
    for name in sorted(arrays):
        mine = [next(left) for _ in jax.tree.leaves(arrays[name])]
        if not any(id(x) in read for x in mine):
            raise TypeError(
                "trainer.step needs keywords that its aggregator reads, got "
                f"{name}=..., which no link of the chain reads"
            )
