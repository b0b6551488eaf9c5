"""A reader of the machine code of NVIDIA's GPUs, as `nvdisasm -c` prints it.

It knows blocks, branches and loops, and which registers an instruction reads and writes: enough to
say how many loads are under way before the first of them is waited for, and how many instructions
a loop takes on its usual way.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z0-9_.]+)\s*([^;]*);")
LABEL = re.compile(r"^(\.L\w+):")
TARGET = re.compile(r"\((\.L\w+)\)")
PLACE = re.compile(r"\[(R\d+)(?:\.64)?(?:\+(-?0x[0-9a-f]+))?\]")
PAIR = re.compile(r"D|CS2R$|\w+\.F?64|IMAD\.WIDE")  # what writes two registers
NEVER = (-float("inf"), None)
ONLY_READ = ("ST", "RED", "BRA", "EXIT", "BAR", "BSYNC", "WARPSYNC")  # these write no register


class Instruction(NamedTuple):
    """One instruction: its guard ("" if it is always done), name and operands."""

    guard: str
    name: str
    operands: str

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]

    @property
    def bytes(self) -> int:
        """What a load brings."""
        return next((b // 8 for b in (256, 128, 64, 16, 8) if f"{b}" in self.name), 4)

    @property
    def written(self) -> set[int]:
        """The registers that are written."""
        if self.base.startswith(ONLY_READ):
            return set()
        found = re.match(r"\s*R(\d+)", self.operands)
        first = int(found.group(1)) if found else None
        wide = self.bytes // 4 if self.base.startswith("LD") else 1 + bool(PAIR.match(self.name))
        return set() if first is None else set(range(first, first + max(1, wide)))

    @property
    def read(self) -> set[int]:
        """Registers that are read; of pairs as well as of single ones."""
        rest = self.operands
        if not self.base.startswith(ONLY_READ):
            rest = rest.partition(",")[2]
        found = re.findall(r"\bR(\d+)(\.64)?", rest)
        return {int(r) + more for r, wide in found for more in ((0, 1) if wide else (0,))}


Way = list[Instruction]
Loop = tuple[int, set[int]]  # the first block, and all


class Code:
    """The machine code of one kernel: blocks of instructions, and where each goes on."""

    def __init__(self, listing: str) -> None:
        self.blocks: list[Way] = [[]]
        labels: dict[str, int] = {}
        for line in listing.splitlines():
            label, found = LABEL.match(line), INSTRUCTION.search(line)
            if label:
                if self.blocks[-1]:
                    self.blocks.append([])
                labels[label.group(1)] = len(self.blocks) - 1
            elif found:
                self.blocks[-1].append(Instruction(found[1] or "", found[2], found[3]))
                if found[2].startswith(("BRA", "EXIT")):
                    self.blocks.append([])
        self.next: list[list[int]] = []
        for number, block in enumerate(self.blocks):
            last = block[-1] if block else Instruction("", "EXIT", "")
            target = TARGET.search(last.operands) if last.base == "BRA" else None
            to = [labels[target.group(1)]] if target else []
            # A branch on a uniform predicate names it among its operands.
            always = not last.guard and (last.base == "EXIT" or "P" not in _before(last.operands))
            if (last.base not in ("BRA", "EXIT") or not always) and number + 1 < len(self.blocks):
                to.append(number + 1)
            self.next.append(to)

    @property
    def instructions(self) -> Iterator[Instruction]:
        return (i for block in self.blocks for i in block)

    def count(self) -> Counter[str]:
        """Return how often each instruction is there."""
        return Counter(i.base for i in self.instructions)

    @cached_property
    def _order(self) -> list[int]:
        """Blocks that are reached, each behind those that lead to it without going back."""
        seen, done = {0}, []
        stack = [(0, iter(self.next[0]))]
        while stack:
            block, rest = stack[-1]
            following = next((b for b in rest if b not in seen), None)
            if following is None:
                done.append(block)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(self.next[following])))
        return done[::-1]

    @cached_property
    def loops(self) -> list[Loop]:
        """Each loop: its first block, and those that lead back to it."""
        place = {block: k for k, block in enumerate(self._order)}
        before: dict[int, set[int]] = {block: set() for block in place}
        for block in place:
            for following in self.next[block]:
                before[following].add(block)
        loops: dict[int, set[int]] = {}
        for block in place:
            for head in self.next[block]:
                if place[head] > place[block]:
                    continue
                inside = loops.setdefault(head, {head})
                todo = [block]
                while todo:
                    if (one := todo.pop()) not in inside:
                        inside.add(one)
                        todo += before[one]
        return list(loops.items())

    def way(self, loop: Loop, weight: Callable[[Instruction], float]) -> Way:
        """Return the instructions of one turn of a loop, on the way with the greatest weight.

        Loops inside it are gone through once.
        """
        head, inside = loop
        best: dict[int, tuple[float, int | None]] = {head: (0.0, None)}
        place = {block: k for k, block in enumerate(self._order)}
        last = head
        for block in self._order:
            if block not in inside or block not in best:
                continue
            total = best[block][0] + sum(map(weight, self.blocks[block]))
            for following in self.next[block]:
                if following == head:
                    if total >= best.get(-1, NEVER)[0]:
                        best[-1], last = (total, block), block
                elif (
                    following in inside
                    and place[following] > place[block]
                    and total > best.get(following, NEVER)[0]
                ):
                    best[following] = (total, block)
        path: Way = []
        at: int | None = last
        while at is not None:
            path = self.blocks[at] + path
            at = best[at][1]
        return path

    @property
    def innermost(self) -> list[Loop]:
        """Loops that hold no other."""
        return [a for a in self.loops if not any(b[1] < a[1] for b in self.loops)]

    @property
    def outermost(self) -> list[Loop]:
        """Loops that no other holds."""
        return [a for a in self.loops if not any(a[1] < b[1] for b in self.loops)]

    def shortest(self, loop: Loop) -> Way:
        """Return one turn of a loop with most multiply-adds; of several ways, the shortest."""
        return self.way(loop, lambda i: 1000 * multiply_adds([i]) - 1)

    @property
    def busiest(self) -> Loop:
        """Of the loops that read rows, that with most multiply-adds in a turn."""
        reading = [loop for loop in self.loops if self.loads_under_way(loop)]
        return max(reading, key=lambda loop: multiply_adds(self.shortest(loop)))

    def loads_under_way(self, loop: Loop) -> int:
        """Return the loads from memory on their way in one turn, before the first is waited for.

        Where a loop has wide loads, those count: the narrow ones are for the last columns. Those of
        loops inside it are their own; 0: there are no others.
        """
        own = loop[1].difference(*[b[1] for b in self.loops if b[1] < loop[1]])
        loads = [i for b in own for i in self.blocks[b] if from_memory(i)]
        widest = max((i.bytes for i in loads), default=0)
        wide = {id(i) for i in loads if i.bytes == widest}
        return under_way(self.way(loop, lambda i: id(i) in wide)) if wide else 0

    def load_loops(self) -> list[int]:
        """Return the loads under way in each loop that has any."""
        return [k for k in map(self.loads_under_way, self.loops) if k]


def _before(operands: str) -> str:
    return operands.partition("`")[0]


def from_memory(i: Instruction) -> bool:
    """Return whether this reads global memory."""
    return i.base in ("LDG", "LD")


def multiply_adds(path: Iterable[Instruction]) -> int:
    return sum(i.base in ("FFMA", "DFMA") for i in path)


def under_way(path: Iterable[Instruction]) -> int:
    """Return how many loads stand before the first instruction that waits for one of them.

    A load of an address does not count; what reads there does. Neighbouring halves of 8 bytes (as
    which sm_100 and sm_120 may load a number) are one load.
    """
    waiting: dict[int, int] = {}  # registers to come, and the number of their load
    halves: dict[tuple[str, int], int] = {}  # where 4 bytes were loaded from, and its number
    count = 0
    for number, i in enumerate(path):
        needed = {waiting[r] for r in i.read if r in waiting}
        addresses = re.findall(r"\[R(\d+)", i.operands)
        if needed - {waiting.get(int(r)) for r in addresses}:
            break
        count -= len(needed)
        waiting = {r: n for r, n in waiting.items() if n not in needed}
        if from_memory(i):
            own, place = number, PLACE.search(i.operands)
            if place and i.bytes == 4:
                at = int(place[2] or "0", 16)
                other = halves.pop((place[1], at - 4), halves.pop((place[1], at + 4), None))
                if other is None:
                    halves[place[1], at] = number
                else:
                    own = other
            count += own == number
            waiting |= dict.fromkeys(i.written, own)
        halves = {p: n for p, n in halves.items() if int(p[0][1:]) not in i.written}
    return count


def disassembler() -> str | None:
    """Return where nvdisasm is: on the path, or in NVIDIA's wheel."""
    found = shutil.which("nvdisasm")
    spec = find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        found = found or next(map(str, Path(place).glob("*/bin/nvdisasm")), None)
    return found


def read(code: bytes, kernel: str, tool: str) -> Code:
    """Return the machine code of one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as place:
        place.write(code)
        place.flush()
        said = subprocess.run([tool, "-c", place.name], capture_output=True, text=True, check=True)
    return Code(said.stdout.partition(f".text.{kernel}:")[2].partition("\n\t.section")[0])
