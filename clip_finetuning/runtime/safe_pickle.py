"""Read the plain data of a pickle. A pickle from the internet must never run code, nor bring the reader down.

A pickle is a program for a small stack machine. The standard library's machine imports and calls whatever the program
names, and even with every name replaced a hostile program can kill it: a million nested tuples as a dictionary key
overflow the C stack, six bytes make it reserve gigabytes. `pickletools.genops` reads the same instructions, of every
protocol, and runs none; the machine here has nothing to call with: tensors, arrays and objects of any class become
`STAND_IN`, only text is a dictionary key, and `MAX_BYTES` and `MAX_INSTRUCTIONS` bound the time and memory that a file
can take.
"""

import io
import pickletools
from itertools import islice
from typing import Any

from clip_finetuning.runtime.text import decoded

MAX_BYTES = 64 << 20  # a view of a tensor may drag a whole batch into its pickle; more than this is no record
MAX_INSTRUCTIONS = 1_000_000  # 512 tokens in three lists take about 3,000


class _StandIn:
    def __repr__(self):
        return "<not plain data>"


STAND_IN = _StandIn()  # what anything but plain data becomes

# Instructions by what they do, under the names of pickletools.
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
PUSHED = frozenset(NUMBERS + TEXTS + BYTES)
PYTHON_2_TEXT = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))  # bytes of no stated encoding, read as Latin-1
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
PUT, GET = frozenset(("PUT", "BINPUT", "LONG_BINPUT")), frozenset(("GET", "BINGET", "LONG_BINGET"))
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FROM_MARK = {"LIST": list, "TUPLE": tuple, "FROZENSET": list}
ADDED = {"APPEND": 1, "APPENDS": None, "ADDITEMS": None}  # the number of values taken; None: up to the mark
SET = {"SETITEM": 2, "SETITEMS": None}
DROPPED = {"POP": 1, "POP_MARK": None}
NOTHING = frozenset(("PROTO", "FRAME", "READONLY_BUFFER", "STOP"))
# Those that would import, call, or fetch from outside, with the number of values that they take from the stack.
OPAQUE = {
    **dict.fromkeys(("GLOBAL", "PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"), 0),
    "BINPERSID": 1,
    "REDUCE": 2,
    "NEWOBJ": 2,
    "STACK_GLOBAL": 2,
    "NEWOBJ_EX": 3,
    "INST": None,
    "OBJ": None,
}


def load(data: bytes) -> object:
    """The object that a pickle holds, of dict, list, tuple, str, bytes, int, float, bool, None and `STAND_IN`.

    Sets come as lists. Raises ValueError for a damaged pickle and for one beyond the bounds.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data):,} bytes; a record has at most {MAX_BYTES:,}")
        return Machine().run(data)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"not a readable pickle ({error})") from error


class Machine:
    """A stack, the marks in it, the values that were put aside to come again, and how many instructions may still come."""

    def __init__(self, limit: int | None = None) -> None:
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict = {}
        self.limit = self.left = MAX_INSTRUCTIONS if limit is None else limit

    def opaque(self, name: str, argument: Any, values: list) -> object:
        """What takes the place of an import, a call or a fetch; `values`: what the instruction took from the stack."""
        return STAND_IN

    def set_state(self, target: object, state: object) -> None:
        """What becomes of the state that an object would get."""

    def run(self, data: bytes) -> object:
        """What stands on top of the stack at the end."""
        file = io.BytesIO(data)
        while not self._reaches_stop(data, file):
            pass
        return self.stack.pop()

    def _reaches_stop(self, data: bytes, file: io.BytesIO) -> bool:
        """Run the instructions from where the file stands, up to STOP or a string that `genops` cannot read.

        That is a quoted one of Python 2 which is not ASCII: it is pushed, and the file stands behind it. The most
        frequent instructions are told here: a call for each would take as long as reading it.
        """
        start, last, number, name = file.tell(), None, 0, ""
        try:
            for number, (opcode, argument, last) in enumerate(islice(pickletools.genops(file), self.left), 1):  # noqa: B007
                name = opcode.name
                if name in PUSHED:
                    self.stack.append(argument)
                elif name in PUT:
                    self.memo[argument] = self.stack[-1]
                elif name == "MEMOIZE":
                    self.memo[len(self.memo)] = self.stack[-1]
                elif name == "MARK":
                    self.marks.append(len(self.stack))
                elif name not in NOTHING:
                    self._build(name, argument)
        except UnicodeDecodeError as error:
            odd = start if last is None else _end_of(data, last)
            if data[odd : odd + 1] != b"S":
                raise
            self.stack.append(decoded(error.object))
            self.left = max(0, self.left - number - 1)
            return False
        if name != "STOP":
            raise ValueError(f"more than {self.limit:,} instructions")
        return True

    def _build(self, name: str, argument: Any) -> None:
        """Put values together, bring them again, or drop them."""
        stack = self.stack
        if name in GET:
            stack.append(self.memo[argument])
        elif name in PYTHON_2_TEXT:
            stack.append(decoded(argument.encode("latin-1")))
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in OPAQUE:
            values = self._taken(OPAQUE[name])
            stack.append(self.opaque(name, argument, values))
        elif name in TUPLES:
            stack.append(tuple(self._taken(TUPLES[name])))
        elif name in FROM_MARK:
            stack.append(FROM_MARK[name](self._taken()))
        elif name in ADDED:
            values = self._taken(ADDED[name])
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
        elif name in SET:
            values = self._taken(SET[name])
            _set_items(stack[-1], values)
        elif name == "DICT":
            values = self._taken()
            stack.append({})
            _set_items(stack[-1], values)
        elif name in DROPPED:
            self._taken(DROPPED[name])
        elif name == "BUILD":
            (state,) = self._taken(1)
            self.set_state(stack[-1], state)
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise ValueError(f"unknown instruction {name}")

    def _taken(self, count: int | None = None) -> list:
        """So many values from the top of the stack, or those above the last mark, removed from it."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if start < 0:
            raise IndexError("the stack is empty")
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _set_items(target: object, values: list) -> None:
    """Fill a dictionary from key, value, key, value. Keys other than text are dropped: hashing a tuple may not end."""
    if isinstance(target, dict):
        target.update((key, value) for key, value in zip(values[::2], values[1::2]) if isinstance(key, str))


def _end_of(data: bytes, position: int) -> int:
    """Where the instruction ends that begins at a position."""
    file = io.BytesIO(data)
    file.seek(position)
    next(pickletools.genops(file))
    return file.tell()
