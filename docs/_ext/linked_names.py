"""Every public name in code type on a page is a link to its reference.

`krum`, `byzjax.krum` and `attacks.alie` are found wherever they stand alone between
backticks, in pages as in docstrings, so that pages need no links that only this site
understands. Attacks without their namespace are names on the catalogue's page only:
elsewhere `nan` and `constant` are words.
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

from tests import public_names

NAMES = public_names.dotted()
SHORT = {name.removeprefix("byzjax."): name for name in NAMES}
ATTACKS = {
    name.removeprefix("byzjax.attacks."): name
    for name in NAMES
    if name.startswith("byzjax.attacks.")
}
# Of these the word is more often meant than the name.
WORDS = {"attacks", "layers", "partition", "poisoning", "rules", "sharding", "stack"}
CALL = re.compile(r"([\w.]+)\(.*\)")


class LinkNames(SphinxTransform):
    """Wraps literals that are public names into references to them."""

    default_priority = 500

    def apply(self):
        """Goes over the literals of a page."""
        for literal in list(self.document.findall(nodes.literal)):
            if _inside(literal, nodes.reference, addnodes.pending_xref, nodes.title):
                continue
            target = self._target(literal.astext())
            if target is None or target in _described_around(literal):
                continue
            link = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refexplicit=True,
                refwarn=True,
            )
            literal.replace_self(link)
            link += literal

    def _target(self, text):
        # A call is linked as what is called: ctma(median(), 3).
        call = CALL.fullmatch(text)
        text = call[1] if call else text
        if text in NAMES:
            return text
        if text in WORDS:
            return None
        if self.env.docname == "docs/catalogue" and text in ATTACKS:
            return ATTACKS[text]
        return SHORT.get(text)


def _inside(node, *kinds):
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def _described_around(node):
    """The names whose description a node is in."""
    found = set()
    while node.parent is not None:
        node = node.parent
        if isinstance(node, addnodes.desc):
            for signature in node.findall(addnodes.desc_signature):
                found |= set(signature.get("ids", ()))
    return found


def setup(app):
    """Called by Sphinx."""
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
