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


def check_state(setup: Setup, state: TrainState) -> None:
    """Raises unless a state is one that this trainer made, of the same arguments."""
    if not isinstance(state, TrainState):
        raise TypeError(
            "trainer.step needs a state of trainer.init(params), or of a step before, "
            f"got {type(state).__name__}"
        )
    attack = setup.attack
    parts = {
        "worker": (setup.worker.init, state.worker_state),
        "server": (setup.server.init, state.server_state),
        "aggregator": (setup.aggregator.init, state.aggregator_state),
        "attack": (attack.init if attack else lambda params: None, state.attack_state),
    }
    for part, (init, found) in parts.items():
        made = jax.eval_shape(init, state.params)
        got, want = jax.tree.structure(found), jax.tree.structure(made)
        if got == want and part != "attack":
            got = [jnp.shape(leaf) for leaf in jax.tree.leaves(found)]
            rows = (setup.num_rows,) if part == "worker" else ()
            want = [(*rows, *leaf.shape) for leaf in jax.tree.leaves(made)]
        if got != want:
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
