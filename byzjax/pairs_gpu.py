"""Distances of all rows of a stack, taken pair by pair, in a kernel for NVIDIA GPUs.

A product of so few rows leaves most of a GPU idle. Here a thread keeps a column of some
rows and a sum for every pair of them in its registers. A few dozen rows come in groups,
whose pairs fit: within a group, and between two.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from byzjax import columns

# More rows are compared faster by a matrix product.
MOST_ROWS = 48
# Of a group that is alone, and of one among others: pairs that registers hold.
_MOST_ALONE = 18
_MOST_OF_GROUP = 11
_WARPS = 4
_LANES = 32 * _WARPS
_UNROLL = 2  # Columns of a thread that are on their way at once.
# Of each pair of groups: a few for every core, and so few that their sums are nothing.
_PROGRAMS = 528


def can_measure(rows: list[jax.Array]) -> bool:
    """Whether `measured` serves these arrays.

    A kernel is for one device: of sharded arrays it would ask for all on each. Its
    sums are float32, and its indices 32 bits. Without a GPU it is not even traced,
    which takes a second.
    """
    if jax.default_backend() != "gpu":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    on_one = jax.device_count() == 1 or mesh.are_all_axes_manual
    m = rows[0].shape[0]
    small = all(x.size < 2**31 - m * _LANES for x in rows)
    narrow = all(x.dtype.itemsize <= 4 for x in rows)
    return m <= MOST_ROWS and small and narrow and on_one


def measured(
    rows: list[jax.Array], *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Squared norms [m] and squared distances [m, m] of rows `[m, n]`, side by side.

    Neither is finite for rows that are not, or whose square overflows.

    Args:
      rows: for which `can_measure`.
      interpret: without a GPU, for tests.
    """
    whole, _ = columns.bundled(rows)
    unit = _LANES * _UNROLL
    parts, rest = [], []
    for x in whole:
        n = x.shape[1]
        programs = min(_PROGRAMS, n // unit)
        done = programs * unit and n - n % (programs * unit)
        if done:
            parts.append((x, programs, done // (programs * unit)))
        if done < n:
            rest.append(x[:, done:].astype(jnp.float32))
    if rest:
        together = jnp.concatenate(rest, axis=1)
        units = -(-together.shape[1] // unit)
        turns = -(-units // _PROGRAMS)
        programs = -(-units // turns)
        lacking = programs * turns * unit - together.shape[1]
        together = jnp.pad(together, ((0, 0), (0, lacking)))
        parts.append((together, programs, turns))
    m = rows[0].shape[0]
    sums = [_sums(x, programs, turns, interpret) for x, programs, turns in parts]
    whole_sum = functools.reduce(jnp.add, sums, jnp.zeros((m, m), jnp.float32))
    return jnp.diagonal(whole_sum), jnp.where(np.eye(m, dtype=bool), 0, whole_sum)


def _sums(x, programs, turns, interpret):
    """Σ (x_i − x_j)² [m, m], with Σ x_i² on the diagonal."""
    m = x.shape[0]
    num_groups = 1 if m <= _MOST_ALONE else -(-m // _MOST_OF_GROUP)
    size = -(-m // num_groups)
    inside = list(itertools.combinations_with_replacement(range(size), 2))
    across = list(itertools.product(range(size), repeat=2))
    total = jnp.zeros((num_groups * size,) * 2, jnp.float32)
    for pairs, groups in (
        (inside, [(g, g) for g in range(num_groups)]),
        (across, list(itertools.combinations(range(num_groups), 2))),
    ):
        if not groups:
            continue
        kernel = functools.partial(
            _kernel, groups=groups, pairs=pairs, size=size, last=m - 1, turns=turns
        )
        out = pl.pallas_call(
            kernel,
            grid=(len(groups), programs),
            out_shape=jax.ShapeDtypeStruct(
                (len(groups), programs, len(pairs)), jnp.float32
            ),
            out_specs=pl.BlockSpec((1, 1, len(pairs)), lambda k, p: (k, p, 0)),
            interpret=interpret,
            compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        )(x)
        at = np.asarray(groups) * size
        first, second = np.asarray(pairs).T
        i, j = at[:, :1] + first, at[:, 1:] + second
        sums = jnp.sum(out, axis=1)
        total = total.at[i, j].set(sums).at[j, i].set(sums)
    return total[:m, :m]


def _kernel(x, out, *, groups, pairs, size, last, turns):
    """A program: of a pair of groups, every so many columns.

    Of a row and itself it takes the square instead.
    """
    apart = groups[0][0] != groups[0][1]
    k, program = pl.program_id(0), pl.program_id(1)

    def read(start, side):
        first = jnp.int32(0)
        for number, pair in enumerate(groups):
            first = jnp.where(k == number, jnp.int32(pair[side] * size), first)
        # Rows that the last group lacks are the last row again.
        rows = [jnp.minimum(first + jnp.int32(i), last) for i in range(size)]
        return [x[row, pl.ds(start, _LANES)].astype(jnp.float32) for row in rows]

    def turn(t, sums):
        start = (t * pl.num_programs(1) + program) * (_LANES * _UNROLL)
        for u in range(_UNROLL):
            one = read(start + u * _LANES, 0)
            other = read(start + u * _LANES, 1) if apart else one
            gaps = [one[i] - other[j] if apart or i != j else one[i] for i, j in pairs]
            sums = tuple(s + gap * gap for s, gap in zip(sums, gaps, strict=True))
        return sums

    zeros = tuple(jnp.zeros((_LANES,), jnp.float32) for _ in pairs)
    for q, lanes in enumerate(lax.fori_loop(0, turns, turn, zeros)):
        out[0, 0, q] = jnp.sum(lanes)
