"""What attacks share: one message for all Byzantine workers, and honest statistics.

Messages are computed in at least float32 and cast to the leaf's dtype once, at the end.
Honest rows are read leaf by leaf, as sums of rows that XLA fuses into one pass.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.typing
from jax import lax

from byzjax import checks
from byzjax.attack import Attack
from byzjax.numerics import order, stacked
from byzjax.trees import Tree, accumulator_dtype


def one_message(
    message: Callable[[Tree, int], Tree], *, num_byzantine: int | None
) -> Attack:
    """Lifts `message(honest, f)` → tree `[...]`, sent by all f, to an attack."""

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        sent = message(honest, num_byzantine)
        return to_rows(sent, honest, num_byzantine), state

    return Attack(forge, num_byzantine=num_byzantine)


def rows(
    sent: Callable[[Tree, int, jax.Array | None], Tree], *, num_byzantine: int | None
) -> Attack:
    """Lifts `sent(honest, f, key)` → tree `[f, ...]`, a message each, to an attack."""

    def forge(honest, own, state, *, num_byzantine, key=None, params=None, **extra):
        forged = sent(honest, num_byzantine, key)
        return jax.tree.map(lambda b, x: b.astype(x.dtype), forged, honest), state

    return Attack(forge, num_byzantine=num_byzantine)


def draw(
    name: str,
    honest: Tree,
    f: int,
    key: jax.Array | None,
    sample: Callable[..., jax.Array],
    *,
    exact: bool = False,
) -> Tree:
    """Independent draws `[f, ...]`, one key a row, at least float32 unless `exact`."""
    keys = jax.random.split(checks.key(name, key), f)
    one = jax.tree.map(lambda x: x[0], honest)
    return jax.vmap(lambda key: stacked.drawn(one, key, sample, exact=exact))(keys)


def to_rows(message: Tree, honest: Tree, f: int) -> Tree:
    """f copies of a message `[...]`, in the dtypes of the honest rows: `[f, ...]`."""

    def of_leaf(one, rows):
        return jnp.broadcast_to(one.astype(rows.dtype)[None], (f, *one.shape))

    return jax.tree.map(of_leaf, message, honest)


def filled(value: jax.typing.ArrayLike, num_byzantine: int | None) -> Attack:
    """An attack by one value in every coordinate."""

    def sent(honest, f, key):
        return jax.tree.map(
            lambda x: jnp.full((f, *x.shape[1:]), number(value, x)), honest
        )

    return rows(sent, num_byzantine=num_byzantine)


def wide(leaf: jax.Array) -> jax.Array:
    """At least float32."""
    return leaf.astype(accumulator_dtype(leaf.dtype))


def number(value: Any, leaf: jax.Array) -> jax.Array:
    """A strength, traced or not, in the dtype of the leaf."""
    return checks.in_dtype(value, leaf.dtype)


def mean(honest: Tree) -> Tree:
    """Mean of the honest rows, leaves `[...]`, at least float32."""

    def of_leaf(x):
        rows = [wide(x[i]) for i in range(x.shape[0])]
        # Over a power of two, as the sum of rows whose mean is a float may be none. It
        # is no constant: XLA would take one out of the sum again.
        unit = jnp.asarray(2.0 ** len(rows).bit_length(), rows[0].dtype)
        share = lax.optimization_barrier(1 / unit)
        return order.row_sum([row * share for row in rows]) / len(rows) * unit

    return jax.tree.map(of_leaf, honest)


def std(honest: Tree, center: Tree, *, ddof: int) -> Tree:
    """Standard deviation per coordinate around the mean `center`, `[...]`."""

    def of_leaf(x, c):
        gaps = [wide(x[i]) - c for i in range(x.shape[0])]
        # Over a power of two, so that squares stay in range.
        size = functools.reduce(order.larger, [jnp.abs(gap) for gap in gaps])
        size = stacked.power_of_two(size)
        squares = [jnp.square(gap * stacked.inverse(size)) for gap in gaps]
        return jnp.sqrt(order.row_sum(squares) / (len(gaps) - ddof)) * size

    return jax.tree.map(of_leaf, honest, center)


def check_spread(name: str, honest: Tree, ddof: int) -> None:
    """Says so when there are too few honest workers for a standard deviation."""
    h = checks.num_workers(honest)
    if not h > ddof:
        raise ValueError(
            f"{name} needs more than ddof honest workers to measure their spread, got "
            f"{h} honest workers and ddof={ddof}"
        )


def shifted(center: Tree, strength: Any, direction: Tree) -> Tree:
    """center + strength·direction, leaf by leaf."""
    return jax.tree.map(lambda c, d: c + number(strength, c) * d, center, direction)


def dots(honest: Tree, direction: Tree) -> jax.Array:
    """⟨x_i, direction⟩ [h] over the whole tree."""
    products = [
        jnp.sum(wide(stacked.flat_rows(x)) * d.ravel()[None], axis=1)
        for x, d in zip(
            jax.tree.leaves(honest), jax.tree.leaves(direction), strict=True
        )
    ]
    return stacked.total(products)


def unit(tree: Tree) -> Tree:
    """Scaled to norm one; zero stays zero."""
    length = stacked.norm(tree)
    length = jnp.where(length > 0, length, 1)

    def of_leaf(x):  # Which may be narrower than the length of all.
        return (x.astype(length.dtype) / length).astype(x.dtype)

    return jax.tree.map(of_leaf, tree)


Direction = Literal["negative", "positive"]


def sign_of(name: str, direction: Direction) -> float:
    """−1 or +1."""
    checks.word(name, ("negative", "positive"), direction=direction)
    return -1.0 if direction == "negative" else 1.0


def any_number(name: str, **value: Any) -> Any:
    """Returns the one keyword given: a finite number of either sign, or traced."""
    return checks.number(name, minimum=float("-inf"), **value)
