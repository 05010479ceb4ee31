"""The Python blocks of README.md and docs/ run as they stand, top to bottom."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


def blocks(text):
    """The blocks in order, each moved down to its own line for tracebacks."""
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match[1]
        for match in BLOCK.finditer(text)
    ]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for block in blocks(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_shows_code():
    assert len(blocks(PAGES[0].read_text(encoding="utf-8"))) >= 3


def test_blocks_keep_their_lines():
    text = "one\n```python\na = 1\n```\n```text\nno\n```\n```python\nb\nc\n```\n"
    assert blocks(text) == ["\n\na = 1\n", "\n" * 8 + "b\nc\n"]
