"""The catalogue page says what the table says, and the table has every rule."""

import inspect

import pytest

import byzjax
from tests import catalogue_page, rules

NO_RULES = {
    *("anytime", "authors_beta", "authors_mixing", "cap_weights", "guard"),
    *("guard_report", "influence"),
    *(
        "momentum",
        "mu2sgd",
        "mu2sgd_authors",
        "per_worker",
        "stack",
        "storm",
        "trainer",
        "with_key",
    ),
}


@pytest.mark.parametrize(
    ("path", "made"),
    [
        (catalogue_page.PAGE, catalogue_page.page),
        (catalogue_page.PAPERS, catalogue_page.papers),
    ],
    ids=["catalogue", "papers"],
)
def test_pages_are_up_to_date(path, made):
    assert path.read_text(encoding="utf-8") == made(), (
        "run: python -m tests.catalogue_page"
    )


def test_every_public_rule_is_in_the_table():
    public = {n for n in byzjax.__all__ if inspect.isfunction(getattr(byzjax, n))}
    listed = {rule.name.split("(")[0] for rule in rules.RULES}
    assert listed == public - NO_RULES
