"""The rows of the table in `rules.py` for rules that shorten long rows, as keywords."""

from typing import Any

import numpy as np

import byzjax
from tests import promises
from tests import reference as ref
from tests import reference_catalogue as cat
from tests.rules_catalogue import half


def kappa_arc(kappa):
    return lambda m, f: kappa(m, f) + 2 * f / (m - 2 * f)


CLIPPED = dict(translation=False, hull=False)

ROWS: list[dict[str, Any]] = [
    dict(
        name="signguard",
        make=lambda m, f: byzjax.signguard(),
        oracle=cat.signguard,
        most=half,
        paper="Xu, Huang, Song, Lan 2022",
        arxiv="2109.05872",
        constraint="m ≥ 1",
        breakdown="none proven",
        takes_f=False,
        **CLIPPED,
        promise=promises.short,
    ),
    dict(
        name="clipped_clustering",
        make=lambda m, f: byzjax.clipped_clustering(),
        oracle=cat.clipped_clustering,
        most=half,
        paper="Li, Ngai, Voigt 2023",
        arxiv="2302.07173",
        constraint="m ≥ 1",
        breakdown="none proven",
        cost="O(dm² + m³)",
        takes_f=False,
        stateful=True,
        **CLIPPED,
        promise=promises.short,
    ),
    dict(
        name='clipped_clustering(linkage="single")',
        make=lambda m, f: byzjax.clipped_clustering(linkage="single"),
        oracle=lambda rows, f: cat.clipped_clustering(rows, f, np.min),
        most=half,
        variant=True,
        takes_f=False,
        stateful=True,
        **CLIPPED,
        promise=promises.short,
    ),
    dict(
        name="flame(noise=0)",
        make=lambda m, f: byzjax.flame(noise=0.0),
        oracle=cat.flame,
        most=half,
        paper="Nguyen et al. 2022",
        arxiv="2101.02281",
        constraint="m ≥ 1",
        breakdown="none proven",
        cost="O(dm² + m³)",
        takes_f=False,
        **CLIPPED,
        promise=promises.short,
    ),
    dict(
        name="clipping(median)",
        make=lambda m, f: byzjax.clipping(byzjax.median(), 2.0),
        oracle=cat.clipping(ref.median, 2.0),
        most=half,
        paper="Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan 2024",
        arxiv="2405.14432",
        constraint="max_norm > 0",
        breakdown="the base's",
        cost="base + O(dm)",
        takes_f=False,
        scaling=False,
        **CLIPPED,
        promise=promises.clipping(promises.hull, 2.0),
    ),
    dict(
        name="clipping(krum)",
        make=lambda m, f: byzjax.clipping(byzjax.krum(f), 2.0),
        oracle=cat.clipping(ref.krum(), 2.0),
        most=lambda m: (m - 3) // 2,
        variant=True,
        scaling=False,
        **CLIPPED,
        promise=promises.clipping(promises.krum(), 2.0),
    ),
    dict(
        name="arc(median)",
        make=lambda m, f: byzjax.arc(byzjax.median(), f),
        oracle=cat.arc(ref.median),
        most=half,
        paper="Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan 2024",
        arxiv="2405.14432",
        breakdown="the base's",
        cost="base + O(dm)",
        kappa=kappa_arc(ref.kappa_median),
        **CLIPPED,
        promise=promises.arc(promises.hull),
    ),
    dict(
        name="nnm(arc(trimmed_mean))",
        make=lambda m, f: byzjax.nnm(byzjax.arc(byzjax.trimmed_mean(f), f), f),
        oracle=ref.nnm(cat.arc(ref.trimmed_mean)),
        most=half,
        variant=True,
        kappa=ref.kappa_nnm(kappa_arc(ref.kappa_trimmed_mean)),
        **CLIPPED,
        promise=promises.nnm(promises.arc(promises.hull)),
    ),
]
