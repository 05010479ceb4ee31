"""The theory's experiments: problems, measured errors, charts, settings.

That the command line runs them is among the tests of the figures.
"""

import csv
import dataclasses
import io

import jax
import numpy as np
import pytest

from experiments import __main__ as command_line
from experiments import theory, theory_chart
from experiments.figures import THEORY
from experiments.figures.theory_learning_rates import decades
from experiments.theory_problems import PROBLEMS, problem_of

SMALL = theory.Case(
    problem="least squares",
    num_workers=5,
    num_byzantine=1,
    steps=20,
    points=5,
    rates=(0.1, 0.25),
)
FAST = command_line.UNOPTIMISED


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_optimum_gradients_and_smoothness_are_right(name):
    problem, optimum = problem_of(name)
    assert np.linalg.norm(problem.gradient(optimum)) < 1e-12
    rng = np.random.default_rng(0)
    x, step = rng.normal(size=(2, 7, len(optimum)))
    assert (problem.value(x) > problem.value(optimum)).all()
    up, down = (problem.value(x + sign * 1e-5 * step) for sign in (1, -1))
    along = (problem.gradient(x) * step).sum(-1)
    np.testing.assert_allclose((up - down) / 2e-5, along, rtol=1e-6)
    # What workers train on is the same function, and L bounds each sample's curvature.
    batch = problem.inputs.astype(np.float32), problem.targets.astype(np.float32)
    np.testing.assert_allclose(
        problem.loss(x[0].astype(np.float32), batch), problem.value(x[0]), rtol=1e-5
    )
    scores = np.linspace(-5, 5, 11)
    bound = problem.curvatures(scores, 1.0).max() + problem.ridge
    np.testing.assert_allclose(np.linalg.norm(problem.inputs, axis=1), 1)
    np.testing.assert_allclose(bound, problem.smoothness)


@pytest.mark.parametrize("optimizer", theory.OPTIMIZERS)
def test_measured_errors_are_those_of_a_loop_in_numpy(optimizer):
    """Without attackers, with the definitions of both optimizers written out."""
    case = dataclasses.replace(
        *(SMALL,), optimizer=optimizer, num_byzantine=0, attack="none", rule="mean"
    )
    measured = theory.measure(case, 2, FAST)
    problem, optimum = problem_of(case.problem)
    radius = 2 * np.linalg.norm(optimum)
    eta = 0.25 / problem.smoothness
    x = before = w = np.zeros(len(optimum))
    d, seen = np.zeros((5, len(x))), []
    for t in range(1, case.steps + 1):
        draw, _ = jax.random.split(jax.random.fold_in(jax.random.key(1), t - 1))
        chosen = np.asarray(jax.random.randint(draw, (5, 4), 0, len(problem.targets)))

        def gradients(at, chosen=chosen):
            inputs, targets = problem.inputs[chosen], problem.targets[chosen]
            return ((inputs @ at - targets)[..., None] * inputs).mean(1)

        if optimizer == "mu2sgd":
            d = gradients(x) + (1 - 1 / t) * (d - gradients(before))
        else:
            d = gradients(x) if t == 1 else 0.9 * d + 0.1 * gradients(x)
        errors = d - problem.gradient(x), d.mean(0) - problem.gradient(x)
        excess = problem.value(x) - problem.value(optimum)
        seen.append([excess, (errors[0] ** 2).sum(1).mean(), (errors[1] ** 2).sum()])
        w = w - eta * (t if optimizer == "mu2sgd" else 1) * d.mean(0)
        w *= min(1, radius / np.linalg.norm(w))
        before = x
        x = x + 2 / (t + 2) * (w - x) if optimizer == "mu2sgd" else w
    want = np.array(seen)[case.times() - 1].T
    got = np.stack([getattr(measured, name)[1, 1] for name in theory.FIELDS])
    np.testing.assert_allclose(got, want, rtol=2e-4)
    assert (measured.excess[0, 1, 1:] != measured.excess[1, 1, 1:]).all()


def test_the_corrected_momentum_keeps_learning_under_attack():
    """Theorem 4.1 in small; that it holds at full length is in the results."""
    late, options = {}, dict(steps=512, points=19)
    for optimizer, rate in (("mu2sgd", 0.25 / 512), ("momentum", 0.25)):
        case = dataclasses.replace(
            *(SMALL,), optimizer=optimizer, rates=(rate,), **options
        )
        found = theory.measure(case, 2)
        fitted = case.times() >= 32
        late[optimizer] = theory_chart.slopes(
            case.times()[fitted], found.worker_error[:, 0, fitted]
        )
    assert (late["mu2sgd"] < -0.8).all() and (late["momentum"] > -0.3).all(), late


def test_what_is_measured_is_stored_and_not_measured_again(tmp_path, monkeypatch):
    options = dict(out=tmp_path, compiler_options=FAST)
    (first,) = theory.run([SMALL, SMALL], 2, **options)
    assert "0 finished, 1 to do" in theory.plan([SMALL], 3, out=tmp_path)
    assert "1 finished, 0 to do" in theory.plan([SMALL], 2, out=tmp_path)
    monkeypatch.delattr(theory, "measure")
    (again,) = theory.run([SMALL], 1, **options)
    for name in theory.FIELDS:
        one, two = getattr(first, name), getattr(again, name)
        assert one.shape == (2, 2, len(SMALL.times()))
        np.testing.assert_array_equal(one[:1], two)
    assert first.at(0.2) == 1 and first.at(0.12) == 0


def test_all_points_and_fits_are_in_the_files():
    """Charts of made-up measurements with known exponents."""
    for name, figure in THEORY.items():
        assert figure.CLAIM and "Claim:" in figure.__doc__
        measured = []
        for case in figure.cases():
            t, eta = case.times(), case.rates
            shrinking = 1 / t if case.optimizer == "mu2sgd" else 0.1 + 0 * t
            attacked = 1 + 2.0 * case.num_byzantine
            y = shrinking * attacked * np.ones((len(eta), 1))
            measured.append(theory.Measured(case, *[np.stack([y, 1.1 * y])] * 3))
        chart = figure.chart(measured)
        rows = theory_chart.cells(chart)[1:]
        assert len(rows) == sum(len(panel.lines) for panel in chart.panels)
        if name in ("theory_momentum_error", "theory_excess_loss"):
            assert len(chart.panels) == 8
            for row in rows:
                want = -1.0 if row[2].startswith("μ²-SGD") else 0.0
                assert [float(part) for part in row[3].split(" ± ")] == [want, 0.0]
        points = list(csv.DictReader(io.StringIO(theory_chart.as_csv(chart))))
        assert len(points) == sum(len(ln.x) for p in chart.panels for ln in p.lines)
        assert {point["seeds"] for point in points} == {"2"}
    x = np.array([0.01, 0.1, 1.0, 10.0])
    for excess, width in (([9, 1e-3, 1e-3, 9], 2), ([9] * 4, 0), ([1e-3] * 4, 3)):
        got = decades(x, np.array(excess, float), np.sqrt(9e-3))
        assert got == pytest.approx(width, abs=0.01)


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(problem="svm"), ["'svm'", "logistic"]),
        (dict(optimizer="adam"), ["'adam'", "mu2sgd"]),
        (dict(attack="label_flip"), ["label_flip"]),
        (dict(rule="crum"), ["'crum'", "krum"]),
        (dict(num_byzantine=9), ["num_byzantine=9", "num_workers=17"]),
        (dict(steps=0), ["steps=0"]),
        (dict(rates=()), ["rates=()"]),
    ],
)
def test_a_wrong_case_names_what_is_wrong(bad, words):
    with pytest.raises(ValueError) as error:
        theory.Case(**bad)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_settings_change_what_has_the_field(tmp_path, capsys):
    common = ["--out", str(tmp_path), "--set"]
    assert command_line.main(["run", "theory_byzantine", *common, "model=mlp"]) == 2
    assert "num_byzantine" in capsys.readouterr().err
    assert command_line.main(["plan", "theory_excess_loss", *common, "steps=8"]) == 0
    assert "16 programs" in capsys.readouterr().out
