"""The compiled programs: the aggregate of a stack, and the nodes' influence.

With `server`, the only one of byzjax that jits: a strategy is a host program, which
its user cannot jit. A program serves one number of rows. Rules that take `present` have
a row for each node asked, and two programs for a size of the round: with all replies,
and with any others (`rows_kept`). The others have one for each number of replies, and
`rows_used` bounds how many there are.
"""

import secrets
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import cap_weights
from byzjax.aggregators import bearing
from byzjax.base import Aggregator
from byzjax.numerics import stacked

NAME = "RobustStrategy"  # What errors call it.
_EVERY = 32  # Up to so many rows each number has its programs.
_SAMPLED = 2**22  # Numbers that the influence of all nodes is measured on, about.
_MOST_SAMPLED = 1024  # Coordinates.
_MOVE = 1e-3  # How far a row is moved, as a share of the spread of its coordinate.


def rows_used(m: int, least: int) -> int:
    """How many of m replies are aggregated: the number that programs are bounded by.

    For rules without `present`. All up to 32; above, m rounded down to four bits behind
    the first, but not below the least that will do. That leaves out one reply of 17 at
    most, drawn at random: between 32 and 1024 rows there are 80 numbers, not 992.
    """
    return max(m // _unit(m) * _unit(m), min(m, least))


def rows_kept(asked: int) -> int:
    """How many rows there are for so many nodes: up to 32 as many, above a few more.

    Rounded up to four bits behind the first, for rules that take `present`: what is
    absent costs a sixteenth of the time at most, and nobody is left out.
    """
    return -(-asked // _unit(asked)) * _unit(asked)


def _unit(rows: int) -> int:
    return 1 if rows <= _EVERY else 2 ** (rows.bit_length() - 5)


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

    Raises:
      ValueError: of a rule that trusts a row.
    """

    def __init__(
        self,
        rule: Aggregator,
        worker: optax.GradientTransformation | None,
        max_share: float | None,
        referring: bool,
    ) -> None:
        if rule.trusted:
            raise ValueError(
                f"{NAME} needs a rule that trusts no row, got {rule!r}: which node's "
                "it is changes with who answers; byzjax.fltrust() with reference= "
                "trusts the server's own reply"
            )
        self.rule = rule
        self.refusal = ""  # Why the rule did not serve a number of rows.
        self._referring = referring
        self._worker = worker
        self._max_share = max_share
        self.compiled = 0  # Programs of the aggregate so far.
        self._aggregate = jax.jit(self._traced)
        self._influence = jax.jit(self._moved)
        self._least: dict[tuple[int, int], int | None] = {}
        self._refused: dict[tuple[int, int], str] = {}
        self._present: dict[int, bool] = {}

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
        if self.refused(f, asked):
            if weighted and self._serves(f, asked, False):
                self._try(asked, weighted)  # Says which rules take weights.
            return None
        counts = range(2 * f + 1, asked + 1)
        return next(m for m in counts if not self.refused(f, m))

    def refused(self, f: int, m: int) -> str:
        """Why the rule does not serve m rows of which f may be hostile, or ""."""
        if (f, m) not in self._refused:
            serves = self._serves(f, m, self._max_share is not None)
            self._refused[f, m] = "" if serves else self.refusal
        return self._refused[f, m]

    @property
    def are_weighted(self) -> bool:
        """Whether what nodes claim counts."""
        return self._max_share is not None

    def _serves(self, f: int, m: int, weighted: bool) -> bool:
        try:
            bearing.check_told(NAME, self.rule, f)
            bearing.check_bears(NAME, self.rule, f, m)
            if weighted:
                self._check_claims(f, m)
            self.rule.check(m)  # Shorter than what says how to stack.
            self._try(m, weighted)
        except ValueError as error:
            self.refusal = str(error)
            return False
        return True

    def _check_claims(self, f: int, m: int) -> None:
        """Raises where f nodes may claim more of the weight than the rule bears."""
        assert self._max_share is not None
        owned = f * max(self._max_share, 1 / m)
        bears = self.rule.bears
        if bears is None or bears is bearing.minority:
            fine, most = owned < 0.5, "less than a half"
        else:
            fine, most = owned <= bears(m) / m + 1e-9, f"{bears(m)}/{m}"
        if not fine:
            raise ValueError(
                f"{NAME} needs a max_share that its rule bears: num_byzantine={f} "
                f"nodes of {m} may claim {owned:.3g} of the weight with max_share="
                f"{self._max_share:g}, and {self.rule!r} bears {most}"
            )

    def take_present(self, rows: int) -> bool:
        """Whether the rule has a form for absent rows, so many rows in all."""
        if rows not in self._present:
            try:
                self._try(rows, self._max_share is not None, absent=True)
                self._present[rows] = True
            except (ValueError, TypeError):
                self._present[rows] = False
        return self._present[rows]

    def _try(self, m: int, weighted: bool, absent: bool = False) -> None:
        rows = jax.ShapeDtypeStruct((m, 8), jnp.float32)
        weights = jax.ShapeDtypeStruct((m,), jnp.float32) if weighted else None
        more = {}
        if self._referring:
            more["reference"] = jax.ShapeDtypeStruct((8,), jnp.float32)
        if absent:
            more["present"] = jax.ShapeDtypeStruct((m,), jnp.bool_)
        jax.eval_shape(
            lambda rows, weights, key, more: self.rule.aggregate(
                rows, weights=weights, key=key, **more
            ),
            rows,
            weights,
            jax.random.key(0),
            more,
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
        present: np.ndarray | None = None,
    ) -> Aggregate:
        """Aggregates rows [m, columns] of updates.

        Args:
          rows: `rows_used` of them, or `rows_kept` of which some are absent.
          state: of the rule.
          memories: leaves [m, ...].
          examples: [m], 0 for who is absent.
          key: for rules that draw.
          reference: [columns], for rules that need one.
          present: bools [m], where the rule takes them and some are absent.
        """
        there = len(rows) if present is None else int(present.sum())
        weights = None
        if self._max_share is not None:
            share = max(self._max_share, 1 / there)
            weights = cap_weights(examples, max_share=share)
        more = {} if reference is None else {"reference": reference}
        if present is not None:
            more["present"] = present
        # In place where memory is aligned; it is not written before this is done.
        direction, state, memories, shares, sent = self._aggregate(
            jax.device_put(rows), state, memories, key, weights, more
        )
        if shares is None:
            rows = rows if sent is None else np.asarray(sent)
            chosen = _coordinates(*rows.shape)
            sample, steps = _sample(rows, chosen, present)
            if reference is not None:
                more["reference"] = reference[chosen]
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
        measure = stacked.geometry if self.rule.distances else stacked.norms
        geometry = measure(rows, present=more.get("present"))
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
            def moved(sign):
                return sign * (after(rows.at[i].add(sign * steps)) - before)

            # Of a move there and one back, what moves the aggregate less: the other may
            # have changed who is whose neighbour, which is a leap and no share.
            both = jax.lax.map(moved, jnp.array([1, -1], rows.dtype))
            less = both[jnp.argmin(jnp.sum(jnp.abs(both), axis=1))]
            followed = jnp.where(counts, less / jnp.where(counts, steps, 1), 0)
            return jnp.sum(followed) / size

        return jax.lax.map(share, jnp.arange(rows.shape[0]))


def _coordinates(m: int, columns: int) -> np.ndarray:
    """Some of the columns, drawn anew each time, by no number that a client knows."""
    size = min(max(_SAMPLED // m**2, 64), _MOST_SAMPLED, columns)
    draws = np.random.default_rng(secrets.randbits(64))
    return np.sort(draws.choice(columns, size, replace=False))


def _sample(
    rows: np.ndarray, chosen: np.ndarray, present: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """These columns of the rows [m, n], and how far to move each [n].

    A coordinate in which half of the rows agree, as one that no data reach, moves
    nobody and is not counted.
    """
    sample = np.ascontiguousarray(rows[:, chosen])
    there = sample if present is None else sample[present]
    middle = np.sort(there, axis=0)[len(there) // 2]
    spread = np.sort(np.abs(there - middle), axis=0)[len(there) // 2]
    draws = np.random.default_rng(secrets.randbits(64))
    steps = draws.choice((-_MOVE, _MOVE), len(chosen)) * spread
    return sample, np.where(np.isfinite(steps), steps, 0).astype(np.float32)
