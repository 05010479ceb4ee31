"""What the table of rules cannot say about the rules of the catalogue."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster

import byzjax
from byzjax.aggregators import clipped_clustering, dnc, flame, signguard, subsets
from byzjax.numerics.stacked import geometry
from tests import reference_catalogue as cat


def gaussian(m, d, seed=0):
    return np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)


def near(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=tolerance)


# --- numbers worked out by hand, and those that other libraries print -----------------

LADDER = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


@pytest.mark.parametrize(
    "rule, expected",
    [
        (byzjax.meamed(1), [2.5, 3.5, 4.5]),
        (byzjax.phocas(1), [2.5, 3.5, 4.5]),
        (byzjax.mda(1), [2.5, 3.5, 4.5]),
        (byzjax.smea(1), [2.5, 3.5, 4.5]),
        (byzjax.monna(1), [2.5, 3.5, 4.5]),
        (byzjax.monna(1, pivot=2), [5.5, 6.5, 7.5]),
        (byzjax.aksel(1), [2.5, 3.5, 4.5]),
        (byzjax.caf(1), [4.0, 5.0, 6.0]),
        (byzjax.cge(1), [2.5, 3.5, 4.5]),
        (byzjax.medoid(), [4.0, 5.0, 6.0]),
        (byzjax.sign_majority(), [1.0, 1.0, 1.0]),
        (byzjax.arc(byzjax.mean(), 1), [3.136680, 4.013349, 4.890018]),
        (byzjax.clipping(byzjax.mean(), 2.0), [0.817116, 1.119128, 1.421140]),
    ],
)
def test_on_a_ladder(rule, expected):
    near(rule.aggregate(LADDER), np.array(expected))


def test_bulyan_takes_the_lowest_of_equally_far_values():
    rule = jax.jit(byzjax.bulyan(2).aggregate)
    for seed in range(8):
        rows = np.random.default_rng(seed).integers(-3, 4, size=(11, 40))
        got = rule(jnp.asarray(rows, jnp.float32))
        expected = cat.bulyan()(rows.astype(np.float64), 2)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: byzjax.meamed(1, even="upper"), "even"),
        (lambda: byzjax.bulyan(1, selection="twice"), "selection"),
        (lambda: byzjax.bulyan(1, squared="thrice"), "squared"),
        (lambda: byzjax.bulyan(1).aggregate(jnp.ones((6, 2))), "4 * num_byzantine + 3"),
        (lambda: byzjax.caf(1, scale="none"), "scale"),
        (lambda: byzjax.monna(1, pivot=-1), "pivot"),
        (lambda: byzjax.monna(1, pivot=4).aggregate(LADDER), "pivot < num_workers"),
        (lambda: byzjax.aksel(1, num_selected=4).aggregate(LADDER), "num_selected"),
        (lambda: byzjax.mda(14).aggregate(jnp.ones((30, 2))), "145422675"),
        (lambda: byzjax.smea(10).aggregate(jnp.ones((22, 2))), "646646"),
        (lambda: byzjax.dnc(1).aggregate(LADDER), "key"),
        (lambda: byzjax.dnc(1, num_iterations=0), "num_iterations"),
        (lambda: byzjax.dnc(1, subsample=0), "subsample"),
        (lambda: byzjax.dnc(1, c=-1.0), "c"),
        (
            lambda: byzjax.dnc(1, c=3.0).aggregate(LADDER, key=jax.random.key(0)),
            "c * num_byzantine < num_workers",
        ),
        (lambda: byzjax.fltrust().aggregate(LADDER), "reference"),
        (
            lambda: byzjax.fltrust().aggregate(LADDER, reference=jnp.ones(2)),
            "(3,)",
        ),
        (
            lambda: byzjax.fltrust().aggregate(LADDER, reference={"a": jnp.ones(3)}),
            "structure",
        ),
        (
            lambda: byzjax.foolsgold(num_workers=4).aggregate(LADDER),
            "num_workers=4",
        ),
        (lambda: byzjax.signguard(lower=-1.0), "lower"),
        (lambda: byzjax.flame(noise=-0.1), "noise"),
        (lambda: byzjax.flame().aggregate(LADDER), "key"),
        (lambda: byzjax.clipped_clustering(linkage="ward"), "linkage"),
        (lambda: byzjax.clipped_clustering(max_norm=0.0), "max_norm"),
        (lambda: byzjax.clipped_clustering(window=2).aggregate(LADDER), "window"),
        (lambda: byzjax.clipping(byzjax.median(), -1.0), "max_norm"),
        (lambda: byzjax.arc(byzjax.median(), -1), "num_byzantine"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError) as error:
        build()
    assert message in str(error.value)


@pytest.mark.parametrize("wrap", [byzjax.clipping, byzjax.arc])
def test_meta_rules_need_a_rule(wrap):
    with pytest.raises(TypeError, match="aggregator"):
        wrap("median", 1)


# --- subsets --------------------------------------------------------------------------


@pytest.mark.parametrize("m, count", [(1, 1), (5, 3), (6, 1), (7, 7), (9, 5)])
def test_subsets_come_in_lexicographic_order(m, count):
    numbers = jnp.arange(math.comb(m, count), dtype=jnp.int32)
    members = subsets._subsets(m, count, numbers)
    wanted = list(itertools.combinations(range(m), count))
    assert [tuple(np.flatnonzero(s)) for s in np.asarray(members).T] == wanted
    assert np.array_equal(subsets.indices(members, count), wanted)


@pytest.mark.parametrize("rule, oracle", [("mda", cat.mda), ("smea", cat.smea)])
def test_more_subsets_than_a_chunk(rule, oracle):
    rows = gaussian(16, 5)
    assert math.comb(16, 7) > 2 * subsets._CHUNK
    got = jax.jit(getattr(byzjax, rule)(7).aggregate)(jnp.asarray(rows))
    near(got, oracle(rows.astype(np.float64), 7))


def test_of_equal_subsets_in_many_chunks_the_first_is_taken():
    got = jax.jit(byzjax.mda(7).aggregate)(jnp.eye(16))
    near(got, np.repeat([1 / 9, 0], [9, 7]))


# --- spectra --------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["all", "positive"])
def test_caf_finds_the_honest_mean_behind_outliers_of_all_sizes(scale):
    rows = gaussian(17, 12)
    rows[9:] *= 10.0 ** np.arange(2, 10)[:, None]
    got = byzjax.caf(8, scale=scale).aggregate(jnp.asarray(rows))
    assert np.linalg.norm(got - rows[:9].mean(axis=0)) < 2.5


def test_dnc_reads_the_same_coordinates_of_a_tree_and_its_matrix():
    rows = jnp.asarray(gaussian(6, 12))
    leaves = [rows[:, :5], rows[:, 5:5], rows[:, 5:6], rows[:, 6:]]
    for count in (1, 2, 5, 7, 11, 12, 40):
        for seed in range(5):
            key, all_of = jax.random.key(seed), jnp.ones(6, bool)
            whole = dnc._sampled_gram([rows], all_of, jnp.float32(1), count, key)
            near(dnc._sampled_gram(leaves, all_of, jnp.float32(1), count, key), whole)


def test_dnc_draws_every_coordinate_alike():
    """With one row along each axis, the diagonal tells which were drawn."""
    d, count = 12, 4
    rows = [jnp.concatenate([jnp.eye(d), -jnp.eye(d)])]
    drawn = jax.vmap(
        lambda key: jnp.diag(
            dnc._sampled_gram(rows, jnp.ones(2 * d, bool), jnp.float32(1), count, key)
        )[:d]
    )(jax.random.split(jax.random.key(0), 4000))
    near(jnp.mean(drawn > 0.5, axis=0), np.full(d, count / d), 0.04)


def test_dnc_filters_with_few_coordinates():
    rows = gaussian(11, 4000)
    rows[8:] += 1.0
    rule = byzjax.dnc(3, subsample=400, num_iterations=3)
    got = jax.jit(rule.aggregate)(jnp.asarray(rows), key=jax.random.key(1))
    near(got, rows[:8].mean(axis=0))


# --- trust and clusters ---------------------------------------------------------------


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_cosine_distances_are_exact_for_rows_alike_and_unlike(factor):
    rows = gaussian(8, 20).astype(np.float64)
    rows[2:] = rows[2] + 1e-3 * rows[2:]
    rows[1] *= 1e5
    rows = (rows * factor).astype(np.float32)
    got = geometry(jnp.asarray(rows)).cosine_distances()
    expected = cat.apart(rows.astype(np.float64))
    np.testing.assert_allclose(got[2:, 2:], expected[2:, 2:], rtol=1e-3)
    near(got, 1 - cosines(rows.astype(np.float64)), 1e-5)


def test_foolsgold_remembers():
    """Sybils that differ from step to step alike are found by what they sum up to."""
    rule = byzjax.foolsgold(num_workers=6)
    state = rule.init(jnp.zeros(30))
    rng = np.random.default_rng(0)
    aims = rng.normal(size=(5, 30))[[0, 1, 2, 3, 4, 4]]
    total = np.zeros((6, 30))
    for _ in range(8):
        rows = aims + 2.0 * rng.normal(size=(6, 30))
        total += rows
        out, state = rule.update(jnp.asarray(rows, jnp.float32), state)
    near(state.history, total, 1e-4)
    shares = np.linalg.lstsq(rows.T, np.asarray(out, np.float64), rcond=None)[0]
    assert np.all(shares[4:] < 0.5 * shares[:4].min())
    poisoned = jnp.asarray(rows, jnp.float32).at[2].set(jnp.nan)
    out, state = rule.update(poisoned, state)
    assert np.isfinite(out).all() and np.isfinite(state.history).all()


def test_foolsgold_sums_as_in_the_paper():
    rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
    near(byzjax.foolsgold(normalize=False).aggregate(rows), np.ones(2))


def test_clipped_clustering_remembers_norms():
    rule = byzjax.clipped_clustering(window=7)
    state = rule.init(jnp.zeros(4))
    seen = []
    for seed in range(4):
        rows = gaussian(3, 4, seed) * (seed + 1)
        seen = [*np.linalg.norm(rows, axis=1), *seen][:6]  # Of whole rounds.
        out, state = rule.update(jnp.asarray(rows), state)
        assert int(state.count) == len(seen)
        near(state.norms[: len(seen)], np.array(seen))
        lengths = np.linalg.norm(rows, axis=1)
        clipped = rows * np.minimum(1, np.median(seen) / lengths)[:, None]
        outcomes = [clipped[list(s)].mean(0) for s in [(0, 1), (0, 2), (1, 2)]]
        assert min(np.max(np.abs(out - o)) for o in outcomes) < 1e-5
    most = byzjax.clipped_clustering(max_norm=0.5).aggregate(jnp.asarray(rows))
    assert np.linalg.norm(most) <= 0.5 + 1e-6


def test_noise_of_flame_is_in_units_of_the_median_norm():
    rows = jnp.asarray(gaussian(9, 3000))
    plain = byzjax.flame(noise=0.0).aggregate(rows)
    noisy = byzjax.flame(noise=0.1).aggregate(rows, key=jax.random.key(0))
    wanted = 0.1 * np.median(np.linalg.norm(rows, axis=1))
    assert np.std(noisy - plain) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("seed", range(12))
def test_clusters_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, 5)) + rng.choice([0, 2], size=(12, 1))
    gaps = 1 - cosines(rows)
    np.fill_diagonal(gaps, 0)
    gaps = np.clip(gaps, 0, 2)
    for linkage in ("average", "single"):
        labels = clipped_clustering._two_clusters(
            jnp.asarray(gaps), jnp.ones(12, bool), linkage
        )
        model = cluster.AgglomerativeClustering(
            n_clusters=2, metric="precomputed", linkage=linkage
        )
        theirs = model.fit_predict(gaps)
        ours = np.asarray(labels) == labels[0]
        assert np.array_equal(ours, theirs == theirs[0])
    model = cluster.HDBSCAN(
        min_cluster_size=7,
        min_samples=1,
        allow_single_cluster=True,
        metric="precomputed",
        copy=True,
    )
    ours = flame._majority_cluster(jnp.asarray(gaps, jnp.float32), len(gaps) // 2)
    assert np.array_equal(np.asarray(ours), model.fit_predict(gaps) == 0)
    counts = rng.multinomial(1000, [0.4, 0.2, 0.4], size=12) / 1000
    counts[:4] = rng.multinomial(1000, [0.7, 0.1, 0.2], size=4) / 1000
    ours = signguard._mean_shift_cluster(
        jnp.asarray(counts, jnp.float32), jnp.ones(12, bool)
    )
    width = cluster.estimate_bandwidth(counts, quantile=0.5)
    theirs = cluster.MeanShift(bandwidth=width, cluster_all=False).fit_predict(counts)
    largest = np.argmax(np.bincount(theirs[theirs >= 0]))
    assert np.array_equal(np.asarray(ours), theirs == largest)


# --- meta-rules nest ------------------------------------------------------------------

META = {
    "ctma": lambda rule: byzjax.ctma(rule, 1),
    "nnm": lambda rule: byzjax.nnm(rule, 1),
    "bucketing": lambda rule: byzjax.bucketing(rule, 1),
    "clipping": lambda rule: byzjax.clipping(rule, 3.0),
    "arc": lambda rule: byzjax.arc(rule, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("outer, inner", [*itertools.product(META, META)])
def test_meta_rules_nest_over_geometric_and_other_rules_alike(outer, inner):
    """Over a rule that hides its weighing, the mixed stack is formed: same result."""
    base = byzjax.smea(1)
    hidden = byzjax.Aggregator(base.init, base.update)
    rows, key = jnp.asarray(gaussian(8, 6)).at[3].set(jnp.nan), jax.random.key(0)
    got, same = (
        jax.jit(META[outer](META[inner](rule)).aggregate)(rows, key=key)
        for rule in (base, hidden)
    )
    assert np.isfinite(got).all()
    near(got, same)


@pytest.mark.parametrize("scale", [1e10, 1e20, 1e24, 1e30])
@pytest.mark.parametrize("far", [1e9, 1e13, 1e17])
def test_the_influence_of_far_rows_on_weiszfelds_steps_is_finite(scale, far):
    rows = np.random.default_rng(0).normal(size=(11, 3)) * scale
    rows[:2] = min(far * scale, 3e38)
    rule = byzjax.geometric_median(num_iterations=3)
    shares = byzjax.influence(rule, jnp.asarray(rows, jnp.float32))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(np.sum(shares), 1, atol=0.01)
