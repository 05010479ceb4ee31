"""The rows of the table in `rules.py` for the rest of the catalogue, as keywords."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import byzjax
from tests import promises
from tests import reference as ref
from tests import reference_catalogue as cat


def half(m: int) -> int:
    """The largest f with m ≥ 2f + 1."""
    return (m - 1) // 2


def quarter(m: int) -> int:
    return (m - 3) // 4


def reference_of(updates: Any) -> dict[str, Any]:
    """The trusted update of the tests: equal entries, about as large as the rows.

    A power of two, which all dtypes hold.
    """
    rows = [x.reshape(len(x), -1) for x in jax.tree.leaves(updates)]
    squares = sum(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1) for x in rows)
    squares = jnp.nan_to_num(squares, nan=jnp.inf, posinf=jnp.inf)
    size = jnp.exp2(jnp.round(jnp.log2(jnp.median(squares)) / 2))
    return {
        "reference": jax.tree.map(
            lambda x: jnp.broadcast_to(size.astype(jnp.asarray(x).dtype), x.shape[1:]),
            updates,
        )
    }


def same_reference(rows):
    with np.errstate(divide="ignore"):
        size = np.exp2(np.round(np.log2(np.median(cat.norms(rows)))))
    return np.full(rows.shape[1], size)


def kappa_smea(m, f):
    return 4 * f / (m - f) * (1 + f / (m - 2 * f)) ** 2


SPECTRUM = dict(translation=True, frozen=True)

ROWS: list[dict[str, Any]] = [
    dict(
        name="meamed",
        make=lambda m, f: byzjax.meamed(f),
        oracle=cat.meamed(),
        most=half,
        paper="Xie, Koyejo, Gupta 2018",
        arxiv="1802.10116",
        cost="O(dm log² m)",
        promise=promises.around_the_middle,
    ),
    dict(
        name='meamed(even="lower")',
        make=lambda m, f: byzjax.meamed(f, even="lower"),
        oracle=cat.meamed(ref.lower_median),
        most=half,
        variant=True,
        promise=promises.around_the_middle,
    ),
    dict(
        name="phocas",
        make=lambda m, f: byzjax.phocas(f),
        oracle=cat.phocas,
        most=half,
        paper="Xie, Koyejo, Gupta 2018",
        arxiv="1805.09682",
        cost="O(dm log² m)",
        promise=promises.around_the_middle,
    ),
    dict(
        name="bulyan",
        make=lambda m, f: byzjax.bulyan(f),
        oracle=cat.bulyan(),
        most=quarter,
        paper="El Mhamdi, Guerraoui, Rouault 2018",
        arxiv="1802.07927",
        constraint="m ≥ 4f + 3",
        cost="O(dm² + m³)",
        permutation=False,  # In the last round two nearest neighbours tie.
        promise=promises.bulyan,
    ),
    dict(
        name='bulyan(selection="once")',
        make=lambda m, f: byzjax.bulyan(f, selection="once"),
        oracle=cat.bulyan(repeated=False),
        most=quarter,
        variant=True,
        promise=promises.bulyan,
    ),
    dict(
        name='bulyan(squared=False, even="lower")',
        make=lambda m, f: byzjax.bulyan(f, squared=False, even="lower"),
        oracle=cat.bulyan(power=1, middle=ref.lower_median),
        most=quarter,
        variant=True,
        permutation=False,  # In the last round two nearest neighbours tie.
        promise=promises.bulyan,
    ),
    dict(
        name="monna",
        make=lambda m, f: byzjax.monna(f, pivot=m // 2),
        oracle=cat.monna(lambda m: m // 2),  # The tests poison the ends first.
        most=half,
        paper="Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan 2023",
        arxiv="2209.10931",
        breakdown="f/m, of an honest pivot",
        cost="O(dm²)",
        permutation=False,
        promise=promises.tightest,
        honest_row=lambda m: m // 2,
    ),
    dict(
        name="aksel",
        make=lambda m, f: byzjax.aksel(f),
        oracle=cat.aksel(),
        most=half,
        paper="Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault 2020",
        cost="O(dm log² m)",
        promise=promises.aksel(),
    ),
    dict(
        name='aksel(num_selected=(m+1)//2, even="lower")',
        make=lambda m, f: byzjax.aksel(f, num_selected=(m + 1) // 2, even="lower"),
        oracle=cat.aksel(lambda m, f: (m + 1) // 2, ref.lower_median),
        most=half,
        variant=True,
        promise=promises.aksel(lambda m, f: (m + 1) // 2),
    ),
    dict(
        name="medoid",
        make=lambda m, f: byzjax.medoid(),
        oracle=cat.medoid,
        most=half,
        paper="El Mhamdi, Guerraoui, Rouault 2018",
        arxiv="1802.07927",
        breakdown="⌊(m−1)/2⌋/m",
        cost="O(dm²)",
        takes_f=False,
        promise=promises.medoid,
    ),
    dict(
        name="cge",
        make=lambda m, f: byzjax.cge(f),
        oracle=cat.cge,
        most=half,
        paper="Gupta, Liu, Vaidya 2021",
        arxiv="2008.04699",
        translation=False,
        promise=promises.short,
    ),
    dict(
        name="mda",
        make=lambda m, f: byzjax.mda(f),
        oracle=cat.mda,
        most=half,
        paper="El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault 2020",
        arxiv="1905.03853",
        constraint="m ≥ 2f + 1, 10⁷ subsets",
        cost="O(dm² + m²·(m choose f))",
        permutation=False,  # Two subsets often share their widest pair.
        promise=promises.tightest,
    ),
    dict(
        name="smea",
        make=lambda m, f: byzjax.smea(f),
        oracle=cat.smea,
        most=half,
        paper="Allouah, Guerraoui, Gupta, Pinot, Stephan 2023",
        arxiv="2302.04787",
        constraint="m ≥ 2f + 1, 5·10⁵ subsets",
        cost="O(dm² + m³·(m choose f))",
        kappa=kappa_smea,
        promise=promises.least_spread(4),
    ),
    dict(
        name="caf",
        make=lambda m, f: byzjax.caf(f),
        oracle=cat.caf("all"),
        most=half,
        paper="Allouah, Guerraoui, Stephan 2025",
        arxiv="2505.01874",
        cost="O(dm² + m³·rounds)",
        # Amplifies rounding: 1e-7 in the rows moves its float64 oracle by 5e-5.
        tolerance=5e-4,
        **SPECTRUM,
        promise=promises.least_spread(6),
    ),
    dict(
        name='caf(scale="positive")',
        make=lambda m, f: byzjax.caf(f, scale="positive"),
        oracle=cat.caf("positive"),
        most=half,
        variant=True,
        tolerance=5e-4,
        **SPECTRUM,
        promise=promises.least_spread(6),
    ),
    dict(
        name="dnc",
        make=lambda m, f: byzjax.dnc(f),
        oracle=cat.dnc(),
        most=half,
        paper="Shejwalkar, Houmansadr 2021",
        cost="O(dm + subsample·m²·rounds)",
        random=True,
        promise=promises.convex,
    ),
    dict(
        name="sign_majority",
        make=lambda m, f: byzjax.sign_majority(),
        oracle=cat.sign_majority,
        most=half,
        paper="Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019",
        arxiv="1810.05291",
        constraint="m ≥ 1",
        breakdown="⌊(m−1)/2⌋/m",
        takes_f=False,
        translation=False,
        scaling=False,
        hull=False,
        promise=promises.signs,
    ),
    dict(
        name="fltrust",
        make=lambda m, f: byzjax.fltrust(),
        oracle=cat.fltrust(same_reference),
        most=half,
        paper="Cao, Fang, Liu, Gong 2021",
        arxiv="2012.13995",
        constraint="a reference update",
        breakdown="1, of an honest reference",
        takes_f=False,
        translation=False,
        scaling=False,
        hull=False,
        extra=reference_of,
        promise=promises.trusted,
    ),
    dict(
        name="foolsgold",
        make=lambda m, f: byzjax.foolsgold(),
        oracle=cat.foolsgold,
        most=half,
        paper="Fung, Yoon, Beschastnikh 2020",
        arxiv="1808.04866",
        constraint="m ≥ 1",
        breakdown="sybils only",
        cost="O(dm²)",
        takes_f=False,
        stateful=True,
        translation=False,
        tolerance=1e-4,
        promise=promises.convex,
    ),
]
