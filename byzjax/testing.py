"""The library's properties, for a rule written elsewhere: `check_rule`.

It needs nothing beyond the library itself.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byzjax import base, checks
from byzjax.base import Aggregator

__all__ = ["HUGE", "check_rule", "flat", "gaussian", "poisons", "tree_of"]

_COLUMNS = 12  # Of `tree_of`.
HUGE = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "3e38": 3e38,
    "-3e38": -3e38,
    "1e30": 1e30,
}


def check_rule(
    rule: Aggregator,
    *,
    num_workers: int,
    num_byzantine: int,
    permutation: bool = True,
    translation: bool = True,
    scaling: bool = True,
    hull: bool = True,
    poison_proof: bool = True,
    absent: bool = False,
    tolerance: float = 1e-5,
    **extra: Any,
) -> None:
    """Runs the library's properties on a rule, those that it claims.

    Always: jitted it is what it is without, in one trace, and leaves its input as it
    was; a tree is its ravelled matrix, and keeps structure and shapes; dtypes are kept;
    it is a link of a chain, whose state keeps its types; integers, no workers, and
    leaves of different numbers of workers are refused.

    Args:
      rule: the rule, or meta-rule over some base.
      num_workers: m, of the stacks that it is given.
      num_byzantine: f, the rows that are poisoned.
      permutation: the order of the workers does not matter.
      translation: moving all rows moves the result.
      scaling: scaling all rows scales the result, by 10^±10 as well.
      hull: far attackers leave every coordinate within the honest ones; needs
        `poison_proof`.
      poison_proof: f rows of NaN, ±Inf and values near float32's limit, first or last,
        leave the result finite.
      absent: rows that are not `present`, whatever they hold, might as well not be
        there; for an m of which the rule can spare one. Of a rule that draws buckets of
        workers it does not hold to the bit.
      tolerance: relative to the largest entry of the rows, in float32.
      **extra: what `aggregate` needs: a `key` for a rule that draws, which then is the
        same in every call, so that `permutation` may not hold; `weights`, `[m]`, which
        go with the rows; or functions that make it of a stack, as for `fltrust`
        reference=lambda stack: jax.tree.map(lambda x: x[0], stack).

    Raises:
      AssertionError: a property that does not hold, by its name.
      TypeError: if `rule` is no aggregator.
      ValueError: f ≥ m, or with `absent` a rule that serves no fewer than m.

    Example:
      >>> import byzjax
      >>> from byzjax import rules
      >>> from byzjax.testing import check_rule
      >>> def weigh(geometry):  # The row nearest to all others, as in Krum.
      ...     total = geometry.squared_distances.sum(axis=1)
      ...     return rules.mark_nearest(total, 1).astype(total.dtype)
      >>> try:
      ...     check_rule(rules.geometric("nearest", weigh), num_workers=5,
      ...                num_byzantine=2)
      ... except AssertionError as error:
      ...     print(str(error).partition(":")[0])
      hull
      >>> check_rule(byzjax.nnm(byzjax.median(), 2), num_workers=5, num_byzantine=2)
    """
    base.check_aggregator("check_rule", rule)
    m = checks.count("check_rule", num_workers=num_workers, minimum=1)
    f = checks.count("check_rule", num_byzantine=num_byzantine)
    if not f < m:
        raise ValueError(
            "check_rule needs num_byzantine < num_workers, got "
            f"num_byzantine={f} and num_workers={m}"
        )
    run = _Run(rule, extra, m, tolerance)
    run.compiled()
    run.trees()
    run.dtypes()
    run.in_a_chain()
    run.refusals()
    if permutation:
        run.permutation()
    if translation:
        run.translation()
    if scaling:
        run.scaling()
    if poison_proof:
        run.poison_proof(f, hull)
    if absent:
        run.absent()


def poisons(f: int, d: int = _COLUMNS) -> Iterator[tuple[str, np.ndarray]]:
    """Fillings `[f, d]` that no honest worker sends, by name; d at least 4."""
    for name, value in HUGE.items():
        yield name, np.full((f, d), value, np.float32)
    one = gaussian(max(f, 1), d, seed=50)[:f]
    one[:, 3] = np.nan
    yield "one nan in a row", one
    one = gaussian(max(f, 1), d, seed=51)[:f]
    one[:, -1] = np.inf
    yield "one inf in a row", one
    values = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1.0])
    drawn = np.random.default_rng(52).choice(values, size=(f, d))
    yield "mixed", drawn.astype(np.float32)
    alternating = np.full((f, d), 3e38, np.float32)
    alternating[:, ::2] *= -1
    yield "alternating", alternating
    many = np.resize(np.array([np.nan, 1e30, np.inf, -3e38, 3e38]), f)
    yield "one of each", np.tile(many.astype(np.float32)[:, None], (1, d))


def gaussian(m: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows `[m, d]`, float32."""
    return np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)


def tree_of(rows: Any) -> dict[str, Any]:
    """Rows `[m, 12]` as a tree of a matrix, a vector and a scalar per worker."""
    m = rows.shape[0]
    return {
        "matrix": rows[:, :6].reshape(m, 3, 2),
        "nest": [rows[:, 6:11], rows[:, 11]],
    }


def flat(tree: Any) -> Any:
    """What `tree_of` makes of one row, as a vector `[12]` again."""
    leaves = (tree["matrix"], *tree["nest"])
    return jnp.concatenate([leaf.ravel() for leaf in leaves])


class _Run:
    """One rule under test, compiled once for rows `[m, 12]`."""

    def __init__(self, rule, extra, m, tolerance):
        self.rule, self.extra, self.m, self.tolerance = rule, extra, m, tolerance
        self.traces = 0

        def counted(rows, extra):
            self.traces += 1
            return rule.aggregate(rows, **extra)

        self.jitted = jax.jit(counted)

    def __call__(self, rows, workers=None):
        rows = jnp.asarray(rows, jnp.float32)
        return np.asarray(self.jitted(rows, self.given(rows, workers)))

    def given(self, stack, workers=None):
        """The extra arguments for a stack, whose rows are those of these workers."""
        made = {k: v(stack) if callable(v) else v for k, v in self.extra.items()}
        if workers is not None and "weights" in made:
            made["weights"] = jnp.asarray(made["weights"])[workers]
        return made

    def rows(self, seed):
        return gaussian(self.m, _COLUMNS, seed)

    def near(self, name, got, want, rows):
        size = float(np.max(np.abs(rows[np.isfinite(rows)]), initial=1e-30))
        gap = np.max(np.abs(np.asarray(got) - np.asarray(want)), initial=0)
        _holds(name, gap <= self.tolerance * size, f"off by {gap} of {size}: {got}")

    def compiled(self):
        rows = self.rows(20)
        try:
            got = self(rows)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            # NumPy's functions, and Python's if, want numbers that a trace has not.
            raise AssertionError(
                f"jit is eager: it cannot be traced: {error}"
            ) from error
        self(self.rows(21))
        _holds("one trace", self.traces == 1, f"{self.traces} traces of one shape")
        kept = rows.copy()
        eager = self.rule.aggregate(rows, **self.given(rows))
        _holds("inputs stay", np.array_equal(rows, kept), "the rows were written to")
        self.near("jit is eager", eager, got, rows)

    def trees(self):
        rows = self.rows(22)
        tree = tree_of(jnp.asarray(rows))
        out = jax.jit(lambda x: self.rule.aggregate(x, **self.given(x)))(tree)
        want = jax.tree.map(lambda x: x.shape[1:], tree)
        got = jax.tree.map(jnp.shape, out)
        _holds("structure and shapes", got == want, f"{got}, not {want}")
        self.near("a tree is its ravelled matrix", flat(out), self(rows), rows)

    def dtypes(self):
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
            rows = jax.ShapeDtypeStruct((self.m, _COLUMNS), dtype)
            out = jax.eval_shape(
                lambda x: self.rule.aggregate(x, **self.given(x)), rows
            )
            _holds("dtypes are kept", out.dtype == dtype, f"{out.dtype} of {dtype}")

    def in_a_chain(self):
        params, rows = jnp.zeros(_COLUMNS), jnp.asarray(self.rows(23))
        chain = optax.chain(self.rule, optax.sgd(0.1, momentum=0.9))
        state = jax.eval_shape(chain.init, params)
        updates, after = jax.eval_shape(
            lambda x, s: chain.update(x, s, params, **self.given(x)), rows, state
        )
        _holds("a link of a chain", updates.shape == params.shape, f"{updates}")
        same = jax.tree.structure(after) == jax.tree.structure(state)
        same = same and jax.tree.leaves(after) == jax.tree.leaves(state)
        _holds("a state keeps its types", same, f"{after}, not {state}")

    def refusals(self):
        rows = jnp.asarray(self.rows(24))
        bad = {
            "integers": rows.astype(jnp.int32),
            "different numbers of workers": {"a": rows, "b": rows[: self.m - 1]},
            "no workers": rows[:0],
        }
        extra = self.given(rows)
        for name, updates in bad.items():
            try:
                jax.eval_shape(lambda x=updates: self.rule.aggregate(x, **extra))
            except (TypeError, ValueError):
                continue
            _holds("refusals", False, f"{name} passed")

    def permutation(self):
        for seed in range(3):
            rows = self.rows(40 + seed)
            order = np.random.default_rng(seed).permutation(self.m)
            self.near("permutation", self(rows[order], order), self(rows), rows)

    def translation(self):
        rows, shift = self.rows(45), 30 * gaussian(1, _COLUMNS, 46)
        self.near(
            "translation", self(rows + shift), self(rows) + shift[0], rows + shift
        )

    def scaling(self):
        rows = self.rows(47)
        for scale in (np.float32(2.5), np.float32(1e-10), np.float32(1e10)):
            self.near("scaling", self(rows * scale) / scale, self(rows), rows)

    def absent(self):
        m = self.m
        masked = jax.jit(lambda x, p, e: self.rule.aggregate(x, present=p, **e))
        gone = [0], [m // 2], [m - 1], [0, m - 1]
        tried = [~np.isin(np.arange(m), workers) for workers in gone]
        tried = [present for present in tried if self.rule.enough(present)]
        if not tried:
            raise ValueError(
                "check_rule needs a num_workers of which the rule can spare one to see "
                f"whether absent=True holds, got num_workers={m}: give more"
            )
        for present in [*tried, np.ones(m, bool)]:
            rows = self.rows(48)
            extra, few = self.given(rows), jnp.asarray(rows[present])
            want = self.rule.aggregate(few, **self.given(few, np.flatnonzero(present)))
            for value in (np.nan, 0.0, 1e30):
                rows[~present] = value
                got = masked(jnp.asarray(rows), jnp.asarray(present), extra)
                self.near("absent", got, want, rows[present])

    def poison_proof(self, f, hull):
        for name, poison in poisons(f):
            for first in (True, False):
                rows = self.rows(82)
                bad = slice(f) if first else slice(self.m - f, self.m)
                rows[bad] = poison
                honest = np.delete(rows, np.arange(self.m)[bad], axis=0)
                got = self(rows)
                where = f"{name}, {'first' if first else 'last'} rows"
                _holds("poison_proof", np.isfinite(got).all(), f"{where}: {got}")
                if hull:
                    room = self.tolerance * np.max(np.abs(honest))
                    inside = (got >= honest.min(0) - room) & (
                        got <= honest.max(0) + room
                    )
                    _holds("hull", inside.all(), f"{where}: {got}")


def _holds(name: str, holds: Any, found: str) -> None:
    if not holds:
        raise AssertionError(f"{name}: {found}")
