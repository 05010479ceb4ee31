"""Commands on pages are ones that their programs take; what they do has other tests."""

import argparse
import functools
import importlib.util
import pathlib
import re
import runpy
import shlex
import sys
import tomllib
import warnings

import pytest

from byzjax import __main__

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name / "README.md" for name in ("experiments", "benchmarks")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
PROGRAMS = ("python", "byzjax", "make", "pip", "sbatch", "jupyter")
# A fence of a shell, a block that is moved in, and what stands between backticks.
SHELL = re.compile(
    r"^```(?:sh|bash)\n(?P<fence>.*?)^```|(?<=\n)\n(?P<block>(?: {4}[^\n]+\n)+)"
    rf"|(?<!`)`(?P<inline>(?:{'|'.join(PROGRAMS[:3])}) [^`]+)`(?!`)",
    re.DOTALL | re.MULTILINE,
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
OURS = ("experiments", "benchmarks", "byzjax", "tests")


def commands(page):
    """Of a page, as lists of words; of programs that are not ours, none."""
    found = []
    for match in SHELL.finditer(page.read_text(encoding="utf-8")):
        text = next(x for x in match.groups() if x is not None)
        if match["inline"]:
            text = " ".join(text.split())
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]  # A variable of the environment.
            words = [re.sub(r"\\?\$\w+", "1", word) for word in words if word != "&"]
            if words and (words[0] in PROGRAMS or words[0].endswith("/python")):
                found.append(words)
    return found


class Parsed(Exception):
    """Nothing is to be run."""


def check(words, monkeypatch):
    """Fails with what is wrong."""
    program, *rest = words
    if program == "make":
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in rest:
            name, variable, _ = word.partition("=")
            targets = rf"^(?:[\w-]+ )*{name}(?: [\w-]+)*:(?!=)"
            known = rf"^{name} =" if variable else targets
            assert re.search(known, text, re.MULTILINE), word
    elif program == "pip":
        groups = re.findall(r"(?:byzjax|(?:^|\s)\.)\[([\w,-]+)\]", " ".join(rest))
        assert {x for group in groups for x in group.split(",")} <= set(EXTRAS), groups
        files = [rest[i + 1] for i, word in enumerate(rest) if word in ("-c", "-r")]
        assert all(x.startswith("/dev/") or (ROOT / x).exists() for x in files), files
    elif program == "sbatch":
        check(shlex.split(rest[-1]), monkeypatch)
    elif program == "byzjax":
        __main__.command_line().parse(rest)
    elif program.endswith("python") and rest:
        check_python(rest, monkeypatch)


def check_python(words, monkeypatch):
    if words[0] == "-m":
        name, arguments = words[1], words[2:]
        if name.partition(".")[0] not in OURS:
            return
        found = importlib.util.find_spec(name)
        assert found is not None, name
        file = pathlib.Path(found.origin)
        run = functools.partial(runpy.run_module, name)
    else:
        file, arguments = ROOT / words[0], words[1:]
        assert file.exists(), file
        monkeypatch.syspath_prepend(file.parent)
        run = functools.partial(runpy.run_path, str(file))
    if not arguments:  # Some programs take none, and parse none.
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parsed(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(sys, "argv", [str(file), *arguments])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parsed)
    try:
        with warnings.catch_warnings():
            # Of modules that other tests have imported.
            warnings.simplefilter("ignore", RuntimeWarning)
            run(run_name="__main__")
    except Parsed:
        return
    except ModuleNotFoundError as error:
        if error.name != "flwr":  # Which has an environment of its own.
            raise
        text = file.read_text(encoding="utf-8")
        missing = [x for x in arguments if x.startswith("-") and f'"{x}"' not in text]
        assert missing == []
        return
    raise AssertionError(f"{file} parsed nothing")


def with_commands():
    return [page for page in PAGES if commands(page)]


@pytest.mark.parametrize(
    "page", with_commands(), ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_of_a_page_are_taken(page, monkeypatch):
    for words in commands(page):
        with monkeypatch.context() as patch:
            try:
                check(words, patch)
            except SystemExit as end:
                if end.code == 0:  # It was asked what it is.
                    continue
                raise AssertionError(f"{shlex.join(words)} is refused") from end


def test_pages_have_commands():
    assert len(with_commands()) >= 8


@pytest.mark.parametrize(
    "words",
    [
        ["make", "tests"],
        ["pip", "install", ".[experiment]"],
        ["byzjax", "rule"],
        ["python", "-m", "experiments", "run", "fig3", "--fast"],
        ["python", "-m", "benchmarks", "--part", "step", "--nothing"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_command_that_does_not_exist_is_seen(words, monkeypatch):
    with pytest.raises((AssertionError, SystemExit)):
        check(words, monkeypatch)
