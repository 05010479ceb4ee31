"""Every attack for rows of every width, with `jax_enable_x64` and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byzjax
from byzjax import attacks
from tests import attacks_table
from tests.attacks_table import F, M, table

KEY = jax.random.key(0)


def types(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def traced(attack, rows, state):
    return jax.eval_shape(lambda x, s: attack.update(x, s, key=KEY), rows, state)


@pytest.mark.slow
@table
def test_every_attack_takes_every_width_with_x64(row):
    attack = row.make(num_byzantine=F)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        with jax.enable_x64(True):
            rows = jnp.asarray(attacks_table.matrix(), dtype)
            state = attack.init(rows[0])
            out, after = traced(attack, rows, state)
        assert (out.shape, out.dtype) == (rows.shape, dtype)
        assert types(after) == types(state), "a scan could not carry this state"


@table
def test_numpys_doubles_are_floats_without_x64(row):
    rows = attacks_table.matrix().astype(np.float64)
    attack = row.make(num_byzantine=F)
    out, _ = jax.eval_shape(lambda: attack.update(rows, attack.init(rows[0]), key=KEY))
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize(
    "attack",
    [
        attacks.mimic(warmup=2, num_byzantine=1),
        attacks.free_rider("stale", num_byzantine=1),
        attacks.rop(num_byzantine=1),
        attacks.rop(aggregator=byzjax.centered_clipping(1.0), num_byzantine=1),
    ],
    ids=["mimic", "free_rider", "rop", "rop informed"],
)
def test_a_state_keeps_the_dtype_of_its_parameters(attack, dtypes):
    state = attack.init(jnp.ones(3, dtypes[0]))
    out, after = traced(attack, jnp.ones((5, 3), dtypes[1]), state)
    assert out.dtype == dtypes[1]
    assert types(after) == types(state)


@table
def test_a_tree_without_coordinates(row):
    attack = row.make(num_byzantine=F)
    rows = jnp.ones((M, 0))
    if row.name in ("small_perturbation", "small_perturbation 9"):
        with pytest.raises(ValueError, match=r"a coordinate of the updates.* for 0 co"):
            traced(attack, rows, attack.init(rows[0]))
        return
    assert traced(attack, rows, attack.init(rows[0]))[0].shape == (M, 0)


@table
def test_no_attackers_forge_no_messages(row):
    honest, attack = jnp.ones((5, 3)), row.make(num_byzantine=0)
    state = attack.init(honest[0])
    sent, after = attack.forge(honest, None, state, num_byzantine=0, key=None)
    assert sent.shape == (0, 3)
    assert after is state


def test_own_messages_are_one_for_each_attacker():
    match = r"num_byzantine rows of own messages, got 3 and num_byzantine=2"
    with pytest.raises(ValueError, match=match):
        attacks.sign_flip().forge(
            jnp.ones((5, 3)), jnp.ones((3, 3)), (), num_byzantine=2
        )


def test_messages_of_another_dtype_or_structure_are_refused():
    def sent(message):
        return byzjax.Attack(lambda *_, **__: (message, ()), num_byzantine=1)

    rows = {"a": jnp.ones((4, 2), jnp.bfloat16)}
    with pytest.raises(TypeError, match=r"keep the dtype bfloat16, got float32 at .*a"):
        sent({"a": jnp.ones((1, 2))}).apply(rows)
    with pytest.raises(ValueError, match=r"its messages to have the structure .*'a'"):
        sent({"b": jnp.ones((1, 2))}).apply(rows)
    with pytest.raises(ValueError, match="rows need one shape"):
        sent({"a": jnp.ones((1, 3), jnp.bfloat16)}).apply(rows)
