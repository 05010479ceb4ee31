"""The Python on README.md and the site's pages runs as it stands, top to bottom.

So do the cells of notebooks, which `make docs` runs as such. Pages of experiments have
their own tests.
"""

import pathlib
import re

import pytest

import byzjax
from byzjax import catalogue
from tests import public_names

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
OF_FLOWER = DOCS / "flower.md"  # Run in the environment of its own tests.
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?:python|\{code-cell\} python3)[ \t]*\n(?P<options>(?::[\w-]+:[^\n]*\n)*)"
    r"(?P<code>.*?)^```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
DESCRIBED = re.compile(
    r"^\.\. currentmodule:: (?P<module>\S+)$"
    r"|^\.\. auto(?:function|class|module|data):: (?P<auto>\S+)$"
    r"|^```\{py:data\} (?P<data>\S+)$",
    re.MULTILINE,
)


def blocks(text):
    """The blocks in order, each moved down to its own line for tracebacks."""
    return [
        "\n" * text.count("\n", 0, match.start("code")) + match["code"]
        for match in BLOCK.finditer(text)
    ]


def text_of(page):
    return page.read_text(encoding="utf-8")


def with_code(pages):
    return [page for page in pages if blocks(text_of(page))]


def run(page):
    namespace = {"__name__": page.stem}
    for block in blocks(text_of(page)):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "page",
    [page for page in with_code(PAGES) if page != OF_FLOWER],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    run(page)
    plt.close("all")


def test_all_python_is_run():
    """None is fenced in a way that BLOCK does not know, and so never runs."""
    known = re.compile(r"python$|\{code-cell\} python3$|\{py:|\{literalinclude\}")
    for page in PAGES:
        fences = re.findall(r"^(?:`|~|:){3,}(\S.*)$", text_of(page), re.MULTILINE)
        code = [x for x in fences if re.search("py|code-|ipython", x)]
        assert [x for x in code if not known.match(x)] == [], page


def test_pages_show_code():
    assert len(blocks(text_of(ROOT / "README.md"))) >= 3
    notebooks = [page for page in PAGES if "file_format: mystnb" in text_of(page)]
    assert len(notebooks) >= 7 and with_code(notebooks) == notebooks


def test_blocks_keep_their_lines():
    text = "one\n```python\na = 1\n```\n```text\nno\n```\n```python\nb\nc\n```\n"
    assert blocks(text) == ["\n\na = 1\n", "\n" * 8 + "b\nc\n"]
    cell = "```{code-cell} python3\n:tags: [hide-input]\n\nd\n```\n"
    assert blocks(cell) == ["\n\n\nd\n"]


def described():
    """The names that the reference's pages describe."""
    found = []
    for page in sorted((DOCS / "reference").glob("*.md")):
        module = "byzjax"
        for match in DESCRIBED.finditer(text_of(page)):
            module = match["module"] or module
            if name := match["auto"] or match["data"]:
                known = name.startswith("byzjax.")
                found.append(name if known else f"{module}.{name}")
    return found


def test_the_reference_has_every_public_name_once():
    found = described()
    assert sorted(found) == sorted(set(found))
    namespaces = {"byzjax.testing", public_names.FLOWER}
    assert set(public_names.dotted()) == set(found) - namespaces


def test_the_home_page_counts_right():
    count = len([*catalogue.rules(), *catalogue.meta_rules()])
    count -= 1  # with_key, which changes no rule.
    home = " ".join(text_of(DOCS / "index.md").split())
    assert f"{count} rules and meta-rules, {len(catalogue.attacks())} attacks" in home
    beside = text_of(DOCS / "comparison.md")
    rules = len(catalogue.rules()) - 1
    assert f"| rules, the mean not counted | {rules} |" in beside
    assert f"| attacks on gradients | {len(catalogue.attacks())} |" in beside


def test_the_readme_names_every_rule():
    readme = text_of(ROOT / "README.md")
    for entry in (*catalogue.rules(), *catalogue.meta_rules()):
        assert f"`{entry.name}`" in readme
    assert byzjax.__name__ in readme
