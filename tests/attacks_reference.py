"""The attacks' definitions in NumPy, float64: (honest [h, d], own [f, d]) → [f, d].

Written from the papers, slow and plain: searches where the library solves equations.
"""

import math

import numpy as np
from scipy import stats


def repeated(message, own):
    return np.tile(message, (len(own), 1))


def sign_flip(honest, own):
    return -own


def ipm(honest, own, *, scale):
    return repeated(-scale * honest.mean(0), own)


def scaled_sign_flip(honest, own, *, scale=1.0):
    return repeated(-scale * honest.sum(0) / len(own), own)


def alie_strength(h, f, *, quantile="honest"):
    m = h + f
    s = math.floor(m / 2 + 1) - f
    return stats.norm.ppf((h - s) / h if quantile == "honest" else (m - s) / m)


def alie(honest, own, *, z=None, sign=-1, ddof=1, quantile="honest"):
    if z is None:
        z = alie_strength(len(honest), len(own), quantile=quantile)
    return repeated(honest.mean(0) + sign * z * honest.std(0, ddof=ddof), own)


def squared(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def perturbation(honest, p):
    mean = honest.mean(0)
    return {
        "unit": mean / np.linalg.norm(mean),
        "sign": np.sign(mean),
        "std": honest.std(0, ddof=1),
    }[p]


def largest(fits):
    """The largest gamma of a feasible interval [0, gamma], by bisection."""
    low, high = 0.0, 1.0
    while fits(high):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def hidden(honest, towards):
    limit = squared(honest, honest).max()
    mean = honest.mean(0)

    def fits(gamma):
        return squared(honest, (mean + gamma * towards)[None]).max() <= limit

    return mean + largest(fits) * towards


def min_max(honest, own, *, p):
    return repeated(hidden(honest, -perturbation(honest, p)), own)


def min_sum(honest, own, *, p, bound="max"):
    sums = squared(honest, honest).sum(1)
    limit = sums.max() if bound == "max" else sums.min()
    mean, towards = honest.mean(0), -perturbation(honest, p)

    def fits(gamma):
        return squared(honest, (mean + gamma * towards)[None]).sum() <= limit

    return repeated(mean + largest(fits) * towards, own)


def small_perturbation(honest, own, *, coordinate, scale=None):
    towards = np.zeros(honest.shape[1])
    towards[slice(None) if coordinate is None else coordinate] = 1
    if scale is None:
        return repeated(hidden(honest, towards), own)
    return repeated(honest.mean(0) + scale * towards, own)


def anti_cge(honest, own):
    norms = np.linalg.norm(honest, axis=1)
    by_norm = np.argsort(norms, kind="stable")
    kept = len(honest) - len(own)
    s = honest[by_norm[:kept]].sum(0)
    limit = norms[by_norm[kept]] * (1 - 1e-4)
    return repeated(-limit * s / np.linalg.norm(s), own)


def krum_index(rows, f):
    m = len(rows)
    scores = []
    for i in range(m):
        others = np.delete(squared(rows, rows)[i], i)
        scores.append(np.sort(others)[: m - f - 2].sum())
    return int(np.argmin(scores))


def fang_krum(honest, own):
    (h, d), f = honest.shape, len(own)
    m = h + f
    distances = np.sqrt(squared(honest, honest))
    near = min(np.sort(np.delete(distances[i], i))[: m - f - 2].sum() for i in range(h))
    step = near / ((m - 2 * f - 1) * math.sqrt(d))
    step += np.linalg.norm(honest, axis=1).max() / math.sqrt(d)
    direction = np.sign(honest.mean(0))
    while step >= 1e-5:
        rows = np.concatenate([honest, repeated(-step * direction, own)])
        if krum_index(rows, f) >= h:
            break
        step /= 2
    return repeated(-step * direction, own)


def fang_trimmed_mean(honest, own, *, spread=2.0):
    message = []
    for column in honest.T:
        low, high = column.min(), column.max()
        if column.mean() > 0:
            message.append(low / spread if low > 0 else spread * low)
        else:
            message.append(spread * high if high > 0 else high / spread)
    return repeated(np.array(message), own)


def rop(honest, own, *, v=None, z=1.0, angle=90.0, relocation=1.0, mixing=0.9):
    mean = honest.mean(0)
    v = mean if v is None else v
    place = relocation * v + (1 - relocation) * mean
    r = mixing * v + (1 - mixing) * mean
    r = r / np.linalg.norm(r)
    p = np.ones_like(r)
    p = p - r * (p @ r)
    p = p / np.linalg.norm(p)
    turned = math.sin(math.radians(angle)) * p + math.cos(math.radians(angle)) * r
    return repeated(place + z * turned, own)


def trimmed_mean(rows, f):
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(0)


def optimized(honest, own, *, attack, rule, evaluations=20, delta=10.0, ratio=0.8):
    """ByzFL's search, as its documentation describes it."""
    mean = honest.mean(0)

    def harm(strength):
        rows = np.concatenate([honest, attack(honest, own, strength)])
        return np.linalg.norm(rule(rows, len(own)) - mean)

    best, most, expanding = 0.0, harm(0.0), True
    for _ in range(evaluations - 1):
        found = harm(best + delta)
        if found > most:
            best, most = best + delta, found
            delta *= 2 if expanding else ratio
        else:
            expanding = False
            delta *= ratio
    return attack(honest, own, best)


def mimic_warmup(steps, z, warmup):
    """The worker copied in each step, for honest rows `[h, d]` of several steps."""
    chosen, mean = [], np.zeros_like(z)
    for t, honest in enumerate(steps):
        if t < warmup:
            mean = t / (1 + t) * mean + honest.mean(0) / (1 + t)
            u = sum((x - mean) * ((x - mean) @ z) for x in honest)
            u = u / np.linalg.norm(u)
            z = u if t == 0 else t / (1 + t) * z + u / (1 + t)
            z = z / np.linalg.norm(z)
            worker = int(np.argmax(honest @ z))
        chosen.append(worker)
    return chosen


def bit_flips(honest, own, *, bits, period, offset, how="flip"):
    """Of float32, from the text of their 32 bits."""
    out = own.astype(np.float32)
    for row in out:
        for j in range(offset, len(row), period):
            text = list(f"{row[j : j + 1].view(np.uint32)[0]:032b}")
            for bit in bits:
                other = "0" if text[bit] == "1" else "1"
                text[bit] = {"flip": other, "one": "1", "zero": "0"}[how]
            row[j : j + 1].view(np.uint32)[0] = int("".join(text), 2)
    return out
