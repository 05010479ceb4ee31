"""The definitions of the rules of the catalogue, as those in `reference.py`."""

import itertools

import numpy as np

from tests.reference import (
    distances,
    distances_to,
    first,
    is_finite,
    median,
    trimmed_mean,
)


def norms(rows):
    return distances_to(rows, np.zeros(rows.shape[1]))


def share_sum(rows, shares):
    """Σ shares_i x_i over the finite rows."""
    ok = is_finite(rows)
    return shares[ok] @ rows[ok]


# --- near a centre --------------------------------------------------------------------


def values_near(rows, center, count):
    """Per coordinate the mean of the `count` values nearest the centre."""
    out = np.empty(rows.shape[1])
    for k in range(rows.shape[1]):
        gaps = np.abs(rows[:, k] - center[k])
        gaps[np.isnan(gaps)] = np.inf
        out[k] = np.mean(rows[first(gaps, count), k])
    return out


def meamed(middle=median):
    return lambda rows, f: values_near(rows, middle(rows, f), len(rows) - f)


def phocas(rows, f):
    return values_near(rows, trimmed_mean(rows, f), len(rows) - f)


def rows_near(rows, gaps, count):
    return np.mean(rows[first(gaps, count)], axis=0)


def aksel(count=lambda m, f: m - f, middle=median):
    def oracle(rows, f):
        gaps = distances_to(rows, middle(rows, f))
        return rows_near(rows, gaps, count(len(rows), f))

    return oracle


def monna(pivot_of):
    def oracle(rows, f):
        m = len(rows)
        return rows_near(rows, distances(rows)[pivot_of(m)], m - f)

    return oracle


def medoid(rows, f):
    ok, gaps = is_finite(rows), distances(rows)
    sums = [np.sum(gaps[i, ok]) if ok[i] else np.inf for i in range(len(rows))]
    return rows[first(sums, 1)[0]]


def cge(rows, f):
    return rows_near(rows, norms(rows), len(rows) - f)


def bulyan(power=2, middle=median, repeated=True):
    def scores(gaps, left, f):
        """Krum's scores of the rows that are left."""
        count = max(1, len(left) - f - 2)
        return [sum(sorted(gaps[i, j] for j in left if j != i)[:count]) for i in left]

    def oracle(rows, f):
        m = len(rows)
        gaps, left, chosen = distances(rows) ** power, list(range(m)), []
        if repeated:
            for _ in range(m - 2 * f):
                best = left[first(scores(gaps, left, f), 1)[0]]
                chosen.append(best)
                left.remove(best)
        else:
            chosen = first(scores(gaps, left, f), m - 2 * f)
        chosen = rows[sorted(chosen)]
        return values_near(chosen, middle(chosen, f), m - 4 * f)

    return oracle


# --- subsets --------------------------------------------------------------------------


def least(rows, f, cost):
    """The mean of the first subset of m − f rows of least cost."""
    found, least = None, np.inf
    for subset in itertools.combinations(range(len(rows)), len(rows) - f):
        if not is_finite(rows[list(subset)]).all():
            continue
        new = cost(list(subset))
        # Costs that differ by rounding alone are equal; float32 decides as it likes.
        if found is None or new < least:
            found, least = list(subset), new
    return np.mean(rows[found], axis=0)


def mda(rows, f):
    gaps = distances(rows)
    return least(rows, f, lambda s: np.max(gaps[np.ix_(s, s)]))


def smea(rows, f):
    def top(subset):
        spread = rows[subset] - np.mean(rows[subset], axis=0)
        return np.linalg.norm(spread, 2) ** 2 / len(subset)

    return least(rows, f, top)


# --- spectra --------------------------------------------------------------------------


def caf(scale):
    def oracle(rows, f):
        m, x = len(rows), rows[is_finite(rows)]
        c, rounds = np.ones(len(x)), 0
        best, least = np.mean(x, axis=0), np.inf
        while np.sum(c) > m - 2 * f:
            center = c @ x / np.sum(c)
            y = x - center
            _, s, v = np.linalg.svd(np.sqrt(c)[:, None] * y, full_matrices=False)
            if s[0] ** 2 / np.sum(c) < least:
                best, least = center, s[0] ** 2 / np.sum(c)
            tau = (y @ v[0]) ** 2
            positive = np.max(tau[c > 0])
            if positive == 0:
                break
            top = np.max(tau) if scale == "all" else positive
            if rounds >= 1000 or np.sum(c * tau) / top <= 1e-6 * np.sum(c):
                top = positive
            c = np.where((c > 0) & (tau < top), c * (1 - tau / top), 0)
            rounds += 1
        return best

    return oracle


def dnc(c=1.0):
    """With all coordinates seen, when nothing is left to chance."""

    def oracle(rows, f):
        ok = is_finite(rows)
        y = rows[ok] - np.mean(rows[ok], axis=0)
        scores = np.full(len(rows), np.inf)
        scores[ok] = (y @ np.linalg.svd(y, full_matrices=False)[2][0]) ** 2
        kept = [i for i in first(scores, len(rows) - int(c * f)) if ok[i]]
        return np.mean(rows[kept], axis=0)

    return oracle


# --- trust ----------------------------------------------------------------------------


def sign_majority(rows, f):
    return np.sign(np.sum(np.nan_to_num(np.sign(rows)), axis=0))


def fltrust(reference_of):
    def oracle(rows, f):
        r, lengths = reference_of(rows), norms(rows)
        trust, shares = np.zeros(len(rows)), np.zeros(len(rows))
        for i in np.flatnonzero(is_finite(rows) & (lengths > 0)):
            trust[i] = max(0, rows[i] @ r / (lengths[i] * np.linalg.norm(r)))
            shares[i] = trust[i] * np.linalg.norm(r) / lengths[i]
        return share_sum(rows, shares / (np.sum(trust) or 1))

    return oracle


def cosines(rows):
    """[m, m], zero for zero rows, −inf for rows that are not finite."""
    out = np.zeros((len(rows), len(rows)))
    ok, lengths = is_finite(rows), norms(rows)
    for i, j in itertools.product(range(len(rows)), repeat=2):
        if not (ok[i] and ok[j]):
            out[i, j] = -np.inf
        elif lengths[i] * lengths[j] > 0:
            out[i, j] = rows[i] @ rows[j] / (lengths[i] * lengths[j])
    return out


def foolsgold(rows, f, epsilon=1e-5):
    m, ok = len(rows), is_finite(rows)
    cs = np.where(np.isfinite(cosines(rows)), cosines(rows), 0) * (1 - np.eye(m))
    most = np.max(cs, axis=1) + epsilon
    for i, j in itertools.permutations(range(m), 2):
        if most[i] < most[j]:
            cs[i, j] *= most[i] / most[j]
    alpha = np.clip(1 - np.max(cs, axis=1), 0, 1)
    if np.max(alpha) > 0:
        alpha = alpha / np.max(alpha)
    alpha = np.minimum(alpha, 0.99)
    alpha = np.clip(np.log(alpha / (1 - alpha) + epsilon) + 0.5, 0, 1) * ok
    if np.sum(alpha) < 1e-4:
        alpha = ok.astype(float)
    return share_sum(rows, alpha / np.sum(alpha))


# --- clusters -------------------------------------------------------------------------


def clipped_mean(rows, members, most):
    lengths = norms(rows)
    kept = [rows[i] * min(1, most / (lengths[i] or 1)) for i in members]
    return np.mean(kept, axis=0)


def middle_norm(rows):
    return median(norms(rows)[:, None], 0)[0]


def apart(rows):
    """1 − cos, [m, m], in the form that does not cancel."""
    gaps, lengths = distances(rows), norms(rows)
    out = np.full(gaps.shape, np.inf)
    for i, j in zip(*np.nonzero(np.isfinite(gaps)), strict=True):
        product = lengths[i] * lengths[j]
        gap = gaps[i, j] ** 2 - (lengths[i] - lengths[j]) ** 2
        out[i, j] = np.clip(gap / (2 * product), 0, 2) if product > 0 else 1
    np.fill_diagonal(out, 0)
    return out


def flame(rows, f):
    m, gaps = len(rows), apart(rows)
    cluster = {i: {i} for i in range(m)}
    pairs = sorted(itertools.combinations(range(m), 2), key=lambda p: gaps[p])
    chosen, level = ({0} if m == 1 else None), None
    for i, j in pairs:
        if level is not None and gaps[i, j] > level:
            break
        joint = cluster[i] | cluster[j]
        for k in joint:
            cluster[k] = joint
        if len(joint) > m // 2 and (chosen is None or chosen & joint):
            chosen, level = joint, gaps[i, j]
    members = [i for i in sorted(chosen) if is_finite(rows)[i]]
    return clipped_mean(rows, members, middle_norm(rows))


def mean_shift(points):
    """The largest cluster by mean shift with a flat kernel, as indices."""
    n = len(points)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    width = np.mean(np.sort(gaps, axis=1)[:, max(1, n // 2) - 1]) + 1e-6  # For ties.
    centers = points.copy()
    for _ in range(100):
        inside = np.linalg.norm(points[None] - centers[:, None], axis=2) <= width
        centers = np.array([np.mean(points[k], axis=0) for k in inside])
    inside = np.linalg.norm(points[None] - centers[:, None], axis=2) <= width
    order = sorted(range(n), key=lambda i: (-sum(inside[i]), *(-centers[i])))
    kept = []
    for i in order:
        if all(np.linalg.norm(centers[i] - centers[j]) > width for j in kept):
            kept.append(i)
    to_kept = np.linalg.norm(points[:, None] - centers[kept][None], axis=2)
    least = np.min(to_kept, axis=1)
    label = np.argmax(to_kept <= least[:, None] + 1e-6, axis=1)
    label = np.where(least <= width, label, -1)
    sizes = [np.sum(label == k) for k in range(len(kept))]
    return np.flatnonzero(label == np.argmax(sizes))


def signguard(rows, f):
    lengths, most = norms(rows), middle_norm(rows)
    usable = np.flatnonzero(is_finite(rows))
    plausible = {i for i in usable if 0.1 * most <= lengths[i] <= 3 * most}
    x = rows[usable]
    fractions = np.stack([np.mean(x > 0, 1), np.mean(x == 0, 1), np.mean(x < 0, 1)], 1)
    alike = {usable[i] for i in mean_shift(fractions)}
    return clipped_mean(rows, sorted(plausible & alike or plausible), most)


def clipped_clustering(rows, f, linkage=np.mean):
    ok = is_finite(rows)
    clusters, gaps = [[i] for i in np.flatnonzero(ok)], apart(rows)

    def gap(a, b):
        return linkage([gaps[i, j] for i in a for j in b])

    while len(clusters) > 2:
        a, b = min(itertools.combinations(clusters, 2), key=lambda p: gap(*p))
        clusters = [c for c in clusters if c not in (a, b)] + [sorted(a + b)]
        clusters.sort()
    members = max(clusters, key=len)
    return clipped_mean(rows, members, middle_norm(rows[ok]))


# --- meta-rules -----------------------------------------------------------------------


def clip(rows, most):
    ok, lengths, out = is_finite(rows), norms(rows), np.zeros_like(rows)
    for i in np.flatnonzero(ok):
        out[i] = rows[i] * min(1, most / (lengths[i] or 1))
    return out


def clipping(base, max_norm):
    return lambda rows, f: base(clip(rows, max_norm), f)


def arc(base):
    def oracle(rows, f):
        m = len(rows)
        k = 2 * f * (m - f) // m
        return base(clip(rows, np.sort(norms(rows))[m - k - 1]), f)

    return oracle
