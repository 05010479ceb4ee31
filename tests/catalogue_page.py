"""Writes docs/catalogue.md and docs/papers.md from the table of all rules and the code.

`python -m tests.catalogue_page` does it. A test compares the pages with them, so they
cannot go stale.
"""

import collections
import inspect
import pathlib
import re

import byzjax
from byzjax import catalogue
from tests import catalogue_words, public_names, rules

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "catalogue.md"
PAPERS = PAGE.with_name("papers.md")
META = {entry.name for entry in catalogue.meta_rules()}

HEAD = """# The catalogue

Generated from the table that drives the tests (`tests/rules.py`) and from the code by
`python -m tests.catalogue_page`; do not edit it by hand. In a terminal: `byzjax rules`
and `byzjax attacks`. *Made against* is what the authors of a rule or attack aim at;
what was measured is on the page [how to choose](choosing.md).

m workers of which f are Byzantine, d coordinates. *Breakdown* is the largest share of
Byzantine workers under which the output stays bounded. All rules but the mean are
*poison-proof*: unharmed by up to f rows of NaN, ±Inf or values near the float limit.
*Weighted* rules take `weights` `[m]` (sample counts, staleness, trust); the others
refuse them by name. All but `mda` and `smea` take `present`, of which `monna` needs
its pivot. *Draws* needs a `key`, *remembers* carries a state.
"""

COLUMNS = (
    "rule",
    "made against",
    "arguments",
    "paper",
    "constraint",
    "breakdown",
    "cost",
    "notes",
)


def first_line(name, function):
    """The one line of a docstring, after the `name`."""
    text = inspect.getdoc(function)
    assert text, f"{name} has no docstring"
    return text.splitlines()[0]


def arguments_of(factory, without=()):
    """Names and defaults as in a call, in code type."""
    shown = []
    for name, parameter in inspect.signature(factory).parameters.items():
        bare = str(parameter.replace(annotation=parameter.empty))
        if name not in without:
            shown.append(f"`{bare}`")
    return ", ".join(shown)


def paper_of(entry):
    """Authors, year and link of the first paper that a docstring names."""
    first = entry.reference.removeprefix("The rule: ").partition(";")[0]
    authors, _, rest = first.partition(":")
    year = re.search(r"\b(19|20)\d\d\b", rest)
    link = re.search(r"https://\S+[^\s,.]", rest)
    if not (year and link):
        return ""
    short = link[0].removeprefix("https://arxiv.org/abs/")
    return (
        f"{authors} {year[0]} ([{short.removeprefix('https://doi.org/')}]({link[0]}))"
    )


def attack_row(entry):
    return (
        f"`{entry.short}`",
        entry.summary,
        catalogue_words.ATTACKS[entry.short],
        arguments_of(entry.factory, without={"num_byzantine"}),
        paper_of(entry),
    )


def rule_row(rule):
    paper = rule.paper
    if rule.arxiv:
        paper += f" ([{rule.arxiv}](https://arxiv.org/abs/{rule.arxiv}))"
    notes = [
        note
        for note, holds in (
            ("**not poison-proof**", not rule.poison_proof),
            ("weighted", rule.weighted),
            ("draws", rule.random),
            ("remembers", rule.stateful),
        )
        if holds
    ]
    return (
        f"`{rule.name}`",
        catalogue_words.RULES[rule.name.partition("(")[0]],
        arguments_of(getattr(byzjax, rule.name.partition("(")[0])),
        paper,
        rule.constraint,
        rule.breakdown,
        rule.cost,
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
            "Each takes `num_byzantine` as well, for use as a link of a chain; a "
            "trainer passes its own.\n",
            table(
                ("attack", "what it does", "made against", "arguments", "paper"),
                map(attack_row, catalogue.attacks()),
            ),
            "## Data poisoning, in `byzjax.poisoning`\n",
            described(byzjax.poisoning, public_functions(byzjax.poisoning)),
            "## Partitions of a data set, in `byzjax.partition`\n",
            described(byzjax.partition, functions(byzjax.partition)),
        ]
    )


PAPERS_HEAD = """# References

What the docstrings name as their sources, and where: written from them by
`python -m tests.catalogue_page`.

The paper that byzjax is written for: Dahan, Levy, *Fault Tolerant ML: Efficient
Meta-Aggregation and Synchronous Training*, ICML 2024,
[arXiv 2405.14759](https://arxiv.org/abs/2405.14759). To cite it and this software, see
CITATION.cff in the repository.
"""


def papers():
    """Every reference of a public docstring, with the names that stand on it."""
    used = collections.defaultdict(list)
    for name in public_names.dotted():
        value = public_names.value_of(name)
        if inspect.isfunction(value):
            for text in catalogue.reference_of(value).split("; "):
                paper = re.match(r"(?:The rule: )?(.*https://\S+[^\s,.(])", text)
                if paper:
                    used[paper[1]].append(name.removeprefix("byzjax."))
    lines = []
    for paper, names in sorted(used.items()):
        where = ", ".join(f"`{name}`" for name in names)
        linked = re.sub(r"(https://\S+)", r"<\1>", paper)
        lines.append(f"- {linked}. {where}")
    return "\n".join([PAPERS_HEAD, *lines]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    PAPERS.write_text(papers(), encoding="utf-8")
