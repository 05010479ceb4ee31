"""Attacks that go as far as the honest workers' own disagreement lets them hide."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import jax.typing

from byzjax import base, columns, order, stacked
from byzjax.attacks import lift
from byzjax.base import Attack, Tree

Perturbation = Literal["unit", "sign", "std"]


def min_max(
    perturbation: Perturbation = "unit", *, num_byzantine: int | None = None
) -> Attack:
    r"""Min-max: as far as possible without being farther out than an honest message.

    .. math:: b_i = \mu - \gamma p, \qquad
      \gamma = \max\Big\{\gamma : \max_j \|x_j - b\| \le \max_{j,k} \|x_j - x_k\|\Big\}

    over honest j, k, with p one of μ/‖μ‖ ("unit"), sign(μ) ("sign") and the standard
    deviation per coordinate, ddof 1 ("std").

    Each constraint is a quadratic in γ, so γ is found exactly. The authors' code
    bisects from 10 in halving steps, to 1e-5, and so never finds more than 20.

    Args:
      perturbation: p, "unit", "sign" or "std".
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: another word; at trace time "std" with one honest worker.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [0.0]])
      >>> print(byzjax.attacks.min_max().apply(rows, num_byzantine=1).ravel())
      [1. 3. 1.]

    Reference:
      Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021,
      https://doi.org/10.14722/ndss.2021.24498
    """
    lift.choice("min_max", ("unit", "sign", "std"), perturbation=perturbation)

    def message(honest, f):
        center = lift.mean(honest)
        towards = _perturbation("min_max", honest, center, perturbation)
        return lift.shifted(center, _hidden(honest, center, towards), towards)

    return lift.one_message(message, num_byzantine=num_byzantine)


def min_sum(
    perturbation: Perturbation = "unit",
    *,
    bound: Literal["max", "min"] = "max",
    num_byzantine: int | None = None,
) -> Attack:
    r"""Min-sum: as far as possible with distances summing to no more than honest ones.

    .. math:: b_i = \mu - \gamma p, \qquad
      \gamma = \max\Big\{\gamma : \sum_j \|x_j - b\|^2
      \le \max_k \sum_j \|x_j - x_k\|^2\Big\}

    over honest j, k, with p as in `min_max`. The paper bounds by the honest message of
    the largest sum ("max"), the authors' code by that of the smallest ("min").

    Args:
      perturbation: p, "unit", "sign" or "std".
      bound: "max" or "min".
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: another word; at trace time "std" with one honest worker.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [3.0], [0.0]])
      >>> print(byzjax.attacks.min_sum().apply(rows, num_byzantine=1).ravel())
      [1. 3. 1.]

    Reference:
      Shejwalkar, Houmansadr: Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021,
      https://doi.org/10.14722/ndss.2021.24498
    """
    lift.choice("min_sum", ("unit", "sign", "std"), perturbation=perturbation)
    lift.choice("min_sum", ("max", "min"), bound=bound)

    def message(honest, f):
        h = base.num_workers(honest)
        center = lift.mean(honest)
        towards = _perturbation("min_sum", honest, center, perturbation)
        sums = jnp.sum(stacked.geometry(honest).squared_distances, axis=1)
        limit = jnp.max(sums) if bound == "max" else jnp.min(sums)
        # Σ‖x_j − μ + γp‖² = Σ‖x_j − μ‖² + hγ²‖p‖², as the x_j − μ sum to zero.
        spent = jnp.sum(stacked.squared_distances_to_tree(honest, center))
        length = h * columns.total([jnp.sum(p * p) for p in jax.tree.leaves(towards)])
        room = jnp.maximum(limit - spent, 0)
        gamma = jnp.sqrt(room / jnp.where(length > 0, length, 1))
        return lift.shifted(center, gamma, towards)

    return lift.one_message(message, num_byzantine=num_byzantine)


def small_perturbation(
    scale: jax.typing.ArrayLike | None = None,
    *,
    coordinate: int | None = -1,
    num_byzantine: int | None = None,
) -> Attack:
    r"""The hidden vulnerability: the honest mean, but for one coordinate.

    .. math:: b_i = \mu + \gamma e_j \qquad\text{or}\qquad b_i = \mu + \gamma \mathbf 1

    In d dimensions honest messages lie about √d apart, so one coordinate can be off by
    that much before a distance shows it. The paper searches the γ that the rule still
    selects: `optimized(small_perturbation, rule)`. Without γ and rule, the largest one
    at which b is no farther from any honest message than these are from each other.

    Args:
      scale: γ, of either sign; may be traced. None: as far as hidden, see above.
      coordinate: j, counted through all leaves in tree order, negative from the end
        (the last is the default of EPFL's code); None: all coordinates.
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: a γ that is not finite; at trace time a coordinate out of range.
      TypeError: a coordinate that is no int.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> attack = byzjax.attacks.small_perturbation(9.0, coordinate=1)
      >>> print(attack.apply(jnp.ones((3, 2)), num_byzantine=1)[-1])
      [ 1. 10.]

    Reference:
      El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in
      Byzantium, 2018, https://arxiv.org/abs/1802.07927
    """
    if scale is not None:
        lift.any_number("small_perturbation", scale=scale)
    if coordinate is not None and (
        isinstance(coordinate, bool) or not isinstance(coordinate, int)
    ):
        raise TypeError(
            "small_perturbation needs coordinate to be a static int or None, got "
            f"coordinate={coordinate!r}"
        )

    def message(honest, f):
        center = lift.mean(honest)
        towards = _axis(center, coordinate)
        gamma = _hidden(honest, center, towards) if scale is None else scale
        return lift.shifted(center, gamma, towards)

    return lift.one_message(message, num_byzantine=num_byzantine)


def anti_cge(*, num_byzantine: int | None = None) -> Attack:
    r"""Against `cge`: the longest message whose norm that rule still keeps.

    .. math:: b_i = -\rho \frac{s}{\|s\|}, \quad s = \sum_{j \in S} x_j, \quad
      \rho < \|x\|_{(h - f + 1)}

    with S the h − f shortest honest messages, those that the rule keeps beside the f
    Byzantine ones, and ρ just below the norm of the next longer one (by a part in 10⁴,
    or more for leaves of lower precision, so that rounding cannot lift it above).

    Differs from the one public implementation (EPFL's), which counts the shortest
    message twice in s.

    Args:
      num_byzantine: f, for use as a link of `optax.chain`; a trainer passes its own.

    Returns:
      An `Attack`.

    Raises:
      ValueError: m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [0.0]])
      >>> attack = byzjax.attacks.anti_cge()
      >>> print(attack.apply(rows, num_byzantine=1).ravel().round(2))
      [ 1.  2.  3. -3.]

    Reference:
      The rule: Gupta, Liu, Vaidya: Byzantine Fault-Tolerant Distributed Machine
      Learning Using Stochastic Gradient Descent (SGD) and Norm-Based Comparative
      Gradient Elimination (CGE), 2021, https://arxiv.org/abs/2008.04699
    """

    def message(honest, f):
        h = base.num_workers(honest)
        base.check_minority("anti_cge", f)(h + f)
        squared = stacked.norms(honest).squared_norms
        shortest = order.mark_nearest(squared, h - f)
        sums = stacked.weighted_sum(jax.tree.map(lift.wide, honest), shortest)
        coarsest = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(honest))
        limit = jnp.sqrt(jnp.sort(squared)[h - f]) * (1 - max(1e-4, coarsest))
        length = lift.norm(sums)
        scale = jnp.where(length > 0, limit / jnp.where(length > 0, length, 1), 0)
        return jax.tree.map(lambda x: -(lift.number(scale, x) * x), sums)

    return lift.one_message(message, num_byzantine=num_byzantine)


def _perturbation(name: str, honest: Tree, center: Tree, p: Perturbation) -> Tree:
    """−p, the way from the mean."""
    if p == "sign":
        return jax.tree.map(lambda c: -jnp.sign(c), center)
    if p == "std":
        lift.check_spread(name, honest, 1)
        return jax.tree.map(lambda s: -s, lift.std(honest, center, ddof=1))
    length = lift.norm(center)
    inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return jax.tree.map(lambda c: -(lift.number(inverse, c) * c), center)


def _hidden(honest: Tree, center: Tree, towards: Tree) -> jax.Array:
    """The largest γ with ‖x_j − center − γ·towards‖ within the honest diameter, all j.

    For each j this is aγ² − 2b_jγ + c_j <= D², true at γ = 0, with one root γ >= 0.
    """
    diameter = jnp.max(stacked.geometry(honest).squared_distances)
    a = columns.total([jnp.sum(p * p) for p in jax.tree.leaves(towards)])
    gaps = jax.tree.map(lambda x, c: lift.wide(x) - c[None], honest, center)
    b = lift.dots(gaps, towards)
    c = stacked.squared_distances_to_tree(honest, center)
    room = jnp.maximum(diameter - c, 0)
    root = jnp.sqrt(b * b + a * room)
    # b + root cancels for b < 0; the other form of the same root does not.
    below = a * room / jnp.where(root - b > 0, root - b, 1)
    gamma = jnp.where(b < 0, below, b + root) / jnp.where(a > 0, a, 1)
    return jnp.min(gamma)


def _axis(center: Tree, coordinate: int | None) -> Tree:
    """The unit vector of a coordinate, or all ones."""
    if coordinate is None:
        return jax.tree.map(jnp.ones_like, center)
    leaves, structure = jax.tree.flatten(center)
    sizes = [math.prod(x.shape) for x in leaves]
    if not -sum(sizes) <= coordinate < sum(sizes):
        raise ValueError(
            "small_perturbation needs a coordinate of the updates, got "
            f"coordinate={coordinate} for {sum(sizes)} coordinates"
        )
    at = coordinate % sum(sizes)
    axis = []
    for x, size in zip(leaves, sizes, strict=True):
        flat = jnp.zeros((size,), x.dtype)
        axis.append((flat.at[at].set(1) if 0 <= at < size else flat).reshape(x.shape))
        at -= size
    return jax.tree.unflatten(structure, axis)
