"""Meta-rules: aggregator in, aggregator out."""

import jax
import jax.numpy as jnp
import numpy as np

from byzjax import base, lifts, order, stacked
from byzjax.base import Aggregator


def ctma(rule: Aggregator, num_byzantine: int, *, ties: str = "lowest") -> Aggregator:
    r"""The Centered Trimmed Meta Aggregator (CTMA).

    .. math::
      x_0 = A(x_1, \dots, x_m), \qquad
      \mathrm{CTMA}(x) = \frac{1}{m - f} \sum_{i \in S} x_i

    with S the m−f rows nearest x₀; of rows equally far the lowest indices, so exactly
    m−f rows enter.

    `ctma(nnm(rule))` trims the *original* rows around the mixed aggregate, which is the
    authors' NNM+CTMA; `nnm(ctma(rule))` trims the mixed rows.

    With weights s: the rows in order of distance, until they hold the fraction 1 − f/m
    of the total weight, the last one in part (ω-CTMA, Dahan and Levy 2024b).

    **Guarantee.** (16δ(1+c_δ), δ)-robust if the base is (c_δ, δ)-robust (Lemma 3.1):
    the optimal O(δ) for a base with c_δ = O(1), δ = f/m < 1/2. Rows that are not finite
    have weight exactly 0. O(dm + m log m) on top of the base; over a geometric base no
    further pass over the stack.

    Args:
      rule: the base aggregator A.
      num_byzantine: f.
      ties: "lowest", or "all", the authors' code: every row as near as the (m−f)-th
        enters, and the sum is still divided by m−f. Where rows are equally far the
        result is then no mean, may leave their hull, and the guarantee is void.

    Returns:
      An `Aggregator`; takes `weights` `[m]` if the base does and ties are "lowest".

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: other `ties`; m < 2f + 1, or weights with all ties, at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[1.0], [2.0], [3.0], [4.0], [jnp.inf]])
      >>> print(byzjax.ctma(byzjax.median(), num_byzantine=1).aggregate(rows))
      [2.5]

    Reference:
      Dahan, Levy: Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous
      Training, 2024, https://arxiv.org/abs/2405.14759; Dahan, Levy: Weight for
      Robustness, 2024, https://arxiv.org/abs/2501.09621
    """
    lifts.check_aggregator("ctma", rule)
    f = base.check_count("ctma", num_byzantine=num_byzantine)
    check = base.check_minority("ctma", f)
    if ties not in ("lowest", "all"):
        raise ValueError(f'ctma needs ties to be "lowest" or "all", got ties={ties!r}')

    def trim(distances, weights):
        m = distances.shape[0]
        if ties == "all":
            if weights is not None:
                raise ValueError(
                    'ctma needs ties="lowest" with weights, got ties="all"'
                )
            farthest = jnp.sort(distances)[m - f - 1]
            return jnp.where(distances <= farthest, 1 / (m - f), 0)
        if weights is None:
            return order.mark_nearest(distances, m - f) / (m - f)
        by_distance = jnp.argsort(distances, stable=True)
        ordered = weights[by_distance]
        room = (1 - f / m) * jnp.sum(ordered) - (jnp.cumsum(ordered) - ordered)
        kept = jnp.clip(room, 0, ordered)
        return jnp.zeros_like(kept).at[by_distance].set(kept / jnp.sum(kept))

    keeps = (lambda m: m - f) if ties == "lowest" else None

    if rule.weigh is not None:
        base_weigh = rule.weigh

        def weigh(geometry, /, *, key=None, weights=None):
            m = geometry.num_workers
            check(m)
            weights = lifts.check_weights("ctma", weights, m)
            center = base_weigh(geometry, key=key, weights=weights)
            center = jnp.where(geometry.finite, center, 0)
            return trim(stacked.squared_distances_to(geometry, center), weights)

        return lifts.from_weigh(weigh, keeps=keeps)

    def update(updates, state, params=None, *, weights=None, **extra):
        m = base.num_workers(updates)
        check(m)
        at_most = keeps(m) if keeps and weights is None else None
        weights = lifts.check_weights("ctma", weights, m)
        center, state = rule.update(updates, state, params, weights=weights, **extra)
        distances = stacked.squared_distances_to_tree(updates, center)
        shares = jnp.where(jnp.isfinite(distances), trim(distances, weights), 0)
        return stacked.weighted_sum(updates, shares, at_most=at_most), state

    return Aggregator(rule.init, update)


def nnm(rule: Aggregator, num_byzantine: int) -> Aggregator:
    r"""Nearest-neighbour mixing (NNM): each row becomes the mean of its neighbourhood.

    .. math:: y_i = \frac{1}{m - f} \sum_{j \in N_i} x_j, \qquad A(y_1, \dots, y_m)

    with N_i the m−f rows nearest x_i, itself included; ties to the lowest index.

    **Guarantee.** Turns an (f, κ)-robust rule into an
    (f, 8f/(m−f)·(κ+1))-robust one (Allouah et al. 2023, Lemma 1), m ≥ 2f + 1. A row
    that is not finite enters no neighbourhood but its own. O(dm²) for the distances;
    over a geometric base the mixing itself does not touch the coordinates.

    Args:
      rule: the base aggregator.
      num_byzantine: f.

    Returns:
      An `Aggregator`.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: m < 2f + 1 at trace time.

    Example:
      >>> import byzjax, jax.numpy as jnp
      >>> rows = jnp.array([[0.0], [2.0], [4.0], [jnp.nan]])
      >>> print(byzjax.nnm(byzjax.median(), num_byzantine=1).aggregate(rows))
      [2.]

    Reference:
      Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe
      for Optimal Byzantine ML under Heterogeneity, 2023,
      https://arxiv.org/abs/2302.01772
    """
    f = base.check_count("nnm", num_byzantine=num_byzantine)

    def matrix(geometry):
        m = geometry.num_workers
        # Itself always included: a row that is not finite stays so when mixed.
        itself = np.eye(m, dtype=bool)
        distances = jnp.where(itself, -1, geometry.squared_distances)
        return jax.vmap(lambda row: order.mark_nearest(row, m - f))(distances) / (m - f)

    return lifts.premixed(
        "nnm",
        rule,
        matrix,
        check=base.check_minority("nnm", f),
        sizes=lambda m: [m - f] * m,
    )


def bucketing(rule: Aggregator, bucket_size: int) -> Aggregator:
    r"""Bucketing: the rule on the means of random buckets of workers.

    .. math:: y_b = \frac{1}{|B_b|} \sum_{i \in B_b} x_i, \qquad A(y_1, \dots, y_n),
      \quad n = \lceil m / s \rceil

    over a fresh random permutation each time; the last bucket may be smaller. The
    base sees n rows, of which up to f are Byzantine: choose its f accordingly.

    **Guarantee.** For sδ < 1/2, the spread that the base sees shrinks by s while its
    Byzantine fraction grows to at most sδ (Karimireddy et al. 2022). A bucket with a
    row that is not finite is not finite, and the base treats it as an outlier. O(dm).

    Args:
      rule: the base aggregator.
      bucket_size: s, at least 1 (the paper uses 2).

    Returns:
      An `Aggregator` that needs a `key`.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: s < 1, s > m, or a missing key.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> rule = byzjax.bucketing(byzjax.median(), bucket_size=2)
      >>> print(rule.aggregate(jnp.ones((6, 2)), key=jax.random.key(0)))
      [1. 1.]

    Reference:
      Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing, 2022, https://arxiv.org/abs/2006.09365
    """
    s = base.check_count("bucketing", bucket_size=bucket_size, minimum=1)

    def check(m):
        if not s <= m:
            raise ValueError(
                f"bucketing needs bucket_size <= num_workers, got bucket_size={s} and "
                f"num_workers={m}"
            )

    def matrix(geometry, key):
        m = geometry.num_workers
        order = jax.random.permutation(key, m)
        bucket = (
            jnp.zeros((m,), jnp.int32)
            .at[order]
            .set(jnp.arange(m, dtype=jnp.int32) // s)
        )
        member = bucket[None, :] == jnp.arange(-(-m // s), dtype=jnp.int32)[:, None]
        member = member.astype(geometry.squared_norms.dtype)
        return member / jnp.sum(member, axis=1, keepdims=True)

    def sizes(m):
        return [min(s, m - first) for first in range(0, m, s)]

    return lifts.premixed(
        "bucketing",
        rule,
        matrix,
        check=check,
        sizes=sizes,
        random=True,
        distances=False,
    )
