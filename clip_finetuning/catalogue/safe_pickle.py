"""Read the plain data of a pickle. A pickle from the internet must never run code, nor bring the reader down.

A pickle is a program for a small stack machine. The standard library's machine imports and calls whatever the program
names, and even with every name replaced a hostile program can kill it: a million nested tuples as a dictionary key
overflow the C stack, six bytes make it reserve gigabytes. This machine reads the same instructions but has nothing to
call with: tensors, arrays and objects of any class become `STAND_IN`, only text is a dictionary key, and `MAX_BYTES`
and `MAX_INSTRUCTIONS` bound the time and memory that a file can take.
"""

import struct

MAX_BYTES = 64 << 20  # a view of a tensor may drag a whole batch into its pickle; more than this is no record
MAX_INSTRUCTIONS = 1_000_000  # 512 tokens in three lists take about 3,000


class _StandIn:
    def __repr__(self):
        return "<not plain data>"


STAND_IN = _StandIn()  # what anything but plain data becomes

# Instructions by the form of their argument (the names are those of pickletools).
CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
EMPTY = {ord("]"): list, ord("}"): dict, ord(")"): tuple, 0x8F: list}
NUMBERS = {
    code: struct.Struct(form)
    for codes, form in {
        b"Khq\x80\x82": "<B",
        b"M\x83": "<H",
        b"J": "<i",
        b"jr\x84": "<I",
        b"G": ">d",
        b"\x95": "<Q",
    }.items()
    for code in codes
}
LENGTHS = {
    code: struct.Struct(form)
    for codes, form in {b"CU\x8a\x8c": "<B", b"T\x8b": "<i", b"BX": "<I", b"\x8d\x8e\x96": "<Q"}.items()
    for code in codes
}
LINES = dict.fromkeys(b"FILSVPgp", 1) | dict.fromkeys(b"ci", 2)
TEXT, PYTHON_2_TEXT, INTEGERS = b"X\x8c\x8d", b"TU", b"\x8a\x8b"
# Instructions by what they do. All others with an argument push it.
PUT, GET = frozenset(b"pqr"), frozenset(b"ghj")
TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
FROM_MARK = {ord("l"): list, ord("t"): tuple, 0x91: list}
NOTHING = frozenset(b"\x80\x95\x98")  # protocol, frame, read-only buffer
# Those that would import, call, or fetch from outside, with the number of values that they take from the stack.
OPAQUE = dict.fromkeys(b"cP\x82\x83\x84\x97", 0) | {ord("Q"): 1, ord("R"): 2, 0x81: 2, 0x93: 2, 0x92: 3}
OPAQUE_FROM_MARK = frozenset(b"io")
PUSHED = (frozenset(NUMBERS) | frozenset(LENGTHS) | frozenset(b"FILSV")) - PUT - GET - NOTHING - frozenset(OPAQUE)


def load(data):
    """The object that a pickle holds, of dict, list, tuple, str, bytes, int, float, bool, None and `STAND_IN`.

    Sets come as lists. Raises ValueError for a damaged pickle and for one beyond the bounds.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data):,} bytes; a record has at most {MAX_BYTES:,}")
        return _run(data)
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise ValueError(f"not a readable pickle ({error})") from error


def _run(data):
    stack, marks, memo = [], [], {}

    def taken(start):
        """What stands in the stack from `start` on, removed from it."""
        if start < 0:
            raise IndexError("the stack is empty")
        values = stack[start:]
        del stack[start:]
        return values

    for code, argument in _instructions(data):
        if code in PUSHED:
            stack.append(argument)
        elif code in EMPTY:
            stack.append(EMPTY[code]())
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in PUT:
            memo[argument] = stack[-1]
        elif code in GET:
            stack.append(memo[argument])
        elif code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code == ord("("):
            marks.append(len(stack))
        elif code in OPAQUE:
            taken(len(stack) - OPAQUE[code])
            stack.append(STAND_IN)
        elif code in OPAQUE_FROM_MARK:
            taken(marks.pop())
            stack.append(STAND_IN)
        elif code == ord("b"):  # BUILD: the state of an object
            stack.pop()
        elif code in TUPLES:
            stack.append(tuple(taken(len(stack) - TUPLES[code])))
        elif code in FROM_MARK:
            stack.append(FROM_MARK[code](taken(marks.pop())))
        elif code == ord("d"):
            values = taken(marks.pop())
            stack.append({})
            _set_items(stack[-1], values)
        elif code in b"ae\x90":  # APPEND, APPENDS, ADDITEMS
            values = taken(len(stack) - 1 if code == ord("a") else marks.pop())
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
        elif code in b"su":
            values = taken(len(stack) - 2 if code == ord("s") else marks.pop())
            _set_items(stack[-1], values)
        elif code in b"01":  # POP, POP_MARK
            taken(len(stack) - 1 if code == ord("0") else marks.pop())
        elif code == ord("2"):  # DUP
            stack.append(stack[-1])
        elif code not in NOTHING:
            raise ValueError(f"unknown instruction {code:#x}")
    return stack.pop()


def _set_items(target, values):
    """Fill a dictionary from key, value, key, value. Keys other than text are dropped: hashing a tuple may not end."""
    if isinstance(target, dict):
        target.update((key, value) for key, value in zip(values[::2], values[1::2]) if isinstance(key, str))


def _instructions(data):
    """Yield (code, argument) for each instruction up to STOP; the argument is the value it stands for, or None."""
    position = 0
    for _ in range(MAX_INSTRUCTIONS):
        code = data[position]
        position += 1
        argument = None
        if code == ord("."):
            return
        if code in NUMBERS:
            form = NUMBERS[code]
            (argument,) = form.unpack_from(data, position)
            position += form.size
        elif code in LENGTHS:
            (length,) = LENGTHS[code].unpack_from(data, position)
            start, position = position + LENGTHS[code].size, position + LENGTHS[code].size + length
            if length < 0 or position > len(data):
                raise ValueError("it is cut off")
            argument = _counted(code, data[start:position])
        elif code in LINES:
            for _line in range(LINES[code]):
                end = data.index(b"\n", position)
                argument, position = data[position:end], end + 1
            argument = _line_value(code, argument)
        yield code, argument
    raise ValueError(f"more than {MAX_INSTRUCTIONS:,} instructions")


def _counted(code, argument):
    if code in TEXT:
        return argument.decode("utf-8", "surrogatepass")
    if code in PYTHON_2_TEXT:
        return _python_2_text(argument)
    return int.from_bytes(argument, "little", signed=True) if code in INTEGERS else argument


def _line_value(code, argument):
    """The value of an instruction of protocol 0, whose arguments are lines of text."""
    text = argument.decode("latin-1")
    if code in b"IL":
        return {"00": False, "01": True}.get(text) if text in ("00", "01") else int(text.rstrip("L"))
    if code in b"pg":
        return int(text)
    if code == ord("F"):
        return float(text)
    if code == ord("V"):
        return argument.decode("raw-unicode-escape")
    if code == ord("S"):
        return _python_2_text(argument[1:-1].decode("unicode-escape").encode("latin-1"))
    return None


def _python_2_text(data):
    """Python 2 strings are bytes of no stated encoding."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
