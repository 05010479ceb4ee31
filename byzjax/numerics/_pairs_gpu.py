"""Distances of all rows of a stack, taken pair by pair, in a kernel for NVIDIA GPUs.

A product of so few rows leaves most of a GPU idle. Here a thread keeps a column of some
rows and a sum for every pair of them in its registers. A few dozen rows come in groups,
whose pairs fit: within a group, and between two.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Of more, every row is read by many pairs of groups.
MOST_ROWS = 48
# Of a group that is alone, and of one among others: pairs that registers hold.
_MOST_ALONE = 18
_MOST_OF_GROUP = 11
_LANES = 128
# Of each pair of groups: what a large GPU holds at once.
_PROGRAMS = 264
# Elements of arrays that are copied side by side, and how many others there can be: a
# kernel takes seconds to compile.
_MOST_COPIED = 1 << 25
_MOST_WIDE = 8
# Of Hopper: what the kernel is written in has no older GPUs.
_CAPABILITY = 9
INTERPRET = None  # How it runs without a GPU, for tests.


def can_measure(rows: list[jax.Array]) -> bool:
    """Whether `measured` serves these arrays.

    A kernel is for one device: of sharded arrays it would ask for all on each. Its
    sums are float32, and its indices 32 bits. Without a GPU it is not even traced,
    which takes a second.
    """
    if jax.default_backend() != "gpu" or jax.device_count() > 1:
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    major = capability.partition(".")[0]
    recent = major.isdecimal() and int(major) >= _CAPABILITY
    small = all(x.size < 2**31 for x in rows)
    narrow = all(x.dtype.itemsize <= 4 for x in rows)
    few = rows[0].shape[0] <= MOST_ROWS and len(_split(rows)[1]) <= _MOST_WIDE
    return recent and small and narrow and few


@jax.custom_batching.custom_vmap
def measured(rows: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Squared norms [m] and squared distances [m, m] of rows `[m, n]`, side by side.

    Neither is finite for rows that are not, or whose square overflows.

    Args:
      rows: for which `can_measure`.
    """
    m = rows[0].shape[0]
    same = np.eye(m, dtype=bool)
    total = jnp.zeros((m, m), jnp.float32)
    rest = []
    copied, wide = _split(rows)
    for x in [*_side_by_side(copied), *wide]:
        turns = x.shape[1] // (_PROGRAMS * _LANES)
        if turns:
            total += _sums(x, turns)
        rest.append(x[:, turns * _PROGRAMS * _LANES :].astype(jnp.float32))
    x = jnp.concatenate(rest, axis=1)
    gaps = x[:, None] - jnp.where(same[:, :, None], 0, x[None])
    total += jnp.sum(gaps * gaps, axis=-1)
    return jnp.diagonal(total), jnp.where(same, 0, total)


@measured.def_vmap
def _one_by_one(axis_size, in_batched, rows):
    def of_all(x, batched):
        return x if batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))

    stacks = jax.tree.map(of_all, rows, in_batched[0])
    return lax.map(measured, stacks), (True, True)


def _split(rows):
    """Arrays that are copied side by side, the smallest ones, and the wide ones."""
    by_size = sorted(rows, key=lambda x: x.size)
    elements = np.cumsum([x.size for x in by_size])
    count = int(np.sum(elements <= _MOST_COPIED))
    return by_size[:count], by_size[count:]


def _side_by_side(arrays):
    of_dtype = {}
    for x in arrays:
        of_dtype.setdefault(x.dtype, []).append(x)
    return [jnp.concatenate(same, axis=1) for same in of_dtype.values()]


def _sums(x, turns):
    """Σ (x_i − x_j)² [m, m] over the first columns, with Σ x_i² on the diagonal."""
    m = x.shape[0]
    num_groups = 1 if m <= _MOST_ALONE else -(-m // _MOST_OF_GROUP)
    size = -(-m // num_groups)
    groups = range(num_groups)
    inside = list(itertools.combinations_with_replacement(range(size), 2))
    across = list(itertools.product(range(size), repeat=2))
    total = jnp.zeros((num_groups * size,) * 2, jnp.float32)
    for pairs, of_groups in (
        (inside, [(g, g) for g in groups]),
        (across, list(itertools.combinations(groups, 2))),
    ):
        if of_groups:
            sums = _kernel(x, pairs, of_groups, size, turns)
            at = np.asarray(of_groups) * size
            first, second = np.asarray(pairs).T
            i, j = at[:, :1] + first, at[:, 1:] + second
            total = total.at[i, j].set(sums).at[j, i].set(sums)
    return total[:m, :m]


def _kernel(x, pairs, groups, size, turns):
    """Sums for pairs of rows of pairs of groups; of a row and itself of its square.

    A program takes, of a pair of groups, every so many columns.
    """
    # Imported here: only what runs on a GPU needs it.
    from jax.experimental import pallas
    from jax.experimental.pallas import mosaic_gpu

    apart = groups[0][0] != groups[0][1]
    last = x.shape[0] - 1

    def first_rows(k, side):
        first = jnp.int32(groups[0][side] * size)
        for number, pair in enumerate(groups[1:], 1):
            first = jnp.where(k == number, jnp.int32(pair[side] * size), first)
        # Rows that the last group lacks are the last row again.
        return [jnp.minimum(first + jnp.int32(i), jnp.int32(last)) for i in range(size)]

    def body(x, out):
        program, k = lax.axis_index("program"), lax.axis_index("groups")
        one, other = first_rows(k, 0), first_rows(k, 1)

        def turn(t, sums):
            lanes = pallas.ds((t * _PROGRAMS + program) * _LANES, _LANES)
            a = [x[row, lanes].astype(jnp.float32) for row in one]
            b = [x[row, lanes].astype(jnp.float32) for row in other] if apart else a
            gaps = [a[i] - b[j] if apart or i != j else a[i] for i, j in pairs]
            return tuple(s + gap * gap for s, gap in zip(sums, gaps, strict=True))

        layout = mosaic_gpu.Layout.WG_STRIDED((_LANES,), 1)
        zero = mosaic_gpu.layout_cast(jnp.zeros((_LANES,), jnp.float32), layout)
        for q, lanes in enumerate(lax.fori_loop(0, turns, turn, (zero,) * len(pairs))):
            out[k, program, q] = jnp.sum(lanes)

    shape = (len(groups), _PROGRAMS, len(pairs))
    of_programs = mosaic_gpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(shape, jnp.float32),
        grid=(_PROGRAMS, len(groups)),
        grid_names=("program", "groups"),
        interpret=INTERPRET,
    )(x)
    return jnp.sum(of_programs, axis=1)
