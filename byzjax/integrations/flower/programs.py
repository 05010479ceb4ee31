"""The compiled programs: the aggregate of a stack, and the nodes' influence.

With `server`, the one place of byzjax that jits: a strategy is a host program, which
its user cannot jit. A program serves one number of rows. `rows_used` bounds how many
there are.
"""

import secrets
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import cap_weights
from byzjax.base import Aggregator
from byzjax.numerics import stacked

_EVERY = 32  # Up to so many replies none is left out.
_SAMPLED = 2**22  # Numbers that the influence of all nodes is measured on, about.
_MOST_SAMPLED = 1024  # Coordinates.
_MOVE = 0.01  # How far a row is moved, as a share of the spread of its coordinate.


def rows_used(m: int, least: int) -> int:
    """How many of m replies are aggregated: the number that programs are bounded by.

    All up to 32; above, m rounded down to four bits behind the first, but not below
    the least that will do. That leaves out one reply of 17 at most, drawn at random:
    between 32 and 1024 rows there are 80 programs instead of 992. Not every rule takes
    `present`, with which one program would serve them all.
    """
    if m <= _EVERY:
        return m
    unit = 2 ** (m.bit_length() - 5)
    return max(m // unit * unit, min(m, least))


class Aggregate(NamedTuple):
    """What a round's replies became."""

    direction: np.ndarray  # [columns]
    influence: np.ndarray  # [m]
    state: Any  # Of the rule.
    memories: list[np.ndarray]  # Leaves [m, ...] of the workers' transformation.


class Programs:
    """One rule with its worker transformation, compiled for each number of rows.

    Args:
      rule: any aggregator.
      worker: what is kept of each node from round to round, such as momentum.
      max_share: cap on a node's share of the weights; None if weights do not count.
      referring: whether the rule is given a reference.
    """

    def __init__(
        self,
        rule: Aggregator,
        worker: optax.GradientTransformation | None,
        max_share: float | None,
        referring: bool,
    ) -> None:
        self.rule = rule
        self.refusal = ""  # Why the rule did not serve a number of rows.
        self._referring = referring
        self._worker = worker
        self._max_share = max_share
        self.compiled = 0  # Programs of the aggregate so far.
        self._aggregate = jax.jit(self._traced)
        self._influence = jax.jit(self._moved)
        self._least: dict[tuple[int, int], int | None] = {}

    def least(self, f: int, asked: int) -> int | None:
        """The fewest rows that tell f liars from the rest and that the rule serves.

        None if it does not serve as many as were asked; `refusal` says why.

        Raises:
          ValueError: if weights are what the rule cannot take.
        """
        if (f, asked) not in self._least:
            self._least[f, asked] = self._fewest(f, asked)
        return self._least[f, asked]

    def _fewest(self, f: int, asked: int) -> int | None:
        weighted = self._max_share is not None
        if asked < 2 * f + 1:
            return None
        if not self._serves(asked, weighted):
            if weighted and self._serves(asked, False):
                self._try(asked, weighted)  # Says which rules take weights.
            return None
        counts = range(2 * f + 1, asked + 1)
        return next(m for m in counts if self._serves(m, weighted))

    def _serves(self, m: int, weighted: bool) -> bool:
        try:
            self._try(m, weighted)
        except ValueError as error:
            self.refusal = str(error)
            return False
        return True

    def _try(self, m: int, weighted: bool) -> None:
        rows = jax.ShapeDtypeStruct((m, 8), jnp.float32)
        weights = jax.ShapeDtypeStruct((m,), jnp.float32) if weighted else None
        more = {"reference": jax.ShapeDtypeStruct((8,), jnp.float32)}
        jax.eval_shape(
            lambda rows, weights, key, more: self.rule.aggregate(
                rows, weights=weights, key=key, **more
            ),
            rows,
            weights,
            jax.random.key(0),
            more if self._referring else {},
        )

    def init_state(self, columns: int) -> Any:
        """The rule's first state."""
        return self.rule.init(jnp.zeros(columns, jnp.float32))

    def init_memory(self, columns: int) -> list[np.ndarray]:
        """What is kept of a node that was never heard: leaves of its state."""
        if self._worker is None:
            return []
        state = self._worker.init(jnp.zeros(columns, jnp.float32))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]

    def aggregate(
        self,
        rows: np.ndarray,
        state: Any,
        memories: list[np.ndarray],
        examples: np.ndarray,
        key: jax.Array,
        reference: np.ndarray | None,
    ) -> Aggregate:
        """Aggregates rows [m, columns] of updates, `rows_used` of them.

        Raises:
          ValueError: if the rule does not serve m rows.
        """
        weights = None
        if self._max_share is not None:
            share = max(self._max_share, 1 / len(rows))
            weights = cap_weights(examples, max_share=share)
        more = {} if reference is None else {"reference": reference}
        # In place where memory is aligned; it is not written before this is done.
        direction, state, memories, shares, sent = self._aggregate(
            jax.device_put(rows), state, memories, key, weights, more
        )
        if shares is None:
            rows = rows if sent is None else np.asarray(sent)
            chosen = _coordinates(*rows.shape)
            sample, steps = _sample(rows, chosen)
            more = {name: value[chosen] for name, value in more.items()}
            shares = self._influence(sample, steps, key, weights, more)
        return Aggregate(
            np.asarray(direction),
            np.asarray(shares),
            state,
            [np.asarray(leaf) for leaf in memories],
        )

    def _traced(self, rows, state, memories, key, weights, more):
        self.compiled += 1
        sent = None
        if self._worker is not None:
            worker = self._worker
            like = jax.eval_shape(worker.init, rows[0])
            tree = jax.tree.unflatten(jax.tree.structure(like), memories)
            rows, tree = jax.vmap(lambda row, memory: worker.update(row, memory))(
                rows, tree
            )
            memories, sent = jax.tree.leaves(tree), rows
        direction, state = self.rule.update(
            rows, state, None, key=key, weights=weights, **more
        )
        if self.rule.weigh is None:
            return direction, state, memories, None, sent
        geometry = (stacked.geometry if self.rule.distances else stacked.norms)(rows)
        shares = self.rule.weigh(geometry, key=key, weights=weights)
        shares = jnp.where(geometry.finite, shares, 0)
        return direction, state, memories, shares, None

    def _moved(self, rows, steps, key, weights, more):
        """How far the aggregate follows each row that moves a little, [m]."""

        def after(rows):
            return self.rule.aggregate(rows, key=key, weights=weights, **more)

        before = after(rows)
        counts = steps != 0
        size = jnp.maximum(jnp.sum(counts.astype(rows.dtype)), 1)

        def share(i):
            moved = after(rows.at[i].add(steps)) - before
            followed = jnp.where(counts, moved / jnp.where(counts, steps, 1), 0)
            return jnp.sum(followed) / size

        return jax.lax.map(share, jnp.arange(rows.shape[0]))


def _coordinates(m: int, columns: int) -> np.ndarray:
    """Some of the columns, drawn anew each time, by no number that a client knows."""
    size = min(max(_SAMPLED // m**2, 64), _MOST_SAMPLED, columns)
    draws = np.random.default_rng(secrets.randbits(64))
    return np.sort(draws.choice(columns, size, replace=False))


def _sample(rows: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """These columns of the rows [m, n], and how far to move each [n].

    A coordinate in which half of the rows agree, as one that no data reach, moves
    nobody and is not counted.
    """
    sample = np.ascontiguousarray(rows[:, chosen])
    middle = np.sort(sample, axis=0)[len(sample) // 2]
    spread = np.sort(np.abs(sample - middle), axis=0)[len(sample) // 2]
    draws = np.random.default_rng(secrets.randbits(64))
    steps = draws.choice((-_MOVE, _MOVE), len(chosen)) * spread
    return sample, np.where(np.isfinite(steps), steps, 0).astype(np.float32)
