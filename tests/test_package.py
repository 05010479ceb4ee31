"""What is published says what it is, and of one version."""

import importlib.metadata
import pathlib
import re
import tomllib

import byzjax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_there_is_one_version():
    version = PROJECT["project"]["version"]
    assert byzjax.__version__ == importlib.metadata.version("byzjax") == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [version]


def test_the_citation_names_the_paper():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for said in ("Efficient Meta-Aggregation", "Dahan", "Levy", "arXiv:2405.14759"):
        assert said in citation
    assert PROJECT["project"]["urls"]["Paper"].endswith("2405.14759")


def test_the_wheel_brings_the_command_its_types_and_its_licence():
    found = importlib.metadata.distribution("byzjax")
    (script,) = found.entry_points.select(group="console_scripts", name="byzjax")
    assert script.load() is importlib.import_module("byzjax.__main__").main
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert found.metadata["Requires-Python"] == ">=3.11"
    extras = set(found.metadata.get_all("Provides-Extra"))
    assert extras == set(PROJECT["project"]["optional-dependencies"])
    assert (pathlib.Path(byzjax.__file__).parent / "py.typed").is_file()


def test_tests_of_a_group_run_in_one_process(request):
    """As their fixtures and compiled programs are made once in each process.

    xdist 3.8 writes the group behind a test's name, which pytest 9.2 does not let it.
    """
    names = {item.nodeid for item in request.session.items if group_of(item)}
    if request.config.getoption("loadgroup", default=False):
        assert all("@" in name for name in names)


def group_of(item):
    return item.get_closest_marker("xdist_group")
