"""What a compiled program moves between devices, and what it keeps on one."""

import math
import re
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2}
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_MOVES = re.compile(
    r"= (.*?) (all-to-all|all-reduce|all-gather|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)


class Collective(NamedTuple):
    """One operation of a program, counted once where it is in a loop."""

    kind: str
    bytes: int  # Of its result on one device.


def _sizes(text):
    """Elements and bytes of each array that is named."""
    for dtype, dimensions in _ARRAY.findall(text):
        count = math.prod(int(n) for n in dimensions.split(",") if n)
        yield count, count * _BYTES.get(dtype, int(re.sub(r"\D", "", dtype) or 8) // 8)


def collectives(program: str) -> list[Collective]:
    """The collective operations in the text of a compiled program."""
    found = []
    for line in program.splitlines():
        move = _MOVES.search(line)
        if move:
            total = sum(size for _, size in _sizes(move[1]))
            found.append(Collective(move[2], total))
    return found


def largest(program: str) -> int:
    """Elements of the largest array that the program has on a device."""
    return max(
        count
        for line in program.splitlines()
        if " = " in line
        for count, _ in _sizes(line.partition(" = ")[2].partition("(")[0] or line)
    )
