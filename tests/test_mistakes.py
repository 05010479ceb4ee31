"""Mistakes that used to train on in silence are refused with a way out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks, poisoning
from tests.training import least_squares

MEDIAN = byzjax.median()
NNM = byzjax.nnm(MEDIAN, 2)
GRADIENT = jnp.arange(7.0)
ROWS, WEIGHTS, KEY = jnp.ones((9, 4)), jnp.ones(9), jax.random.key(0)
TREE = {"b": jnp.ones(3), "w": jnp.ones((5, 3))}
CLIENTS = [jax.tree.map(lambda x, i=i: x + i, TREE) for i in range(5)]
STACKED = byzjax.stack(CLIENTS)


def refused(error, match, function, *args, **kwargs):
    with pytest.raises(error, match=match):
        jax.eval_shape(lambda: function(*args, **kwargs))


# --- an attack without a number of attackers ------------------------------------------


def trainer(**changed):
    return least_squares.make(num_byzantine=None, attack=None, **changed)


@pytest.mark.parametrize(
    "parts",
    [
        dict(attack=attacks.sign_flip()),
        dict(attack=attacks.alie()),
        dict(poison=lambda batch: batch),
        dict(
            model_state_attack=attacks.nan(),
            has_model_state=True,
            loss_fn=least_squares.loss_fn,
        ),
    ],
    ids=["attack", "attack of honest messages", "poison", "model state"],
)
def test_an_attack_or_poison_needs_a_number(parts):
    match = r"trainer needs num_byzantine with (\w*attack|poison), got .*=None"
    with pytest.raises(ValueError, match=match):
        least_squares.make(num_byzantine=None, **{"attack": None, **parts})
    least_squares.make(num_byzantine=0, **{"attack": None, **parts})


def test_an_attack_brings_its_own_number():
    """The same run as with the number given to the trainer."""
    results = [
        least_squares.scanned(least_squares.make(num_byzantine=f, attack=attack))[0]
        for f, attack in ((None, attacks.ipm(num_byzantine=2)), (2, attacks.ipm()))
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)
    searched = attacks.optimized(
        lambda z: attacks.ipm(z, num_byzantine=2), MEDIAN, num_evaluations=1
    )
    assert searched.num_byzantine == 2


def test_poison_alone_counts():
    poison = poisoning.label_flip(10)
    with pytest.raises(ValueError, match="trainer needs num_byzantine with poison"):
        trainer(poison=poison)


def test_two_numbers_are_refused():
    match = r"one number of attackers, got num_byzantine={} and attack's .*=2"
    for other in (0, 1, 3):
        with pytest.raises(ValueError, match=match.format(other)):
            least_squares.make(num_byzantine=other, attack=attacks.ipm(num_byzantine=2))
    least_squares.make(num_byzantine=2, attack=attacks.ipm(num_byzantine=2))


def test_without_attack_there_is_no_attacker():
    least_squares.make(num_byzantine=None, attack=None)


# --- a missing vmap -------------------------------------------------------------------

CHAINS = {
    "rule": NNM,
    "rule, sgd": optax.chain(NNM, optax.sgd(0.1)),
    "attack, rule": optax.chain(attacks.ipm(num_byzantine=2), NNM),
    "mixing by coordinates": byzjax.bucketing(MEDIAN, 2),
    "clipping": byzjax.clipping(MEDIAN, 1.0),
    "with_key": byzjax.with_key(byzjax.bucketing(MEDIAN, 2), jax.random.key(0)),
    "weights": optax.chain(byzjax.geometric_median()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_one_gradient_is_no_stack(name):
    chain, key = CHAINS[name], jax.random.key(0)
    state = chain.init(GRADIENT)
    extra = {"key": key}
    match = r"updates need to be stacked, .* got shape \(7,\) .*: .*jax\.vmap\("
    refused(ValueError, match, chain.update, GRADIENT, state, GRADIENT, **extra)
    rows = jnp.stack([GRADIENT] * 6)
    jax.eval_shape(lambda: chain.update(rows, state, GRADIENT, **extra))


def test_one_gradient_is_no_stack_in_a_tree():
    for rule in (NNM, attacks.ipm(num_byzantine=1)):
        match = r"same number of workers in every leaf, got 3 at .*stacked.*jax\.vmap\("
        state = rule.init(TREE)
        refused(ValueError, match, rule.update, TREE, state)
        refused(ValueError, match, rule.update, TREE, state, TREE)
    refused(ValueError, match, NNM.aggregate, TREE)
    refused(ValueError, match, attacks.ipm().apply, TREE, num_byzantine=1)
    refused(ValueError, match, byzjax.influence, NNM, TREE)
    match = r"got a scalar at .*: stacked leaves are .*jax\.vmap\("
    refused(ValueError, match, NNM.aggregate, {"a": jnp.ones(3), "b": jnp.ones(())})


def test_a_stack_of_other_shapes_is_refused():
    state = MEDIAN.init(TREE)
    wrong = STACKED | {"b": jnp.ones((5, 4))}
    match = r"got shape \(5, 4\) at \['b'\] for a parameter of shape \(3,\)"
    refused(ValueError, match, MEDIAN.update, wrong, state, TREE)
    match = "updates need to be stacked, with the structure of params"
    refused(ValueError, match, MEDIAN.update, {"b": STACKED["b"]}, state, TREE)


@pytest.mark.parametrize("name", ["momentum", "storm"])
def test_links_of_one_worker_name_per_worker(name):
    link = getattr(byzjax, name)()
    extra = dict(grad_fn=lambda x: x, prev_params=TREE)
    match = rf"{name} needs the updates of one worker, .* byzjax\.per_worker\({name}"
    refused(ValueError, match, link.update, STACKED, link.init(TREE), TREE, **extra)


# --- a list of trees ------------------------------------------------------------------

LISTS = {
    "dicts": CLIENTS,
    "a tuple": tuple(CLIENTS),
    "lists of arrays": [jax.tree.leaves(tree) for tree in CLIENTS],
    "vectors": [GRADIENT, GRADIENT, GRADIENT],
    "equal sizes": [{"w": jnp.ones((4, 4)), "b": jnp.ones(4)}] * 3,
    "scalars": [{"w": jnp.ones(4), "b": jnp.ones(())}] * 3,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_trees_is_told_how_to_stack(name):
    trees, match = LISTS[name], r"a list of one tree a worker .* byzjax\.stack\(trees\)"
    refused(ValueError, match, MEDIAN.aggregate, trees)
    refused(ValueError, match, attacks.ipm().apply, trees, num_byzantine=1)
    refused(ValueError, match, byzjax.influence, MEDIAN, trees)
    refused(ValueError, match, MEDIAN.update, trees, MEDIAN.init(trees[0]), trees[0])
    jax.eval_shape(lambda: MEDIAN.aggregate(byzjax.stack(trees)))


def test_a_list_of_equal_layers_is_a_stacked_tree_beside_its_params():
    layers = [{"w": jnp.ones((5, 4, 4)), "b": jnp.ones((5, 4))}] * 3
    params = jax.tree.map(lambda x: x[0], layers)
    jax.eval_shape(lambda: MEDIAN.update(layers, MEDIAN.init(params), params))
    jax.eval_shape(lambda: MEDIAN.aggregate(dict(enumerate(layers))))
    scalars = (jnp.ones(5), jnp.ones(5))
    params = (jnp.ones(()), jnp.ones(()))
    jax.eval_shape(lambda: MEDIAN.update(scalars, MEDIAN.init(params), params))
    aksel = byzjax.aksel(1)
    jax.eval_shape(lambda: aksel.update(scalars, aksel.init(params), params))


NAMED = {f"client_{i}": tree for i, tree in enumerate(CLIENTS)}
STACK_VALUES = r"byzjax\.stack\(list\(trees\.values\(\)\)\)"


def test_a_dict_of_clients_is_told_how_to_stack():
    """Where their leaves have no common first axis, or are like params."""
    match = rf"same number of workers .* {STACK_VALUES}"
    for use in (
        MEDIAN.aggregate,
        lambda x: attacks.ipm().apply(x, num_byzantine=1),
        lambda x: byzjax.influence(MEDIAN, x),
        lambda x: MEDIAN.update(x, MEDIAN.init(TREE), TREE),
    ):
        refused(ValueError, match, use, NAMED)
    like = {"b": jnp.ones(3), "w": jnp.ones((3, 5))}  # Of one first axis.
    clients = dict.fromkeys(range(4), like)
    for number in (1, 4):
        some = dict(list(clients.items())[:number])
        match = rf"got a dict of {number} trees like params: .*{STACK_VALUES}"
        refused(ValueError, match, MEDIAN.update, some, MEDIAN.init(like), like)
    with pytest.raises(TypeError, match=r": give list\(trees\.values\(\)\)$"):
        byzjax.stack(clients)
    jax.eval_shape(lambda: MEDIAN.aggregate(byzjax.stack([*clients.values()])))


def test_what_may_be_a_dict_of_clients_is_mentioned():
    """It may as well be a stacked tree of equal layers."""
    layers = {i: {"w": jnp.ones((3, 5)), "b": jnp.ones(3)} for i in range(7)}
    match = rf"got num_workers=3 .*stacked leaves .*jax\.vmap\(.*{STACK_VALUES}"
    refused(ValueError, match, NNM.aggregate, layers)
    jax.eval_shape(lambda: byzjax.nnm(MEDIAN, 1).aggregate(layers))
    params = jax.tree.map(lambda x: x[0], layers)
    jax.eval_shape(lambda: MEDIAN.update(layers, MEDIAN.init(params), params))


def test_too_few_workers_say_where_their_number_came_from():
    """One gradient in the place of a stack may be short; params would have told."""
    gradient = jnp.ones(3)
    match = r"got num_workers=3 and .*first axis of updates; stacked .*jax\.vmap\("
    refused(ValueError, match, NNM.update, gradient, NNM.init(gradient))
    refused(ValueError, match, NNM.aggregate, gradient)
    refused(ValueError, match, byzjax.influence, NNM, gradient)
    rows = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"num_workers=3 and num_byzantine=2$"):
        NNM.update(rows, NNM.init(rows[0]), rows[0])


def test_stack_is_a_row_for_each_tree():
    for given in (CLIENTS, jax.tree.map(np.asarray, CLIENTS)):
        stacked = byzjax.stack(given)
        for worker, tree in enumerate(CLIENTS):
            row = jax.tree.map(lambda x, i=worker: x[i], stacked)
            jax.tree.map(np.testing.assert_array_equal, row, tree)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(stacked))
    jax.jit(byzjax.stack)(CLIENTS)


@pytest.mark.parametrize(
    "bad, error, match",
    [
        (
            TREE,
            TypeError,
            r"a list of one tree a worker, got dict: give list\(trees.val",
        ),
        (iter([TREE]), TypeError, r"list_iterator: give list\(trees\)$"),
        ([], ValueError, "stack needs trees of at least one worker, got an empty list"),
        ([1.0, 2.0], TypeError, r"stack needs arrays as leaves, got float at trees\[0"),
        (
            [jnp.ones(3), jnp.ones(4)],
            ValueError,
            r"stack needs trees\[1\] to have .*\(3,\), got \(4,\)",
        ),
        ([TREE, {"w": TREE["w"]}], ValueError, r"stack needs trees\[1\] to have"),
        (
            [TREE, jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE)],
            TypeError,
            r"one dtype, got float32 in trees\[0\] and bfloat16 in trees\[1\]\['b'\]",
        ),
    ],
)
def test_what_cannot_be_stacked(bad, error, match):
    with pytest.raises(error, match=match):
        byzjax.stack(bad)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 1, 2)])
def test_a_list_of_equal_trees_is_no_stack_whatever_their_shapes(shape):
    trees = [np.ones(shape, np.float32)] * 6
    for use in (
        byzjax.median().aggregate,
        byzjax.attacks.sign_flip(num_byzantine=1).apply,
        lambda x: byzjax.influence(byzjax.median(), x),
    ):
        with pytest.raises(ValueError, match=r"byzjax\.stack\(trees\)"):
            use(trees)
