"""Writes docs/catalogue.md from the table of all rules.

`python -m tests.catalogue_page` does it. A test compares the page with the table, so
it cannot go stale.
"""

import inspect
import pathlib

import byzjax
from byzjax import catalogue
from tests import rules

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "catalogue.md"
META = {entry.name for entry in catalogue.meta_rules()}

HEAD = """# The catalogue

Generated from the table that drives the tests (`tests/rules.py`) by
`python -m tests.catalogue_page`; do not edit it by hand.

m workers of which f are Byzantine, d coordinates. *Breakdown* is the largest share of
Byzantine workers under which the output stays bounded. *Poison-proof* rules are
unharmed by up to f rows of NaN, ±Inf or values near the float limit: such rows have
weight 0. *Weighted* rules take `weights` `[m]` (sample counts, staleness, trust); the
others refuse them by name. *Draws* needs a `key`, *remembers* carries a state.
"""

COLUMNS = (
    "rule",
    "paper",
    "constraint",
    "breakdown",
    "cost",
    "poison-proof",
    "weighted",
    "",
)


def first_line(name, function):
    """The one line of a docstring, after the `name`."""
    text = inspect.getdoc(function)
    assert text, f"{name} has no docstring"
    return text.splitlines()[0]


def rule_row(rule):
    paper = rule.paper
    if rule.arxiv:
        paper += f" ([{rule.arxiv}](https://arxiv.org/abs/{rule.arxiv}))"
    notes = [
        note
        for note, holds in (("draws", rule.random), ("remembers", rule.stateful))
        if holds
    ]
    return (
        f"`{rule.name}`",
        paper,
        rule.constraint,
        rule.breakdown,
        rule.cost,
        "yes" if rule.poison_proof else "no",
        "yes" if rule.weighted else "",
        ", ".join(notes),
    )


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"


def described(module, names):
    """A table of names and first lines of docstrings."""
    rows = [(f"`{n}`", first_line(n, getattr(module, n))) for n in names]
    return table(("name", "what it does"), rows)


def functions(module):
    return [n for n in sorted(module.__all__) if inspect.isfunction(getattr(module, n))]


def public_functions(module):
    """Functions defined in a module without `__all__`."""
    return [
        name
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and value.__module__ == module.__name__
    ]


def page():
    rows = [rule for rule in rules.RULES if not rule.variant]
    single = [r for r in rows if r.name.split("(")[0] not in META]
    wrappers = [r for r in rows if r.name.split("(")[0] in META]
    return "\n".join(
        [
            HEAD,
            "## Rules\n",
            table(COLUMNS, map(rule_row, single)),
            "## Meta-rules, shown over one base\n",
            table(COLUMNS, map(rule_row, wrappers)),
            "## Attacks, in `byzjax.attacks`\n",
            described(byzjax.attacks, functions(byzjax.attacks)),
            "## Data poisoning, in `byzjax.poisoning`\n",
            described(byzjax.poisoning, public_functions(byzjax.poisoning)),
            "## Partitions of a data set, in `byzjax.partition`\n",
            described(byzjax.partition, functions(byzjax.partition)),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
