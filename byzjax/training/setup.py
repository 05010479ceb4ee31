"""What a trainer is made of: its parts and numbers, checked once."""

import dataclasses
import difflib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from byzjax import checks, written
from byzjax.attack import Attack
from byzjax.base import Aggregator
from byzjax.sharding.layout import Layout
from byzjax.sharding.way import check_layout, check_workers
from byzjax.trees import Tree


@dataclasses.dataclass(frozen=True)
class Setup:
    """The arguments of `trainer`, checked, and what follows from them."""

    loss_fn: Callable[..., Any]
    worker: optax.GradientTransformation
    attack: Attack | None
    aggregator: optax.GradientTransformation
    server: optax.GradientTransformation
    num_workers: int  # m
    num_byzantine: int  # f
    poison: Callable[[Any], Any] | None
    max_grad_norm: float | None
    has_model_state: bool
    has_aux: bool
    model_rule: optax.GradientTransformation
    model_attack: Attack | None
    workers_at_once: int | None
    report_workers: bool
    layout: Layout | None = None

    def __post_init__(self):
        m = checks.count("trainer", num_workers=self.num_workers, minimum=1)
        f = checks.count("trainer", num_byzantine=self.num_byzantine)
        if not f < m:
            raise ValueError(
                "trainer needs num_byzantine < num_workers, got "
                f"num_byzantine={f} and num_workers={m}"
            )
        self._check_parts()
        self._check_layout()
        if self.max_grad_norm is not None:
            checks.number(
                "trainer", max_grad_norm=self.max_grad_norm, open_interval=True
            )
        if self.workers_at_once is not None:
            checks.count("trainer", workers_at_once=self.workers_at_once, minimum=1)
        if self.poison is not None and self.num_computed < m:
            raise ValueError(
                "trainer needs an attack that sends what the Byzantine workers "
                "computed for poison to have an effect, got one that reads the honest "
                "messages only"
            )

    def _check_parts(self):
        for keyword in ("worker", "server"):
            value = getattr(self, keyword)
            if isinstance(value, optax.MultiSteps):  # As optax.chain takes it too.
                raise TypeError(
                    f"trainer needs {keyword} to be an optax.GradientTransformation, "
                    f"got an optax.MultiSteps: give {keyword}=optax.MultiSteps(...)"
                    ".gradient_transformation()"
                )
        link = optax.GradientTransformation, "an optax.GradientTransformation"
        forger = Attack | None, "a byzjax.Attack"
        for keyword, value, (kind, name) in (
            ("aggregator", self.aggregator, link),
            ("server", self.server, link),
            ("worker", self.worker, link),
            ("model_state_aggregator", self.model_rule, link),
            ("attack", self.attack, forger),
            ("model_state_attack", self.model_attack, forger),
        ):
            if not isinstance(value, kind):
                raise TypeError(
                    f"trainer needs {keyword} to be {name}, got {value!r}"
                    f"{written.not_called(value)}"
                )
        if written.made_by(self.worker, "per_worker"):
            raise TypeError(
                "trainer needs worker to be of one worker's gradient, got "
                f"{self.worker!r}: a trainer runs it for each worker itself, so give "
                "it without per_worker"
            )
        if written.made_by(self.worker, "anytime", "mu2sgd", "mu2sgd_authors"):
            raise TypeError(
                "trainer needs worker to return a gradient, got "
                f"{self.worker!r}, which returns a step of the parameters: for μ²-SGD "
                "give worker=byzjax.storm() and server=byzjax.anytime(optax.sgd(...))"
            )
        whose = {"worker": "a worker's gradient", "server": "the aggregate"}
        for keyword, what in whose.items():
            if isinstance(getattr(self, keyword), Aggregator | Attack):
                raise TypeError(
                    f"trainer needs {keyword} to read one tree, {what}, not a stack, "
                    f"got {getattr(self, keyword)!r}"
                )
        for value in (self.aggregator, self.model_rule):
            if isinstance(value, Attack):
                raise TypeError(
                    f"trainer needs aggregator to be a rule, got {value!r}: an attack "
                    "is given as attack=..., or model_state_attack=..."
                )
        functions = {"loss_fn": self.loss_fn}
        if self.poison is not None:
            functions["poison"] = self.poison
        for keyword, value in functions.items():
            if not callable(value):
                raise TypeError(
                    f"trainer needs {keyword} to be a function, got {value!r}"
                )

    def _check_layout(self):
        if self.layout is None:
            return
        check_layout("trainer", self.layout)
        check_workers("trainer", self.layout, self.num_workers)
        if not isinstance(self.aggregator, Aggregator):
            raise TypeError(
                "trainer needs aggregator to be a byzjax.Aggregator with a layout, got "
                f"{self.aggregator!r}: put what follows the rule in a chain into the "
                "server, as server=optax.chain(...)"
            )

    def check_memory(self, worker_state: Tree, params: Tree) -> None:
        """A rule that watches wants rows that could change places in every step."""
        if not isinstance(self.aggregator, Aggregator) or not self.aggregator.outermost:
            return
        of_params = {jnp.shape(leaf) for leaf in jax.tree.leaves(params)}
        for leaf in map(jnp.asarray, jax.tree.leaves(worker_state)):
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            if floating and leaf.size > 1 and leaf.shape in of_params:
                raise ValueError(
                    "trainer.init needs a worker that remembers no gradients with "
                    f"{self.aggregator!r}, which watches those of each step, got "
                    f"worker={written.shown(self.worker)}: put momentum into the "
                    "server, as server=optax.chain(byzjax.momentum(), ...)"
                )

    def taken_by(self, extra: Collection[str]) -> frozenset[str]:
        """Which extra arguments of a step the aggregator reads, or may read.

        A chain passes all of them on to links that do not say what they take; nearly
        the name of what rules take it is a mistake.
        """
        if isinstance(self.aggregator, Aggregator):
            return self.aggregator.takes - {"key"}
        if isinstance(self.aggregator, optax.GradientTransformationExtraArgs):
            rules_take = {"weights", "present", "reference"}
            others = set(extra) - rules_take
            near = {
                name
                for name in others
                if difflib.get_close_matches(name, rules_take, cutoff=0.75)
            }
            return frozenset(set(extra) - near | rules_take)
        return frozenset()

    @property
    def num_worker_shards(self) -> int:
        """Over how many devices the workers are spread."""
        return 1 if self.layout is None else self.layout.num_worker_shards

    @property
    def num_rows(self) -> int:
        """Those of `live`, and as many more as give every device equally many."""
        count = len(self.live)
        return count + -count % self.num_worker_shards

    @property
    def live(self) -> list[int]:
        """Which of the computed rows are computed: all but absent workers' ones."""
        if self.layout is None:
            return list(range(self.num_computed))
        return self.layout.live(self.num_computed)

    @property
    def num_given(self) -> int:
        """Workers that have batches."""
        lacking = 0 if self.layout is None else len(self.layout.absent)
        return self.num_workers - lacking

    @property
    def num_honest(self) -> int:
        """h = m − f, whose rows come first."""
        return self.num_workers - self.num_byzantine

    @property
    def num_computed(self) -> int:
        """Rows computed by following the protocol; others are forged from these."""
        attacks = self.attack, self.model_attack
        reads_own = any(a is not None and a.needs_own for a in attacks)
        if self.attack is None or reads_own:
            return self.num_workers
        return self.num_honest


def number_of_attackers(
    given: Any, attack: Any, model_attack: Any, poison: object
) -> Any:
    """The trainer's own f, or that of its attacks: one number, never a silent zero."""
    if given is not None:
        given = checks.count("trainer", num_byzantine=given)
    parts = {"attack": attack, "model_state_attack": model_attack, "poison": poison}
    parts = {keyword: part for keyword, part in parts.items() if part is not None}
    named = {"num_byzantine": given}
    for keyword, part in parts.items():
        if isinstance(part, Attack):
            named[f"{keyword}'s num_byzantine"] = part.num_byzantine
    numbers = {name: f for name, f in named.items() if f is not None}
    if len(set(numbers.values())) > 1:
        each = " and ".join(f"{name}={f}" for name, f in numbers.items())
        raise ValueError(f"trainer needs one number of attackers, got {each}")
    if numbers:
        return next(iter(numbers.values()))
    if not parts:
        return 0
    raise ValueError(
        f"trainer needs num_byzantine with {' and '.join(parts)}, got "
        "num_byzantine=None: say how many of the workers attack, 0 for none"
    )
