"""A rule on a mesh of devices, as a link of a chain: `aggregate`."""

import jax
import jax.numpy as jnp

from byzjax import base, checks
from byzjax.base import Aggregator
from byzjax.numerics import devices
from byzjax.sharding import region
from byzjax.sharding.layout import Layout
from byzjax.sharding.way import Way, check_layout, check_workers, present_of, spread


def aggregate(rule: Aggregator, layout: Layout) -> Aggregator:
    r"""A rule on the devices of a layout: the same result at an all-reduce's price.

    Workers' rows come in sharded over the workers' axis, as gradients are; they change
    places by one all-to-all, the rule runs on each device's columns of all rows, and
    one all-gather brings the result to where the parameters are. Between, only m×m
    sums and less cross devices, in an order that does not depend on how many processes
    the devices belong to. No device ever holds the stack.

    It is a link of `optax.chain` like the rule, for training steps of one's own;
    `byzjax.trainer(..., layout=...)` does the same, and attacks there as well. Wrap the
    whole rule, `aggregate(ctma(median(), 3), layout)`, not its base.

    The rule sees the tree as a few long arrays, `[m, n]` for each dtype. To a rule that
    gives a tree what it gives its ravelled matrix, as `byzjax.testing.check_rule`
    tests, that makes no difference, and it need not know of devices. What it makes of
    them by operations that devices do not share is right, and may be slow.

    **Guarantee.** The rule's, to rounding.

    Args:
      rule: any aggregator.
      layout: the devices. With `absent` workers, rows, weights and `present` are of
        the others.

    Returns:
      An `Aggregator` that takes what the rule takes. What its state knows of each
      coordinate is sharded over all devices.

    Raises:
      TypeError: a rule or layout of the wrong kind.
      ValueError: in `update`, fewer workers than devices to spread them over, or arrays
        on other devices.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp, optax
      >>> layout = byzjax.sharding.Layout(jax.make_mesh((1,), ("workers",)))
      >>> rule = byzjax.ctma(byzjax.median(), num_byzantine=1)
      >>> rule = byzjax.sharding.aggregate(rule, layout)
      >>> optimizer = optax.chain(rule, optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(2))
      >>> gradients = jnp.array([[1.0, 1.0], [1.0, 1.0], [-9.0, 9.0]])
      >>> print(jax.jit(optimizer.update)(gradients, state)[0])
      [-0.1 -0.1]

    Reference:
      The way there and back is that of a reduce-scatter and an all-gather, the two
      halves of an ordinary all-reduce.
    """
    base.check_aggregator("sharding.aggregate", rule)
    check_layout("sharding.aggregate", layout)

    def init(params):
        _check_outermost()
        way = Way(layout, params)

        def run(params):
            return way.first(rule.init, params)

        def specs(state):
            return way.specs_of_state(rule.init, state)

        return region.automatically(layout, run, (params,), specs)

    def update(updates, state, params=None, **extra):
        _check_outermost()
        m = checks.num_workers(updates) + len(layout.absent)
        check_workers("sharding.aggregate", layout, m)
        if layout.absent:  # What is given is of the workers that have a device.
            live = layout.live(m)
            claims = {
                name: spread(_of_all(name, extra[name], live, layout), live, m)
                for name in ("weights", "present")
                if extra.get(name) is not None
            }
            own = claims.pop("present", None)
            extra |= claims | {"present": present_of(layout, m, own)}
        way = Way(
            layout,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates),
        )

        def run(updates, state, params, extra):
            columns = spread(way.rows(updates), layout.live(m), m)
            inner = way.tree(params)
            state = way.inside(rule.init, state)
            extra = way.extras(extra)
            with way.passes():
                out, after = rule.update(columns, state, inner, **extra)
            return way.back(out), way.kept(rule.init, after)

        def specs(out):
            return way.specs_of_tree(), way.specs_of_state(rule.init, out[1])

        args = updates, state, params, extra
        return region.automatically(layout, run, args, specs)

    return base.around(rule, init, update)


def _check_outermost():
    if devices.is_split():
        raise ValueError(
            "sharding.aggregate needs a step or chain that is in no layout yet, got "
            "one inside of a trainer with layout=... or of another "
            "sharding.aggregate: give these the rule as it is"
        )


def _of_all(name, given, live, layout):
    """Weights or a mask of the workers who have a device, of nobody else."""
    given = jnp.asarray(given)
    if given.shape != (len(live),):
        raise ValueError(
            f"sharding.aggregate needs {name} of shape ({len(live)},), one for each "
            f"row, got {given.shape}: without those of the absent workers "
            f"{list(layout.absent)}"
        )
    return given
