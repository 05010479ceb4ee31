"""The definitions, once more: NumPy in float64, slow and plain, on rows `[m, d]`.

Written from the papers, not from the library. An oracle maps (rows, f) to the aggregate
`[d]`; that of a rule that draws at random maps to all outcomes it may have, `[k, d]`.

Rows that are not finite, or whose squared norm float32 cannot hold, are outliers: at
distance +inf and of weight zero in what measures distances. NaN counts as +inf where
single coordinates are ordered.
"""

import itertools
import math

import numpy as np

LARGEST_SQUARE = 1e36


def is_finite(rows):
    """Which rows [m] a rule that measures distances can use."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sum(np.square(rows), axis=1) < LARGEST_SQUARE


def distances(rows):
    """‖x_i − x_j‖ [m, m], +inf from and to rows that are not finite."""
    ok = is_finite(rows)
    out = np.full((len(rows), len(rows)), np.inf)
    for i, j in itertools.product(range(len(rows)), repeat=2):
        if ok[i] and ok[j]:
            out[i, j] = np.linalg.norm(rows[i] - rows[j])
    return out


def distances_to(rows, center):
    ok = is_finite(rows)
    return np.array(
        [
            np.linalg.norm(x - center) if k else np.inf
            for x, k in zip(rows, ok, strict=True)
        ]
    )


def first(scores, count):
    """Indices of the `count` least scores, the lowest of equals."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]


def ordered(rows):
    return np.sort(np.where(np.isnan(rows), np.inf, rows), axis=0)


# --- rules ----------------------------------------------------------------------------


def mean(rows, f):
    with np.errstate(invalid="ignore"):
        return np.sum(rows, axis=0) / len(rows)


def finite_mean(rows, f):
    """The mean inside a meta-rule: of the finite rows."""
    return np.mean(rows[is_finite(rows)], axis=0)


def median(rows, f):
    with np.errstate(invalid="ignore"):
        return np.median(ordered(rows), axis=0)


def lower_median(rows, f):
    return ordered(rows)[(len(rows) - 1) // 2]


def trimmed_mean(rows, f):
    return np.mean(ordered(rows)[f : len(rows) - f], axis=0)


def geometric_median(rows, f=0, weights=None):
    """argmin_z Σ w_i ‖x_i − z‖: if no row is it, Weiszfeld's iteration to the end."""
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, float)
    use = is_finite(rows) & (weights > 0)
    rows, weights = rows[use], weights[use]
    # In units of the nearer half: a far outlier must not swallow the last digits.
    shift = np.median(rows, axis=0)
    scale = np.median(np.linalg.norm(rows - shift, axis=1)) or 1.0
    rows = (rows - shift) / scale
    # A row is the median exactly if the others cannot pull it off (Kuhn's condition).
    for x in rows:
        gap = rows - x
        length = np.linalg.norm(gap, axis=1)
        away = length > 0
        pull = np.sum((weights / np.where(away, length, 1))[away, None] * gap[away], 0)
        if np.linalg.norm(pull) <= np.sum(weights[~away]) * (1 + 1e-12):
            return shift + scale * x
    z = np.average(rows, axis=0, weights=weights)
    for _ in range(100_000):
        pull = weights / np.maximum(np.linalg.norm(rows - z, axis=1), 1e-300)
        new = pull @ rows / np.sum(pull)
        if np.linalg.norm(new - z) < 1e-13:
            break
        z = new
    return shift + scale * z


def smoothed_weiszfeld(smoothing, num_iterations, start="zeros"):
    """z ← Σ w_i x_i / Σ w_i, w_i = 1 / max(‖x_i − z‖, ν), so many times."""

    def oracle(rows, f):
        z = np.zeros(rows.shape[1]) if start == "zeros" else finite_mean(rows, f)
        rows = rows[is_finite(rows)]
        for _ in range(num_iterations):
            w = 1 / np.maximum(np.linalg.norm(rows - z, axis=1), smoothing)
            z = w @ rows / np.sum(w)
        return z

    return oracle


def krum_scores(rows, f, neighbors=None, power=2):
    m = len(rows)
    neighbors = m - f - 2 if neighbors is None else neighbors
    d = distances(rows)
    return [sum(sorted(np.delete(d[i], i) ** power)[:neighbors]) for i in range(m)]


def krum(neighbors=None, power=2):
    def oracle(rows, f):
        count = None if neighbors is None else neighbors(len(rows), f)
        return rows[first(krum_scores(rows, f, count, power), 1)[0]]

    return oracle


def multi_krum(selected=None):
    def oracle(rows, f):
        m = len(rows)
        count = m - f if selected is None else selected(m, f)
        return np.mean(rows[first(krum_scores(rows, f), count)], axis=0)

    return oracle


def centered_clipping(radius, num_iterations):
    def oracle(rows, f):
        ok, v = is_finite(rows), np.zeros(rows.shape[1])
        for _ in range(num_iterations):
            steps = []
            for x in rows[ok]:
                length = np.linalg.norm(x - v)
                steps.append((x - v) * (min(1, radius / length) if length else 1))
            v = v + np.sum(steps, axis=0) / len(rows)
        return v

    return oracle


# --- meta-rules -----------------------------------------------------------------------


def ctma(base):
    """The mean of the m − f rows nearest the base's aggregate."""

    def around(rows, f, center):
        near = first(distances_to(rows, center), len(rows) - f)
        return np.mean(rows[near], axis=0)

    def oracle(rows, f):
        center = base(rows, f)
        if center.ndim == 1:
            return around(rows, f, center)
        return np.array([around(rows, f, c) for c in center])

    return oracle


def nnm_rows(rows, f):
    m, d, ok = len(rows), distances(rows), is_finite(rows)
    mixed = np.full(rows.shape, np.nan)
    for i in range(m):
        near = first(np.where(np.arange(m) == i, -1, d[i]), m - f)
        if ok[near].all():
            mixed[i] = np.mean(rows[near], axis=0)
    return mixed


def nnm(base):
    """The base on rows that are each the mean of their own m − f nearest."""
    return lambda rows, f: base(nnm_rows(rows, f), f)


def buckets(m, size):
    """All ways to deal m workers into buckets of `size`, the last perhaps smaller."""

    def deal(left):
        if len(left) <= size:
            yield [left]
            return
        # Where the last bucket is smaller, worker left[0] may be in it.
        for rest in itertools.combinations(left[1:], size - 1):
            bucket = (left[0], *rest)
            for more in deal(tuple(i for i in left if i not in bucket)):
                yield [bucket, *more]
        short = len(left) % size
        if short:
            for rest in itertools.combinations(left[1:], short - 1):
                bucket = (left[0], *rest)
                for more in deal(tuple(i for i in left if i not in bucket)):
                    yield [*more, bucket]

    return list(deal(tuple(range(m))))


def bucketing(base, size, f_of=lambda n, f: f):
    """All outcomes of the base on means of random buckets."""

    def oracle(rows, f):
        ok, outcomes = is_finite(rows), []
        for dealt in buckets(len(rows), size):
            mixed = np.array(
                [
                    np.mean(rows[list(b)], axis=0)
                    if ok[list(b)].all()
                    else np.full(rows.shape[1], np.nan)
                    for b in dealt
                ]
            )
            outcomes.append(np.atleast_2d(base(mixed, f_of(len(mixed), f))))
        return np.concatenate(outcomes)

    return oracle


# --- proven constants: ‖A(x) − x̄_H‖² ≤ κ · mean over H of ‖x_i − x̄_H‖² ----------------


def kappa_trimmed_mean(m, f):
    return 6 * f / (m - 2 * f) * (1 + f / (m - 2 * f))


def kappa_krum(m, f):
    return 6 * (1 + f / (m - 2 * f))


def kappa_median(m, f):
    return 4 * (1 + f / (m - 2 * f)) ** 2


def kappa_nnm(kappa):
    return lambda m, f: 8 * f / (m - f) * (kappa(m, f) + 1)


def kappa_ctma(kappa):
    """4f/(m−f)·(κ+1), which is within Lemma 3.1's 16δ(1+c_δ).

    The rows kept and the honest ones differ in at most f on each side, and each row
    kept is no farther from x₀ than each honest one left out, so the error is at most
    (2/h)·Σ_{H∖S} ‖x_j − x₀‖; square, and Σ_H ‖x_j − x₀‖² = h·(V + ‖x₀ − x̄_H‖²).
    """
    return lambda m, f: 4 * f / (m - f) * (kappa(m, f) + 1)


def subsets(m, f):
    """How many subsets of m − f workers there are."""
    return math.comb(m, f)
