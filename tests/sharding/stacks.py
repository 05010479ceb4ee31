"""The stacks and meshes of these tests; used inside of their processes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from byzjax import sharding
from byzjax.testing import gaussian

NUM_DEVICES = 8
D = 4099  # A prime.
SHAPES = [(2, 3), (), (4001,), (1, 0), (7, 13)]  # And one more with what is left.


def strict():
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def rows(m, d=D):
    """Rows [m, d] around a common point."""
    return gaussian(m, d, seed=m) + gaussian(1, d, seed=1)


def beside_itself(rule):
    """Whether a rule is compared with itself on one device, not with its oracle.

    Oracles list all that may come of a draw, and have d×d matrices of every subset.
    """
    return rule.random or rule.frozen or rule.name == "smea"


def ragged(x):
    """A matrix [m, D] as a tree of leaves that no device count divides."""
    m, d = x.shape
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    parts = np.split(np.asarray(x), np.cumsum(sizes), axis=1)
    shapes = [*SHAPES, (d - sum(sizes),)]
    leaves = [jnp.asarray(p.reshape(m, *s)) for p, s in zip(parts, shapes, strict=True)]
    return {"a": leaves[:3], "b": tuple(leaves[3:])}


def flat(tree):
    """A tree `[...]` as a vector."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(x, np.float32).ravel() for x in leaves])


def mesh(kind, shape=(NUM_DEVICES,), names=("workers",)):
    kinds = None  # As `jax.make_mesh` comes: Explicit.
    if kind == "auto":
        kinds = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=kinds)


def placed(layout, tree):
    """On the workers' devices, if these divide them."""
    m = jax.tree.leaves(tree)[0].shape[0]
    whole = m % layout.num_worker_shards == 0
    return jax.device_put(tree, layout.batches) if whole else tree


def layout_of(kind):
    return sharding.Layout(mesh(kind))
