"""Every argument of every public factory, given what it is not.

It is taken, or refused by a ValueError or TypeError that names factory and argument.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import byzjax
from byzjax import attacks, partition, poisoning

MEDIAN = byzjax.median()
SGD = optax.sgd(0.1)
LABELS = np.arange(8) % 4


def loss(params, batch):
    return jnp.sum((params - batch) ** 2)


# What a factory is given beside the argument that is tried.
GIVEN = {
    "num_byzantine": 1,
    "rule": MEDIAN,
    "aggregator": MEDIAN,
    "radius": 1.0,
    "max_norm": 1.0,
    "bucket_size": 2,
    "key": jax.random.key(0),
    "value": 1.0,
    "std": 1.0,
    "against": "krum",
    "attack": attacks.constant,
    "learning_rate": 0.1,
    "optimizer": SGD,
    "transform": SGD,
    "trees": [np.ones(2), np.ones(2)],
    "updates": jnp.ones((5, 2)),
    "count": 0,
    "labels": LABELS,
    "num_workers": 4,
    "rng": np.random.default_rng(0),
    "alpha": 10.0,
    "gamma": 0.5,
    "shards_per_worker": 1,
    "parts": [np.arange(4), np.arange(4, 8)],
    "num_classes": 4,
    "pattern": np.ones((2, 2)),
    "target": 1,
}
OTHERS = {
    "cap_weights": {"weights": np.ones(4), "max_share": 0.5},
    "trainer": {"loss_fn": loss, "server": SGD, "attack": None, "aggregator": MEDIAN},
    "label_flip": {"labels": 1},
    "backdoor": {"labels": 1},
    "anytime": {},
    "intermittent": {"attack": attacks.constant(1.0), "probability": 0.5},
    "guard_report": {"state": byzjax.guard(MEDIAN, 4).init(np.ones(2))},
}
KINDS = {
    "None": None,
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "True": True,
    "x": "x",
    "float32": np.float32(0.5),
    "int64": np.int64(1),
    "bfloat16": jnp.bfloat16(0.5),
    "huge": 10**400,
    "1e308": 1e308,
    "1e-320": 1e-320,
    "complex": 1j,
    "array": np.array([1.0, 2.0]),
    "rule": MEDIAN,
    "object": object(),
    "class": float,
}
# Where an argument may be None, by its default or its meaning, it is None there.
NONE_IS_MEANT = {
    ("small_perturbation", "coordinate"),
}
# Passed on as they are: read by nobody until a batch or a rule has them.
ANYTHING = {
    ("label_flip", "labels"),
    ("backdoor", "labels"),
    ("backdoor", "inputs"),
}
# Another name that the error begins with, or calls the argument by.
CALLED = {
    ("influence", "updates"): ("updates", "updates"),
    ("influence", "key"): ("median", "key"),
    ("influence", "weights"): ("median", "weights"),
    ("shards", "rng"): ("shards", "rng"),
}


def factories():
    for module in (byzjax, attacks, partition, poisoning):
        for name in getattr(module, "__all__", dir(module)):
            function = getattr(module, name)
            public = inspect.isfunction(function) and not name.startswith("_")
            if public and function.__module__.startswith(byzjax.__name__):
                yield name, function


CASES = [
    pytest.param(name, function, argument, id=f"{name}-{argument}")
    for name, function in factories()
    for argument, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and (name, argument) not in ANYTHING
]


def call(name, function, argument, value):
    needed = {
        other: OTHERS.get(name, {}).get(other, GIVEN.get(other))
        for other, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_KEYWORD
    }
    return function(**{**needed, argument: value})


@pytest.mark.parametrize("name, function, argument", CASES)
def test_an_argument_is_taken_or_refused_by_name(name, function, argument):
    owner, called = CALLED.get((name, argument), (name, argument))
    if argument == "num_byzantine" and function.__module__.startswith("byzjax.attacks"):
        owner = "attack"  # By `byzjax.Attack`, for all of them.
    default = inspect.signature(function).parameters[argument].default
    for kind, value in KINDS.items():
        try:
            call(name, function, argument, value)
        except (TypeError, ValueError) as error:
            message = str(error)
            assert message.startswith((f"{owner} ", f"an {owner} ")), (kind, message)
            assert called in message, (kind, message)
            nothing = default is None or (name, argument) in NONE_IS_MEANT
            assert not (kind == "None" and nothing), "None is what it is by default"


def test_a_class_is_no_schedule():
    """A class can be called with a count, and is what a default forgot to be."""
    for refuses in (
        lambda: byzjax.momentum(decay=float),
        lambda: byzjax.mu2sgd(float),
        lambda: byzjax.storm(beta=int),
        lambda: byzjax.anytime(optax.sgd(0.1), weight=float),
    ):
        with pytest.raises(TypeError, match=r"got .*=<class"):
            refuses()


def test_coefficients_that_are_no_floats_are_refused():
    for refuses in (
        lambda: byzjax.mu2sgd(1e300),
        lambda: byzjax.anytime(optax.sgd(0.1), weight=1e300),
        lambda: byzjax.storm(beta=1e-320),
    ):
        with pytest.raises(ValueError, match=r"in the range of float32, 1\.18e-38 to"):
            refuses()


def test_the_sweep_has_the_library():
    assert len(CASES) > 120


# --- numbers of NumPy, and traced ones ------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(7, 3))
KEY = jax.random.key(1)
OF_NUMBERS = {
    "clipping": lambda x: byzjax.clipping(MEDIAN, x),
    "clipping of krum": lambda x: byzjax.clipping(byzjax.krum(1), x),
    "centered_clipping": lambda x: byzjax.centered_clipping(x, num_iterations=2),
    "clipped_clustering": lambda x: byzjax.clipped_clustering(max_norm=x),
    "signguard": lambda x: byzjax.signguard(lower=x, upper=4 * x),
    "flame": lambda x: byzjax.flame(noise=x),
    "foolsgold": lambda x: byzjax.foolsgold(epsilon=x),
    "geometric_median": lambda x: byzjax.geometric_median(
        num_iterations=3, smoothing=x
    ),
}
STATIC = {
    "geometric_median tolerance": lambda x: byzjax.geometric_median(
        num_iterations=3, tolerance=x
    ),
    "dnc c": lambda x: byzjax.dnc(1, c=x),
}
STRENGTHS = {
    "ipm": attacks.ipm,
    "alie": attacks.alie,
    "gaussian": attacks.gaussian,
    "constant": attacks.constant,
    "rop": attacks.rop,
    "small_perturbation": attacks.small_perturbation,
    "scaled_sign_flip": attacks.scaled_sign_flip,
    "fang": lambda x: attacks.fang("trimmed_mean", spread=x + 1),
}


def shape_of(make, dtype, *traced):
    rows = jnp.asarray(ROWS, dtype)
    built = make if not traced else None

    def used(rows, *numbers):
        tool = built() if built else make(*numbers)
        if isinstance(tool, byzjax.Attack):
            return tool.apply(rows, num_byzantine=2, key=KEY)
        return tool.aggregate(rows, key=KEY)

    return jax.eval_shape(used, rows, *traced)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [OF_NUMBERS, STATIC, STRENGTHS], ids=["rules", "static", "attacks"]
)
def test_numbers_of_every_width_go_with_rows_of_every_width(make):
    for function in make.values():
        for dtype in (jnp.float32, jnp.float64):
            with jax.enable_x64(True):
                for number in (np.float32(0.5), np.float64(0.5), np.int64(1), 1):
                    out = shape_of(lambda f=function, n=number: f(n), dtype)
                    assert out.dtype == dtype


@pytest.mark.parametrize("make", [OF_NUMBERS, STRENGTHS], ids=["rules", "attacks"])
def test_traced_numbers(make):
    for function in make.values():
        with jax.enable_x64(True):
            for number in (jnp.float32(0.5), jnp.float64(0.5), jnp.int32(1)):
                out = shape_of(function, jnp.float32, number)
                assert out.dtype == jnp.float32


@pytest.mark.parametrize("make", [OF_NUMBERS, STRENGTHS], ids=["rules", "attacks"])
def test_numbers_that_would_be_infinite_are_refused(make):
    for name, function in make.items():
        for number in (1e39, 1e308, 10**39):
            with pytest.raises(
                ValueError, match=rf"{name.split()[0]}.* float32, 1.18e"
            ):
                function(number)
            with jax.enable_x64(True):
                tool = function(min(number, 1e300))  # fang adds to it.
                assert shape_of(lambda t=tool: t, jnp.float64).dtype == jnp.float64
                with pytest.raises(
                    ValueError, match=r"rows' float32, at most 3.4e\+38"
                ):
                    shape_of(lambda t=tool: t, jnp.float32)


def test_numbers_that_would_be_zero_are_refused_where_zero_is():
    match = r"clipping needs max_norm in the range of float32, 1.18e-38 to .*=1e-320: "
    with pytest.raises(ValueError, match=match):
        byzjax.clipping(MEDIAN, 1e-320)
    match = r"float16, at most 6.55e\+04, got 100000"
    with pytest.raises(ValueError, match=match):
        attacks.constant(1e5).apply(jnp.ones((3, 2), jnp.float16), num_byzantine=1)


@pytest.mark.parametrize("name", STATIC)
def test_numbers_that_must_be_known(name):
    match = rf"{name.split()[0]} needs {name.split()[1]} to be a static number"
    with pytest.raises(TypeError, match=match):
        jax.eval_shape(lambda x: STATIC[name](x).aggregate(ROWS, key=KEY), 0.5)


def test_bounds_in_the_wrong_order():
    match = r"signguard needs lower <= upper, got lower=5 and upper=3"
    with pytest.raises(ValueError, match=match):
        byzjax.signguard(lower=5, upper=3)


def test_no_noise_needs_no_key():
    for zero in (0, np.float32(0), np.int64(0), jnp.zeros(())):
        byzjax.flame(noise=zero).aggregate(jnp.ones((3, 2)))


def test_arguments_in_the_wrong_order():
    for wrap in (byzjax.ctma, byzjax.nnm, byzjax.arc, byzjax.bucketing):
        with pytest.raises(TypeError, match=rf"{wrap.__name__} needs an aggregator"):
            wrap(3, MEDIAN)
    with pytest.raises(TypeError, match="trimmed_mean needs num_byzantine to be a sta"):
        byzjax.trimmed_mean(MEDIAN)
