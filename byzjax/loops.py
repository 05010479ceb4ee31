"""`lax`'s loops and conditions, whose start may vary less by device than their end.

Inside `jax.shard_map` a type says over which axes of the mesh a value varies. A loop
that starts from a constant and adds data to it changes that type, which `lax` refuses.
Here both are cast to vary as either does. Outside of `jax.shard_map` these are `lax`'s
own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_MOST_ROUNDS = 4  # What varies can only grow, and reaches its end in one or two.


def is_one_of_many() -> bool:
    """Whether what is traced runs on each device by itself, inside `jax.shard_map`."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def fori_loop(lower: Any, upper: Any, body: Callable[..., Any], start: Any) -> Any:
    """`lax.fori_loop`."""
    if is_one_of_many():
        start = _settled(lambda carry: body(jnp.int32(0), carry), start)
        return lax.fori_loop(
            lower, upper, lambda i, carry: alike(body(i, carry), start), start
        )
    return lax.fori_loop(lower, upper, body, start)


def while_loop(going: Callable[..., Any], body: Callable[..., Any], start: Any) -> Any:
    """`lax.while_loop`."""
    if is_one_of_many():
        start = _settled(body, start)
        return lax.while_loop(going, lambda carry: alike(body(carry), start), start)
    return lax.while_loop(going, body, start)


def scan(body: Callable[..., Any], start: Any, items: Any) -> Any:
    """`lax.scan` over the leading axis of some items."""
    if is_one_of_many():
        first = jax.tree.map(lambda x: x[0], items)
        start = _settled(lambda carry: body(carry, first)[0], start)

        def step(carry, item):
            carry, out = body(carry, item)
            return alike(carry, start), out

        return lax.scan(step, start, items)
    return lax.scan(body, start, items)


def cond(
    chosen: Any, one: Callable[..., Any], other: Callable[..., Any], *operands: Any
) -> Any:
    """`lax.cond`, whose results vary by device if either does, or the choice."""
    if not is_one_of_many():
        return lax.cond(chosen, one, other, *operands)
    ends = [jax.eval_shape(branch, *operands) for branch in (one, other)]
    by_choice = _axes(jax.typeof(chosen))

    def together(branch):
        def cast(*operands):
            return jax.tree.map(
                lambda x, a, b: _cast(x, _axes(a) | _axes(b) | by_choice),
                branch(*operands),
                *ends,
            )

        return cast

    return lax.cond(chosen, together(one), together(other), *operands)


def alike(tree: Any, like: Any) -> Any:
    """A tree that varies by device at least as another does."""
    return jax.tree.map(lambda x, y: _cast(x, _axes(jax.typeof(y))), tree, like)


def varying_as(x: Any, function: Callable[[Any], Any]) -> Any:
    """A tree that varies by device as what a function makes of it does.

    The derivative of what varies by what does not is a sum over all devices.
    """
    if not is_one_of_many():
        return x
    ends = jax.tree.leaves(jax.eval_shape(function, x))
    axes = frozenset().union(*map(_axes, ends))
    return jax.tree.map(lambda leaf: _cast(leaf, axes), x)


def _axes(kind: Any) -> frozenset[str]:
    """The axes of the mesh over which a value of a type varies."""
    return frozenset(kind.manual_axis_type.varying)


def _cast(x, axes):
    lacking = tuple(axes - _axes(jax.typeof(x)))
    return lax.pcast(x, lacking, to="varying") if lacking else x


def _settled(body, start):
    """The start of a loop, varying as what its body returns."""
    for _ in range(_MOST_ROUNDS):
        end = jax.eval_shape(body, start)
        cast = jax.tree.map(lambda x, kind: _cast(x, _axes(kind)), start, end)
        before, after = (jax.tree.leaves(tree) for tree in (start, cast))
        if all(a is b for a, b in zip(before, after, strict=True)):
            break
        start = cast
    return start
