"""What the theory's figures share: their cases, and a panel a problem and attack."""

from collections.abc import Callable, Iterable, Sequence

from experiments.plot import pretty
from experiments.theory import PROBLEMS, Case, Measured
from experiments.theory_chart import Line, Panel

NAMES = {"mu2sgd": "μ²-SGD", "momentum": "momentum"}
ATTACKS = {"sign_flip": 8, "little": 8, "empire": 8}
# In units of 1/L. μ²-SGD moves w by η·t: with η = RATE/T steps stay below RATE/L.
RATE = 1 / 4


def cases(attacks: dict[str, int]) -> list[Case]:
    """Both problems and optimizers under attacks by some of 17 workers."""
    return [
        Case(problem=problem, optimizer=optimizer, attack=attack, num_byzantine=f)
        for problem in PROBLEMS
        for attack, f in attacks.items()
        for optimizer in NAMES
    ]


def panels(
    measured: Sequence[Measured], lines: Callable[[Measured], Iterable[Line]]
) -> list[Panel]:
    """A row a problem, a column an attack; the lines of both optimizers."""
    found: dict[tuple[str, str], list[Line]] = {}
    for each in measured:
        found.setdefault((each.case.problem, column(each.case)), []).extend(lines(each))
    return [Panel(*place, lines) for place, lines in found.items()]


def column(case: Case) -> str:
    if not case.num_byzantine:
        return "nobody attacks"
    return f"{pretty(case.attack)}, {case.num_byzantine} of {case.num_workers}"


def title(text: str, measured: Sequence[Measured]) -> str:
    """A heading that says what was run."""
    case, seeds = measured[0].case, len(measured[0].excess)
    return (
        f"{text}\n{case.num_workers} workers × {case.batch_size} samples, "
        f"CTMA over the geometric median, {case.steps} steps, {seeds} seeds"
    )
