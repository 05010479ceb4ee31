"""Bucketing: a rule on the means of random buckets of workers."""

import jax
import jax.numpy as jnp

from byzjax import checks
from byzjax.aggregators import bearing, lift
from byzjax.base import Aggregator


def bucketing(rule: Aggregator, bucket_size: int) -> Aggregator:
    r"""Bucketing: the rule on the means of random buckets of workers.

    .. math:: y_b = \frac{1}{|B_b|} \sum_{i \in B_b} x_i, \qquad A(y_1, \dots, y_n),
      \quad n = \lceil m / s \rceil

    over a fresh random permutation each time; the last bucket may be smaller. The
    base sees n rows, of which up to f are Byzantine.

    Sharp edge: one Byzantine worker makes a Byzantine bucket, so the base's f stays f
    while its workers become n. A base that is given f refuses too few buckets
    (`bucketing(trimmed_mean(2), 3)` of 11 workers); one that is not, as median, bears
    less than half of the buckets, and cannot say so: keep f < n / 2.

    **Guarantee.** For sδ < 1/2, the spread that the base sees shrinks by s while its
    Byzantine fraction grows to at most sδ (Karimireddy et al. 2022). A bucket with a
    row that is not finite is not finite, and the base treats it as an outlier; over a
    geometric base so is one of far rows that cancel. O(dm).

    Args:
      rule: the base aggregator.
      bucket_size: s, at least 1 (the paper uses 2).

    Returns:
      An `Aggregator` that needs a `key`.

    Raises:
      TypeError: if `rule` is no aggregator.
      ValueError: s < 1, s > m, a missing key, or a rule that trusts a row.

    Example:
      >>> import byzjax, jax, jax.numpy as jnp
      >>> rule = byzjax.bucketing(byzjax.median(), bucket_size=2)
      >>> print(rule.aggregate(jnp.ones((6, 2)), key=jax.random.key(0)))
      [1. 1.]

    Reference:
      Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via
      Bucketing, 2022, https://arxiv.org/abs/2006.09365
    """
    bearing.check_base("bucketing", rule)
    s = checks.count("bucketing", bucket_size=bucket_size, minimum=1)

    def check(m):
        if not s <= m:
            raise ValueError(
                f"bucketing needs bucket_size <= num_workers, got bucket_size={s} and "
                f"num_workers={m}"
            )

    def matrix(geometry, key):
        m = geometry.num_workers
        order = jax.random.permutation(key, m)
        if geometry.present is not None:  # The absent are in no bucket, or the last.
            order = order[jnp.argsort(~geometry.present[order], stable=True)]
        bucket = (
            jnp.zeros((m,), jnp.int32)
            .at[order]
            .set(jnp.arange(m, dtype=jnp.int32) // s)
        )
        member = bucket[None, :] == jnp.arange(count(m), dtype=jnp.int32)[:, None]
        if geometry.present is not None:
            member &= geometry.present[None, :]
        member = member.astype(geometry.norms.dtype)
        size = jnp.sum(member, axis=1, keepdims=True)
        return member / (size if geometry.present is None else jnp.maximum(size, 1))

    def count(m):
        return -(-m // s)

    def bears(m):  # Every one of them may be in a bucket of its own.
        most = bearing.minority(count(m))
        return most if rule.bears is None else min(most, rule.bears(count(m)))

    def sizes(m):
        return [min(s, m - first) for first in range(0, m, s)]

    return lift.premixed(
        "bucketing",
        rule,
        matrix,
        check=check,
        count=count,
        bears=bears,
        sizes=sizes,
        random=True,
        distances=False,
    )
