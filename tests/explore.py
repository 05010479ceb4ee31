"""Looks for draws of the adversary's grammar that break a promise, for so many minutes.

    python -m tests.explore --minutes 60
    python -m tests.explore --rule krum --seed 7
    python -m tests.explore --rule krum --replay "Draw(m=9, f=3, d=3, seed=1)"

Prints what it meets as draws that `--replay` tries again, each made as simple as it can
be, once for every rule and words of the attack, and how many draws each rule was given.
"""

import argparse
import ast
import collections
import time

import jax
import numpy as np

from tests import conftest
from tests.aggregators import trials
from tests.aggregators.adversary import TWO_WIDTHS, Draw, random_draw

EDGES = (24, 25, 48, 49, 64, 65, 128, 129, 512, 513)  # Where the code's ways part.
SMALL = (5, 7, 9, 11, 13, 17)
COORDINATES = (1, 3, 12, 70)
DTYPES = ("float32", "float32", "float32", "bfloat16", "float16")
MOST_WORK = 3e7
# Draws of one compiled program, and the seconds they may take.
DRAWS, SECONDS = 300, 5.0


def shape_of(subject, rng):
    """(m, f, d) that the subject serves, small half of the time."""
    while True:
        m = int(rng.choice(SMALL if rng.random() < 0.6 else EDGES))
        most = subject.most(m)
        if most < 1:
            continue
        f = int(rng.choice([most, most, min(2, most), rng.integers(1, most + 1)]))
        if subject.work(m, f) <= MOST_WORK:
            return m, f, int(rng.choice(COORDINATES))


def explore(names, minutes, seed):
    rng = np.random.default_rng(seed)
    counts, broken = collections.Counter(), collections.Counter()
    singles = [name for name in names if name in trials.SINGLE]
    pairs = [name for name in names if name in trials.PAIRS]
    seen, shown = set(), set()  # Kinds, and those of the simplest draws.
    until = time.monotonic() + 60 * minutes
    programs, queue = 0, []
    while time.monotonic() < until:
        # Of the rules themselves every one, of the pairs of meta-rules a quarter.
        queue = queue or singles + list(rng.permutation(pairs)[: -(-len(pairs) // 4)])
        name = str(queue.pop(int(rng.integers(len(queue)))))
        subject = trials.SUBJECTS[name]
        m, f, d = shape_of(subject, rng)
        x64 = bool(rng.random() < 0.3)
        weighted = subject.weighted and bool(rng.random() < 0.5)
        dtype = str(
            rng.choice([*DTYPES, *("float64", "float64", TWO_WIDTHS, TWO_WIDTHS) * x64])
        )
        first = int(rng.integers(2**31))
        stop = min(until, time.monotonic() + SECONDS)
        for k in range(DRAWS):
            draw = random_draw(
                first + k, m, f, d, dtype=dtype, weighted=weighted, x64=x64
            )
            counts[name] += 1
            violation = attempt(name, draw)
            if violation is not None:
                broken[name] += 1
                if kind(violation) not in seen:
                    seen.add(kind(violation))
                    violation = simplest(violation)
                    if kind(violation) not in shown:
                        shown.add(kind(violation))
                        print(violation, flush=True)
            if time.monotonic() > stop or (violation and violation.got is None):
                break
        programs += 1
        if programs % 50 == 0:  # Each holds memory maps, of which there is an end.
            trials.forget()
            jax.clear_caches()
    return counts, broken


def kind(violation):
    draw = violation.draw
    ordinary = draw.scale == 1
    return violation.name, draw.attack, draw.dtype, draw.x64, ordinary


def attempt(name, draw):
    """What a draw breaks, an error being one way to."""
    try:
        return trials.tried(name, draw)
    except (TypeError, ValueError, FloatingPointError) as error:
        text = f"raised {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        return trials.Violation(name, draw, np.inf, None, text)


def simplest(violation):
    return violation if violation.got is None else trials.simplest(violation)


def parsed(text):
    """A draw as it is printed."""
    call = ast.parse(text, mode="eval").body
    values = [ast.literal_eval(value) for value in call.args]
    return Draw(*values, **{k.arg: ast.literal_eval(k.value) for k in call.keywords})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rule", action="append", help="part of a name; repeatable")
    parser.add_argument("--replay", help="a Draw(...) to try on the rule of that name")
    options = parser.parse_args()
    print(f"Compiled with {conftest.QUICK_FLAGS}, which importing it has set.")
    if options.replay:
        for name in options.rule:
            print(attempt(name, parsed(options.replay)) or f"{name}: kept")
        return
    wanted = options.rule or [""]
    names = [n for n in trials.SUBJECTS if any(part in n for part in wanted)]
    names = [n for n in names if trials.SUBJECTS[n].most(SMALL[-1]) >= 1]
    counts, broken = explore(names, options.minutes, options.seed)
    print(f"\n{'draws':>8} {'broken':>8}  rule")
    for name in names:
        print(f"{counts[name]:8d} {broken[name]:8d}  {name}")
    print(f"{counts.total():8d} {broken.total():8d}  in all, seed {options.seed}")


if __name__ == "__main__":
    main()
