"""The command line: what it prints, and what it says of mistakes."""

import inspect
import os
import subprocess
import sys

import jax
import pytest

import byzjax
from byzjax import __main__ as command
from byzjax import catalogue, demo
from tests import attacks_table, rules


def run(capsys, *words):
    """Exit status, standard output and error of a command."""
    try:
        status = command.main(words)
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def process(*words, **options):
    """A process of its own, as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "byzjax", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_every_factory_of_the_tables_is_listed_once():
    named = {rule.name.split("(")[0] for rule in rules.RULES}
    listed = [x.short for x in (*catalogue.rules(), *catalogue.meta_rules())]
    assert sorted(listed) == sorted({*named, "with_key"})
    of_attacks = {
        x.name.partition(" ")[0].partition("(")[0] for x in attacks_table.TABLE
    }
    assert of_attacks <= {entry.short for entry in catalogue.attacks()}
    factories = [n for n in byzjax.attacks.__all__ if n.islower()]
    assert [entry.short for entry in catalogue.attacks()] == sorted(factories)


def test_an_entry_is_what_the_code_says():
    (krum,) = (entry for entry in catalogue.rules() if entry.name == "krum")
    assert krum.factory is byzjax.krum
    assert krum.summary == "Krum: the row that is closest to its nearest others."
    assert krum.parameters == "num_byzantine, *, num_neighbors=None, squared=True"
    assert krum.reference.startswith("Blanchard, El Mhamdi, Guerraoui, Stainer: ")
    assert krum.reference.endswith("2017, https://arxiv.org/abs/1703.02757")
    (mean,) = (entry for entry in catalogue.rules() if entry.name == "mean")
    assert mean.parameters == mean.reference == ""


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_tables_have_every_name_and_fit(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    widest = {40: 72, 80: 80, 300: 100}[columns]
    known = {
        "rules": [*catalogue.rules(), *catalogue.meta_rules()],
        "attacks": catalogue.attacks(),
    }
    for name, entries in known.items():
        status, out, err = run(capsys, name)
        assert (status, err) == (0, "")
        assert max(map(len, out.splitlines())) <= widest
        starts = [line.split()[0] for line in out.splitlines() if line.strip()]
        for entry in entries:
            assert starts.count(entry.short) == 1
            assert "".join(entry.summary.split()) in "".join(out.split())


@pytest.mark.parametrize("name", ["krum", "byzjax.krum"])
def test_one_rule_in_full(name, capsys):
    status, out, _ = run(capsys, "rules", name)
    assert status == 0
    assert out.startswith("byzjax.krum(num_byzantine, *, num_neighbors=None")
    assert inspect.getdoc(byzjax.krum) in out
    assert run(capsys, "attacks", "attacks.alie")[1].startswith("byzjax.attacks.alie(")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ruls"], "no command 'ruls'; did you mean rules?"),
        (["x"], "no command 'x'; there are info, rules, attacks, demo"),
        (["rules", "Krun"], "nothing is called 'Krun'; did you mean krum"),
        (["attacks", "allie"], "nothing is called 'allie'; did you mean alie?"),
        (["demo", "--steps", "1" + "0" * 20], "needs a whole number from 8 to 1000000"),
        (["rules", "krum", "median"], "one name at a time, got 'median' as well"),
        (["rules", "zzz"], "nothing is called 'zzz'; byzjax rules lists all"),
        (["attacks", "empire"], "it is said of ipm; byzjax attacks lists all"),
        (["demo", "--stpes", "9"], "no argument '--stpes'; did you mean --steps?"),
        (["demo", "--steps", "7"], "needs a whole number from 8 to 1000000, got 7"),
        (
            ["demo", "--steps", "many"],
            "argument --steps: needs a whole number from 8 to",
        ),
        (["demo", "--attack", "ali"], "nothing is called 'ali'; did you mean alie"),
        (["demo", "--attack", "gaussian"], "gaussian asks for std"),
        (["demo", "--attack", "optimized"], "optimized asks for attack, aggregator"),
        (["rules", "attacks.alie"], "alie is one of the attacks: byzjax attacks alie"),
        (["attacks", "byzjax.nnm"], "nnm is one of the rules: byzjax rules nnm"),
        (["demo", "--attack", "krum"], "krum is one of the rules: byzjax rules krum"),
        (["info", "extra"], "no argument 'extra'"),
    ],
)
def test_mistakes(words, said, capsys):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert said in err and "usage: byzjax" in err and "Traceback" not in err


def test_without_a_command_it_helps(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    assert all(name in out for name in command.COMMANDS)
    assert "in the repository only" in " ".join(out.split())
    assert run(capsys, "--version")[1].strip() == byzjax.__version__


def test_info_names_versions_and_devices(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    for told in (byzjax.__version__, jax.__version__, str(jax.devices()[0])):
        assert told in out


def test_info_without_the_device_that_was_asked_for(capsys, monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", none)
    for words in (["info"], ["demo"]):
        status, _, err = run(capsys, *words)
        assert status == 1
        assert err == (
            "byzjax: JAX finds no device. Unable to initialize backend 'tpu'\n"
        )

    def lacking():  # As JAX does of a plugin.
        raise AssertionError

    monkeypatch.setattr(jax, "devices", lacking)
    status, _, err = run(capsys, "info")
    assert status == 1 and err.endswith("Is what JAX_PLATFORMS names installed?\n")


def test_the_demo_shows_what_the_library_is_for(capsys):
    status, out, err = run(capsys, "demo", "--steps", "80")
    assert (status, err) == (0, "")
    assert "8 of 17 workers send attacks.ipm(1.5)" in out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] != []]
    accuracy = [
        list(map(float, row)) for row in rows if row[0].isdigit() and row[1][0] in "01"
    ]
    assert [row[0] for row in accuracy] == list(range(0, 81, 10))
    _, mean, median, mixed = accuracy[-1]
    assert mean < 0.2 < 0.6 < median < mixed


def test_a_demo_needs_steps_for_its_rows():
    with pytest.raises(ValueError, match="got steps=3 and rows=8"):
        next(demo.run(byzjax.attacks.alie(), 3))


def test_a_pipe_that_nobody_reads_is_no_error():
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with process("rules", env=environment) as running:
        running.stdout.close()
        err = running.stderr.read()
        running.wait(timeout=120)
    assert (running.returncode, err) == (0, "")
