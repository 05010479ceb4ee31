"""What compiled programs do, counted: passes, sorts, memory, size. Not seconds."""

import re

import jax
import jax.numpy as jnp
import pytest

import byzjax
from tests.compiling import AS_USERS_DO

pytestmark = pytest.mark.slow

M, F, D = 17, 7, 200_000
ONE = D * 4  # Bytes of [d].
STACK = M * ONE

# name: (rule, how many stacks of bytes it may touch, how many [d] it may keep beside
# its input and output). XLA counts a loop's body once, so passes in blocks count less,
# and a pass for squares that leave the range of floats counts as if it were made. Its
# block of the stack is what is kept, five [d] here, and half of one in what it is seen
# from: one row, or for each row one of its crowd.
RULES = {
    "mean": (byzjax.mean(), 1.2, 0.2),
    "median": (byzjax.median(), 1.3, 0.2),
    "trimmed_mean": (byzjax.trimmed_mean(F), 1.3, 0.2),
    "meamed": (byzjax.meamed(F), 1.3, 0.2),
    "phocas": (byzjax.phocas(F), 1.3, 0.2),
    "monna": (byzjax.monna(F), 2.6, 2.7),
    "ctma(median)": (byzjax.ctma(byzjax.median(), F), 3.6, 5.2),
    "krum": (byzjax.krum(F), 3.0, 7.6),
    # Rows far out ask for one pass more.
    "geometric_median": (byzjax.geometric_median(), 4.2, 7.6),
    "bulyan": (byzjax.bulyan(3), 3.6, 7.6),
    # Each mean of rows counts as what it reads, though it is in cache by then.
    "nnm(median)": (byzjax.nnm(byzjax.median(), F), 15.5, 7.6),
}


def compiled(rule, m=M, d=D):
    x = jax.ShapeDtypeStruct((m, d), jnp.float32)
    return jax.jit(rule.aggregate).lower(x).compile(AS_USERS_DO)


def sorts_of_columns(text, d):
    """Sorts in a compiled program whose operand has d columns."""
    lines = [line for line in text.splitlines() if " sort(" in line]
    return [line for line in lines if f",{d}]" in line or f"[{d}]" in line]


@pytest.mark.parametrize("name", RULES)
def test_what_is_read_and_kept(name):
    rule, stacks, kept = RULES[name]
    program = compiled(rule)
    assert program.cost_analysis()["bytes accessed"] <= stacks * STACK
    assert program.memory_analysis().temp_size_in_bytes <= kept * ONE
    assert not sorts_of_columns(program.as_text(), D)


@pytest.mark.parametrize(
    "rule, m",
    [
        (byzjax.mean(), 128),
        (byzjax.median(), 128),
        (byzjax.median(), 512),
        (byzjax.krum(F), M),
        (byzjax.ctma(byzjax.median(), F), M),
        (byzjax.nnm(byzjax.median(), F), 33),
    ],
)
def test_no_loop_over_columns_is_one_kernel(rule, m):
    """It would run on one core. XLA:CPU may make a call of small loops only."""
    text = compiled(rule, m).as_text()
    calls = [line for line in text.splitlines() if "xla_cpu_small_call" in line]
    assert not [line for line in calls if f"{D}]" in line]
    # Only later releases would make a call; this keeps all of them from it.
    assert re.search(r"= s32\[2\]\S* sort\(", text)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "meamed", "phocas"])
def test_one_pass_is_one_fusion(name):
    text = compiled(RULES[name][0]).as_text()
    entry = text[text.index("ENTRY") :]
    assert entry.count(" fusion(") <= 2
    assert " while(" not in entry


@pytest.mark.parametrize("m", [65, 128, 512])
def test_what_a_trimmed_mean_sums_is_written(m):
    """Fused with the sum it would be computed one number at a time."""
    text = compiled(byzjax.trimmed_mean(F), m=m).as_text()
    assert re.search(rf"= f32\[{m},\d+\]\S* fusion\(", text)


@pytest.mark.parametrize(
    "m, d", [(M, 100_000), (65, 1_000_000), (128, 1_000_000), (512, 1_000_000)]
)
@pytest.mark.parametrize(
    "name", ["mean", "meamed", "phocas", "monna", "krum", "ctma(median)"]
)
def test_memory_beside_the_stack_does_not_grow_with_it(name, m, d):
    rule = RULES[name][0]
    sizes = [
        compiled(rule, m=m, d=columns).memory_analysis().temp_size_in_bytes
        for columns in (d, 4 * d)
    ]
    assert sizes[1] - sizes[0] <= 1.5 * 4 * 3 * d  # One [d] at most.


def size(rule, updates):
    return jax.jit(rule.aggregate).lower(updates).as_text().count("\n")


@pytest.mark.parametrize("name", ["median", "krum", "geometric_median", "ctma(median)"])
def test_programs_of_many_workers_are_bounded(name):
    few, many, most, more = (
        size(RULES[name][0], jax.ShapeDtypeStruct((m, 100_000), jnp.float32))
        for m in (64, 66, 512, 4096)
    )
    assert most < 2 * many
    assert most < 3.5 * few
    assert more <= 1.1 * most  # Sums in pairs grow with the logarithm.


@pytest.mark.parametrize("name", ["median", "geometric_median", "ctma(median)"])
def test_programs_of_many_leaves_are_bounded(name):
    shapes = [(3, 3, 16, 16), (16,), (16,), (16, 40)] * 25
    tree = [jax.ShapeDtypeStruct((M, *shape), jnp.float32) for shape in shapes]
    one = jax.ShapeDtypeStruct((M, 1000), jnp.float32)
    assert size(RULES[name][0], tree) < size(RULES[name][0], one) + 30 * len(tree)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "meamed"])
def test_leaves_of_many_workers_share_a_loop(name):
    """A selection among many is a long program: that of leaves of any width is one."""

    def of_leaves(count):
        shapes = [(100, 5000 + i) for i in range(count)]
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    few, many = (size(RULES[name][0], of_leaves(count)) for count in (1, 20))
    assert many < 1.5 * few


def tree_of_equals(leaves, m):
    leaf = jax.ShapeDtypeStruct((m, 128, 128), jnp.float32)
    return dict.fromkeys(range(leaves), leaf)


@pytest.mark.parametrize("name, m, more", [("ctma(median)", M, 7), ("krum", 65, 14)])
def test_leaves_of_one_width_share_a_loop(name, m, more):
    """But for passes around another centre or in another unit, which are rare."""
    few, many = (
        jax.jit(RULES[name][0].aggregate)
        .lower(tree_of_equals(leaves, m))
        .as_text()
        .count("stablehlo.while")
        for leaves in (1, 8)
    )
    assert many == few + more


@pytest.mark.parametrize("name", ["krum", "ctma(median)"])
def test_memory_does_not_grow_with_the_number_of_leaves(name):
    """Each leaf's pass uses the memory of the one before."""

    def kept(leaves):
        lowered = jax.jit(RULES[name][0].aggregate).lower(tree_of_equals(leaves, M))
        program = lowered.compile(AS_USERS_DO)
        return program.memory_analysis().temp_size_in_bytes

    assert kept(24) - kept(3) < 21 * 128 * 128 * 4  # What they add to [d].


def test_the_counts_see_a_sort_and_a_copy():
    x = jax.ShapeDtypeStruct((M, D), jnp.float32)
    program = jax.jit(lambda x: jnp.median(x, axis=0)).lower(x).compile(AS_USERS_DO)
    kept = program.memory_analysis().temp_size_in_bytes
    assert sorts_of_columns(program.as_text(), D) or kept > STACK
    assert program.cost_analysis()["bytes accessed"] > 2 * STACK
