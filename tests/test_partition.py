"""Every partition covers the data set, is disjoint and follows its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byzjax.partition import (
    dirichlet,
    extreme,
    gamma_similarity,
    iid,
    label_histogram,
    shards,
)

PARTITIONS = {
    "iid": lambda labels, m, rng: iid(labels, m, rng=rng),
    "dirichlet": lambda labels, m, rng: dirichlet(labels, m, alpha=1.0, rng=rng),
    "gamma_similarity": lambda labels, m, rng: gamma_similarity(
        labels, m, gamma=0.4, rng=rng
    ),
    "extreme": lambda labels, m, rng: extreme(labels, m),
    "shards": lambda labels, m, rng: shards(labels, m, shards_per_worker=2, rng=rng),
}
EVEN = [name for name in PARTITIONS if name not in ("dirichlet", "shards")]


def some_labels(n=503, num_classes=7, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, n)


@pytest.mark.parametrize("name", PARTITIONS)
@settings(max_examples=40, deadline=None)
@given(n=st.integers(40, 120), m=st.integers(1, 9), seed=st.integers(0, 99))
def test_parts_are_disjoint_cover_everything_and_none_is_empty(name, n, m, seed):
    labels = some_labels(n, seed=seed)
    before = labels.copy()
    parts = PARTITIONS[name](labels, m, np.random.default_rng(seed))
    assert isinstance(parts, list) and len(parts) == m
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    for part in parts:
        assert part.size > 0 and np.issubdtype(part.dtype, np.integer)
        assert np.all(np.diff(part) > 0)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("name", PARTITIONS)
def test_deterministic_from_the_generator(name):
    labels = some_labels()
    first, again, other = (
        PARTITIONS[name](labels, 6, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    same = all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert same == (name == "extreme")


@pytest.mark.parametrize("name", EVEN)
@pytest.mark.parametrize("n", [12, 13, 17, 503])
def test_even_sizes(name, n):
    parts = PARTITIONS[name](some_labels(n), 6, np.random.default_rng(0))
    sizes = [part.size for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", EVEN)
def test_as_many_workers_as_samples(name):
    parts = PARTITIONS[name](some_labels(8), 8, np.random.default_rng(0))
    assert [part.size for part in parts] == [1] * 8


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(9, 60),
    gamma=st.floats(0, 1),
    m=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_gamma_similarity_stays_even_for_every_gamma(n, gamma, m, seed):
    rng = np.random.default_rng(seed)
    parts = gamma_similarity(some_labels(n, seed=seed), m, gamma=gamma, rng=rng)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    sizes = [part.size for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_extreme_is_sorted_by_label():
    labels = some_labels()
    parts = extreme(labels, 5)
    joined = np.concatenate([np.sort(labels[part]) for part in parts])
    np.testing.assert_array_equal(joined, np.sort(labels))
    assert [p.tolist() for p in extreme([1, 0, 1, 0, 2], 2)] == [[0, 1, 3], [2, 4]]


def test_gamma_similarity_between_extreme_and_iid():
    labels = np.repeat(np.arange(10), 600)
    rng = np.random.default_rng(0)

    def counts(gamma):
        parts = gamma_similarity(labels, 10, gamma=gamma, rng=rng)
        return label_histogram(labels, parts, 10)

    np.testing.assert_array_equal(counts(0.0), 600 * np.eye(10, dtype=int))
    assert np.abs(counts(1.0) - 60).max() < 45
    half = counts(0.5)
    # 300 shared samples, 30 of each label, and 300 of the worker's own label.
    assert np.abs(np.diag(half) - 330).max() < 60
    assert np.abs(half[~np.eye(10, dtype=bool)] - 30).max() < 60


def test_iid_is_uniform():
    labels = np.repeat(np.arange(4), 1000)
    counts = label_histogram(labels, iid(labels, 4, rng=np.random.default_rng(0)))
    assert np.abs(counts - 250).max() < 60


def test_dirichlet_follows_its_distribution():
    """Over workers per class: share mean 1/m, variance (1/m)(1-1/m)/(m alpha + 1)."""
    labels, m, alpha = np.repeat(np.arange(400), 500), 5, 0.7
    parts = dirichlet(labels, m, alpha=alpha, rng=np.random.default_rng(0))
    share = label_histogram(labels, parts) / 500
    np.testing.assert_allclose(share.sum(axis=0), 1)
    np.testing.assert_allclose(share.mean(axis=1), 1 / m, atol=0.04)
    expected = (1 / m) * (1 - 1 / m) / (m * alpha + 1)
    np.testing.assert_allclose(share.var(axis=1), expected, rtol=0.25)


def test_dirichlet_heterogeneity_grows_as_alpha_shrinks():
    labels = np.repeat(np.arange(10), 1000)
    spread = [
        label_histogram(
            labels, dirichlet(labels, 10, alpha=alpha, rng=np.random.default_rng(1))
        ).std()
        for alpha in (1e6, 10.0, 1.0, 0.1)
    ]
    assert spread == sorted(spread) and spread[0] < 2


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0, 1e2, 1e3, 1e4])
def test_dirichlet_serves_many_classes_of_few_samples(alpha, balanced):
    labels = np.repeat(np.arange(100), 5)
    sizes = np.zeros(20)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        parts = dirichlet(labels, 20, alpha=alpha, rng=rng, balanced=balanced)
        sizes += [part.size for part in parts]
    sizes /= 20
    assert sizes.min() > 18 and sizes.max() < 32, "of 25, whatever the worker's number"
    assert abs(sizes[:10].mean() - 25) < 1.5


def test_dirichlet_of_large_alpha_is_iid():
    for classes, each in ((100, 5), (10, 103), (3, 7)):
        labels = np.repeat(np.arange(classes), each)
        for balanced in (False, True):
            rng = np.random.default_rng(0)
            parts = dirichlet(labels, 7, alpha=1e9, rng=rng, balanced=balanced)
            sizes = [part.size for part in parts]
            assert max(sizes) - min(sizes) <= 1
        # As even as can be in every class, too, where the draw is over workers.
        parts = dirichlet(labels, 7, alpha=1e9, rng=np.random.default_rng(0))
        counts = label_histogram(labels, parts)
        assert np.abs(counts - each / 7).max() < 1


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(30, 200),
    m=st.integers(1, 9),
    alpha=st.sampled_from([1e-8, 1e-2, 0.3, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_balanced_dirichlet_is_even_for_every_alpha(n, m, alpha, seed):
    labels, rng = some_labels(n, seed=seed), np.random.default_rng(seed)
    parts = dirichlet(labels, m, alpha=alpha, rng=rng, balanced=True)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    sizes = [part.size for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_balanced_dirichlet_follows_its_distribution():
    """Over classes per worker: share mean 1/C, variance (1/C)(1-1/C)/(C alpha + 1)."""
    labels, alpha = np.repeat(np.arange(5), 60_000), 0.7
    rng = np.random.default_rng(0)
    parts = dirichlet(labels, 400, alpha=alpha, rng=rng, balanced=True)
    share = label_histogram(labels, parts) / 750
    np.testing.assert_allclose(share.mean(axis=0), 0.2)
    # A little less: all together have each class equally often.
    np.testing.assert_allclose(share.var(axis=0), 0.2 * 0.8 / 4.5, rtol=0.25)


def test_dirichlet_gives_a_least_size():
    labels = np.repeat(np.arange(10), 50)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        parts = dirichlet(labels, 8, alpha=0.5, rng=rng, min_size=20)
        assert min(part.size for part in parts) >= 20
    rng = np.random.default_rng(0)
    with pytest.raises(
        ValueError, match=r"num_workers \* min_size samples, got .*=8, "
    ):
        dirichlet(labels, 8, alpha=0.5, rng=rng, min_size=63)
    with pytest.raises(ValueError, match=r"every worker min_size=62 .* balanced=True"):
        dirichlet(labels, 8, alpha=0.5, rng=rng, min_size=62)
    dirichlet(labels, 8, alpha=0.5, rng=rng, min_size=62, balanced=True)


def test_dirichlet_redraws_until_no_worker_is_empty():
    labels = np.repeat(np.arange(10), 50)
    for seed in range(20):
        parts = dirichlet(labels, 8, alpha=0.1, rng=np.random.default_rng(seed))
        assert min(part.size for part in parts) >= 1
    with pytest.raises(
        ValueError, match=r"dirichlet needs a draw .* got alpha=0\.0001"
    ):
        dirichlet(labels, 17, alpha=1e-4, rng=np.random.default_rng(0))


def test_shards_are_contiguous_runs_of_the_sorted_data():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
    order = np.argsort(labels, kind="stable")
    parts = shards(labels, 10, shards_per_worker=2, rng=np.random.default_rng(0))
    owner = np.empty(400, int)
    for worker, part in enumerate(parts):
        owner[part] = worker
    in_shards = owner[order].reshape(20, 20)
    assert np.all(in_shards == in_shards[:, :1])
    np.testing.assert_array_equal(np.bincount(in_shards[:, 0]), 2)
    assert (label_histogram(labels, parts) > 0).sum(axis=1).max() <= 2


def test_label_histogram():
    labels = some_labels()
    parts = extreme(labels, 4)
    counts = label_histogram(labels, parts, 9)
    assert counts.shape == (4, 9)
    for worker, part in enumerate(parts):
        for c in range(9):
            assert counts[worker, c] == sum(labels[i] == c for i in part)
    assert label_histogram(labels, parts).shape == (4, 7)
    np.testing.assert_array_equal(label_histogram([0, 1], [[], [1]]), [[0, 0], [0, 1]])
    np.testing.assert_array_equal(
        label_histogram(np.array([3, 255], np.uint8), [[0, 1]])[0, [3, 255]], 1
    )


@pytest.mark.parametrize("name", PARTITIONS)
def test_bad_labels_and_workers(name):
    partition, rng = PARTITIONS[name], np.random.default_rng(0)
    with pytest.raises(ValueError, match=f"{name} needs labels of shape"):
        partition(np.eye(4, dtype=int), 2, rng)
    with pytest.raises(TypeError, match=f"{name} needs integer class labels.*float64"):
        partition(np.ones(4), 2, rng)
    with pytest.raises(ValueError, match=f"{name} needs num_workers >= 1.*=0"):
        partition(some_labels(), 0, rng)
    with pytest.raises(
        TypeError, match=r"num_workers to be a static int, got num_workers=2\.0"
    ):
        partition(some_labels(), 2.0, rng)
    with pytest.raises(ValueError, match="3 samples and num_workers=4"):
        partition(np.zeros(3, int), 4, rng)
    with pytest.raises(ValueError, match="0 samples and num_workers=1"):
        partition([], 1, rng)


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "extreme"])
def test_a_seed_is_not_a_generator(name):
    with pytest.raises(TypeError, match=r"needs a numpy.random.Generator.*rng=0"):
        PARTITIONS[name](some_labels(), 2, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=f"finite alpha > 0, got alpha={alpha}"):
        dirichlet(some_labels(), 2, alpha=alpha, rng=np.random.default_rng(0))


@pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match=f"gamma (>= 0|<= 1), got gamma={gamma}"):
        gamma_similarity(some_labels(), 2, gamma=gamma, rng=np.random.default_rng(0))


def test_numbers_must_be_numbers():
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match="alpha to be a number, got '1'"):
        dirichlet(some_labels(), 2, alpha="1", rng=rng)
    with pytest.raises(TypeError, match="gamma to be a number, got True"):
        gamma_similarity(some_labels(), 2, gamma=True, rng=rng)


def test_bad_shards():
    labels, rng = some_labels(20), np.random.default_rng(0)
    with pytest.raises(ValueError, match="shards_per_worker >= 1"):
        shards(labels, 2, shards_per_worker=0, rng=rng)
    with pytest.raises(ValueError, match="20 samples, num_workers=7 and shards_per_w"):
        shards(labels, 7, shards_per_worker=3, rng=rng)


def test_bad_histograms():
    with pytest.raises(ValueError, match="the label 2 and num_classes=2"):
        label_histogram([0, 2], [[0]], 2)
    with pytest.raises(ValueError, match="labels >= 0, got the label -1"):
        label_histogram([0, -1], [[0]])
    with pytest.raises(ValueError, match=r"0 <= index < 2, got 0 to 2 in parts\[1\]"):
        label_histogram([0, 1], [[0], [0, 2]])
    with pytest.raises(TypeError, match=r"integer indices, got float64 in parts\[0\]"):
        label_histogram([0, 1], [[0.5]])
