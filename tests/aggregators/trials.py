"""Rules and pairs of meta-rules against draws of the adversary's grammar."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from tests import promises, rules
from tests.aggregators import adversary
from tests.aggregators.adversary import Draw
from tests.aggregators.words import READS_END
from tests.envelopes import Envelope, envelope, norm
from tests.promises import Promise, Region
from tests.rules import Rule


class Subject(NamedTuple):
    """A rule, or meta-rules over one, and what is promised."""

    name: str
    make: Callable[[int, int], Any]  # (m, f) → rule.
    most: Callable[[int], int]  # m → the largest f, negative if none.
    promise: Promise
    weighted: bool = False
    honest_row: Callable[[int], int] | None = None  # m → a row that has to be honest.
    reference: bool = False
    work: Callable[[int, int], float] = lambda m, f: 0  # Operations, if beyond O(m³).


# --- subjects -------------------------------------------------------------------------


def _needs_reference(rule: Rule) -> bool:
    return "reference" in rule.extra(jnp.ones((2, 1)))


def _work(rule: Rule):
    each = {"smea": 3, "mda": 2}.get(rule.name)
    if each is None:
        return (
            (lambda m, f: 20 * m**4) if rule.name.startswith("caf") else lambda m, f: 0
        )
    return lambda m, f: math.comb(m, f) * m**each


def _of_rule(rule: Rule) -> Subject:
    return Subject(
        rule.name,
        rule.make,
        rule.most,
        rule.promise,
        rule.weighted,
        rule.honest_row,
        _needs_reference(rule),
        _work(rule),
    )


CLIPPED_TO = 2.0  # As in the rows of the table.

# name → rule, f → rule; promise → promise; workers m → those that the base sees.
METAS = {
    "ctma": (byzjax.ctma, promises.ctma, lambda m: m),
    "nnm": (byzjax.nnm, promises.nnm, lambda m: m),
    "bucketing": (
        lambda rule, f: byzjax.bucketing(rule, 2),
        promises.bucketing,
        lambda m: -(-m // 2),
    ),
    "clipping": (
        lambda rule, f: byzjax.clipping(rule, CLIPPED_TO),
        lambda base: promises.clipping(base, CLIPPED_TO),
        lambda m: m,
    ),
    "arc": (byzjax.arc, promises.arc, lambda m: m),
}
BASES = ("median", "geometric_median", "krum", "trimmed_mean")


def _wrapped(meta: str, base: Subject) -> Subject:
    wrap, promise, seen = METAS[meta]
    return Subject(
        f"{meta}({base.name})",
        lambda m, f: wrap(base.make(seen(m), f), f),
        lambda m: min(base.most(seen(m)), (m - 1) // 2),
        promise(base.promise),
        weighted=meta == "ctma" and base.weighted,
    )


SINGLE = {rule.name: _of_rule(rule) for rule in rules.RULES}
PAIRS = {
    subject.name: subject
    for outer, inner, base in itertools.product(METAS, METAS, BASES)
    for subject in [_wrapped(outer, _wrapped(inner, SINGLE[base]))]
    if subject.name not in SINGLE
}
SUBJECTS = SINGLE | PAIRS


# --- running --------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _program(name: str, m: int, f: int):
    subject = SUBJECTS[name]
    rule = subject.make(m, f)

    def run(rows, key, weights, reference):
        extra = {"reference": reference} if subject.reference else {}
        return rule.aggregate(rows, key=key, weights=weights, **extra)

    return jax.jit(run)


def forget() -> None:
    """Lets go of compiled programs."""
    _program.cache_clear()


def _in(x64: bool):
    return jax.enable_x64(True) if x64 else contextlib.nullcontext()


def run(name: str, stack: adversary.Stack, f: int, seed: int) -> np.ndarray:
    """What a subject makes of a stack [m, d], under the x64 that is set."""
    weights = stack.weights
    if weights is not None:
        wide = stack.rows.dtype == np.float64
        weights = jnp.asarray(weights, np.float64 if wide else np.float32)
    program = _program(name, len(stack.rows), f)

    def leaves(rows):
        if not stack.narrow:
            return jnp.asarray(rows)
        narrow, wide = np.split(rows, [stack.narrow], axis=-1)
        return {"a": jnp.asarray(narrow, jnp.float32), "b": jnp.asarray(wide)}

    rows, reference = leaves(stack.rows), leaves(stack.reference)
    got = program(rows, jax.random.key(seed), weights, reference)
    found = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(got)]
    return np.concatenate(found)


class Violation(NamedTuple):
    name: str
    draw: Draw
    excess: float  # How far outside, in units of what is allowed.
    got: np.ndarray | None  # None if it raised.
    text: str

    def __str__(self):
        return f"{self.name}: {self.draw}\n    {self.text}"


def tried(name: str, draw: Draw) -> Violation | None:
    """Runs one draw; what broke, or None."""
    subject = SUBJECTS[name]
    at = None if subject.honest_row is None else subject.honest_row(draw.m)
    stack = adversary.rows_of(draw, at=at)
    with _in(draw.x64):
        got = run(name, stack, draw.f, draw.seed)
        if any(word in READS_END for word in draw.attack.split("+")):
            stack = adversary.rows_of(draw, end=got, at=at)
            got = run(name, stack, draw.f, draw.seed)
    env = envelope(
        stack.rows,
        stack.byzantine,
        draw.f,
        _seen(stack.weights),
        reference=np.asarray(stack.reference, np.float64),
        eps=float(_wide(draw).eps),
    )
    region = subject.promise(env)
    if region is None:
        return None
    with np.errstate(over="ignore"):
        excess, text = _outside(got, region, env, draw)
    return Violation(name, draw, excess, got, text) if excess > 0 else None


def _seen(weights):
    return None if weights is None else weights.astype(np.float32).astype(np.float64)


def _wide(draw: Draw):
    """What sums are added up in."""
    return jnp.finfo("float64" if draw.dtype == "float64" else "float32")


# The part of a bound on lengths that an iteration or a root may be off by.
INEXACT = 1e-2
# In units of the last place, of the values that the sums are made of.
ROUNDING = 32
# What cannot be told from honest rows of zeros, its square being one.
ZERO = 1e-18


def _outside(got, region: Region, env: Envelope, draw: Draw) -> tuple[float, str]:
    """How far a result lies outside, relative to what is allowed; and in words."""
    if not np.isfinite(got).all():
        return np.inf, f"got {got[:4]}, which is not finite"
    narrow = jnp.finfo(adversary.narrowest(draw.dtype))
    wide = _wide(draw)
    largest = np.maximum(np.abs(env.low), np.abs(env.high))
    eps = float(narrow.eps) + ROUNDING * float(wide.eps)
    slack = eps * largest + env.m * float(narrow.tiny)
    if env.longest == 0:  # Then nothing says what is small.
        slack = slack + ZERO
    worst, text = 0.0, ""
    bounded = np.isfinite(region.low)
    if bounded.any():
        width = np.where(bounded, region.high - region.low, 0)
        sides = eps * np.maximum(np.abs(region.low), np.abs(region.high)) + slack
        beyond = np.maximum(region.low - got, got - region.high) - sides
        unit = np.maximum(width, sides)
        k = int(np.argmax(np.where(bounded, beyond / unit, -np.inf)))
        if beyond[k] > 0:
            worst = float(beyond[k] / unit[k])
            text = (
                f"coordinate {k} is {got[k]:.6g}, outside [{region.low[k]:.6g}, "
                f"{region.high[k]:.6g}]"
            )
    if np.isfinite(region.radius):
        far = float(norm(got - region.center))
        loose = float(norm(slack)) + eps * float(norm(region.center))
        beyond = far - (1 + INEXACT + eps) * region.radius - loose
        if beyond > 0:
            worst = max(worst, beyond / max(region.radius, loose))
            text = text or (
                f"{far:.6g} from the centre of a ball of radius {region.radius:.6g}; "
                f"the honest rows reach {env.reach:.3g} around theirs, of norm "
                f"{norm(env.center):.3g}"
            )
    if region.side is not None and not worst:
        side, length = region.side, norm(got)
        along = got / max(length, 1e-300) @ (side / max(norm(side), 1e-300))
        if along < -1e-3 and length > norm(slack):
            worst, text = -float(along), f"cosine {along:.3g} with what is trusted"
    return worst, text


# --- a simpler draw that breaks as well -----------------------------------------------


def _simpler(draw: Draw) -> Iterator[Draw]:
    words = draw.attack.split("+")
    if len(words) > 1:
        yield from (draw._replace(attack=word) for word in words)
    yield from (draw._replace(shape=s) for s in ("gaussian",) if s != draw.shape)
    yield from (draw._replace(scale=s) for s in (1.0,) if s != draw.scale)
    yield from (draw._replace(offset=s) for s in (0.0,) if s != draw.offset)
    if draw.weights not in ("none", "ones"):
        yield draw._replace(weights="ones")
    for power in (3.0, 6.0, 9.0, 12.0, 18.0, 30.0):
        if power < draw.power:
            yield draw._replace(power=power)


def simplest(violation: Violation) -> Violation:
    """The same with as little as breaks it; of the same shape, so nothing compiles."""
    again = True
    while again:
        again = False
        for draw in _simpler(violation.draw):
            simpler = tried(violation.name, draw)
            if simpler is not None:
                violation, again = simpler, True
                break
    return violation
