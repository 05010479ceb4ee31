"""What there is, read from the code itself: for the terminal and for the pages.

A rule, a meta-rule or an attack is known by where its factory is written and by what
that returns; its one line, its parameters and its paper are those of the factory. So
there is no second list that could say something else.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import byzjax

_RULES = "byzjax.aggregators."
_META = "byzjax.aggregators.meta."


class Entry(NamedTuple):
    """A factory, and what is said of it.

    Attributes:
      name: what comes after `byzjax.`, such as `krum` or `attacks.alie`.
      factory: the function itself.
      summary: the first line of its docstring.
      parameters: names and defaults, as in its definition, without brackets.
      reference: who published it where, in one line; empty if nobody did.
    """

    name: str
    factory: Callable[..., Any]
    summary: str
    parameters: str
    reference: str

    @property
    def short(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition(".")[2]


def rules() -> list[Entry]:
    """The rules that need no other, in alphabetical order.

    Example:
      >>> from byzjax import catalogue
      >>> [entry.parameters for entry in catalogue.rules() if entry.name == "krum"]
      ['num_byzantine, *, num_neighbors=None, squared=True']
    """
    return [x for x in _aggregators() if not _written_in(x.factory).startswith(_META)]


def meta_rules() -> list[Entry]:
    """The rules over another one, in alphabetical order."""
    return [x for x in _aggregators() if _written_in(x.factory).startswith(_META)]


def attacks() -> list[Entry]:
    """What Byzantine workers may send, in alphabetical order."""
    return _entries(byzjax.attacks, byzjax.Attack, "attacks.")


def reference_of(factory: Callable[..., Any]) -> str:
    """Who published it where, as its docstring says, in one line.

    Example:
      >>> import byzjax
      >>> from byzjax import catalogue
      >>> print(catalogue.reference_of(byzjax.median)[:39])
      Yin, Chen, Ramchandran, Bartlett: Byzan
    """
    return _section(inspect.getdoc(factory) or "", "Reference:")


def _aggregators() -> list[Entry]:
    made = _entries(byzjax, byzjax.Aggregator)
    return [x for x in made if _written_in(x.factory).startswith(_RULES)]


def _entries(module: Any, kind: type, prefix: str = "") -> list[Entry]:
    found = []
    for name in sorted(module.__all__):
        factory = getattr(module, name)
        if not inspect.isfunction(factory):
            continue
        signature = inspect.signature(factory)
        if signature.return_annotation is kind:
            found.append(_entry(prefix + name, factory, signature))
    return found


def _entry(name: str, factory: Any, signature: inspect.Signature) -> Entry:
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = inspect.getdoc(factory) or ""
    return Entry(
        name=name,
        factory=factory,
        summary=text.partition("\n")[0],
        parameters=str(inspect.Signature(bare))[1:-1],
        reference=reference_of(factory),
    )


def _section(text: str, title: str) -> str:
    """The lines under a title of a docstring, joined."""
    lines = iter(text.splitlines())
    if title not in lines:  # Which takes the lines before it.
        return ""
    inside = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        inside.append(line.strip())
    return " ".join(inside).strip()


def _written_in(factory: Callable[..., Any]) -> str:
    return getattr(inspect.unwrap(factory), "__module__", "")
