"""Pickles give plain data, never run code, and cannot bring the reader down."""

import collections
import datetime
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from clip_finetuning.runtime import safe_pickle
from clip_finetuning.runtime.safe_pickle import STAND_IN
from tests.helpers import ROOT

PLAIN = {
    "product_id": "12",
    "captions": ["Knit sweater", "Pull-over, « é » 🧶 \ud800", ""],
    "numbers": [0, 1, -1, 255, 256, 65_536, -(2**31), 2**31, 2**63, -(2**70), 0.5, -1e300, True, False, None],
    "bytes": b"\x00\xff" * 300,
    "nested": ({"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}, [[], {}]),
    "long": "x" * 100_000,
}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_plain_data_comes_back_as_it_was(protocol):
    expected = dict(PLAIN)
    if protocol < 3:  # bytes were objects then
        expected["bytes"] = STAND_IN
    assert safe_pickle.load(pickle.dumps(PLAIN, protocol)) == expected


def test_protocol_0_comes_back_too():
    record = {k: v for k, v in PLAIN.items() if k != "bytes"}
    assert safe_pickle.load(pickle.dumps(record, 0)) == record


def test_strings_of_python_2_are_text():
    assert safe_pickle.load(b"(dp0\nS'img_name'\np1\nS'caf\\xc3\\xa9\\n'\np2\ns.") == {"img_name": "café\n"}
    assert safe_pickle.load(b"\x80\x02U\x04caf\xe9.") == "café"
    assert safe_pickle.load(b"S'\\xe9'\n.") == "é"
    assert safe_pickle.load(b"(lp0\nS'\xc3\xa9'\naS'b'\naS'\\x80'\naI1\na.") == ["é", "b", "€", 1]


class Code:
    """What a hostile pickle does: `pickle.load` would create the file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


class Stateful:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_runs_no_code(tmp_path, protocol):
    data = pickle.dumps({"captions": "A hat", "input_ids": Code(tmp_path / "made")}, protocol)
    assert safe_pickle.load(data) == {"captions": "A hat", "input_ids": STAND_IN}
    assert not (tmp_path / "made").exists()
    pickle.loads(data)
    assert (tmp_path / "made").exists()  # the same bytes do run elsewhere


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'exit 3'\ntR.",
        b"(S'exit 3'\nios\nsystem\n.",
        b"(cos\nsystem\nS'exit 3'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x06exit 3\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85\x81.",
        b"\x80\x02cbuiltins\neval\n}b.",
    ],
    ids=["reduce", "inst", "obj", "stack_global", "newobj", "build"],
)
def test_every_way_to_call_gives_a_stand_in(data):
    assert safe_pickle.load(data) is STAND_IN


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        torch.arange(5),
        torch.randn(2, 3, requires_grad=True),
        np.arange(6).reshape(2, 3),
        np.int64(3),
        np.array(["a", None], dtype=object),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        datetime.date(2020, 1, 2),
        Stateful([1, {2}]),
        Stateful,
        range(3),
        1 + 2j,
        len,
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_object_becomes_a_stand_in_and_the_rest_is_read(value, protocol):
    record = {"before": ["x"], "tokens": value, "after": ("y", "z")}
    assert safe_pickle.load(pickle.dumps(record, protocol)) == {**record, "tokens": STAND_IN}


def test_sets_and_buffers_are_taken():
    assert safe_pickle.load(pickle.dumps({"a": {1}, "b": frozenset("x")}, 5)) == {"a": [1], "b": ["x"]}
    assert safe_pickle.load(pickle.dumps(bytearray(b"abc"), 5)) == b"abc"
    assert safe_pickle.load(pickle.dumps(pickle.PickleBuffer(b"abc"), 5, buffer_callback=lambda _: None)) is STAND_IN


def test_persistent_ids_fetch_nothing():
    assert safe_pickle.load(b"Pstorage\n.") is STAND_IN
    assert safe_pickle.load(b"\x80\x02X\x01\x00\x00\x00aQ.") is STAND_IN


HOSTILE = {
    "a million nested tuples as a key": b"\x80\x02})" + b"\x85" * 900_000 + b"Ns.",
    "a tuple whose hash takes 2^60 steps": b"\x80\x02})" + b"q\x00h\x00h\x00\x86" * 60 + b"Ns.",
    "nested lists": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a memo index of two billion": b"\x80\x02Nr\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_read_within_bounds(data):
    """In a process of its own: these bring `pickle.load` down, some with a crash of the interpreter."""
    program = "import sys; from clip_finetuning.runtime import safe_pickle; safe_pickle.load(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", program], input=data, cwd=ROOT, check=True, timeout=30)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04",
        b"\x80\x04.",
        b"t.",
        b"R.",
        b"\x85.",
        b"h\x07.",
        b"K",
        b"X\xff\xff\xff\xff\x00.",
        b"\x96" + struct.pack("<Q", 1 << 62) + b"x.",
        b"T\xff\xff\xff\xffabc.",
        b"X\x02\x00\x00\x00\xff\xff.",
        b"Inot a number\n.",
        b"cos\nsystem",
        b"c\xe9\nsystem\n.",
        b"S'\xe9'\n",
        b"S'\xe9'\nc\xe9\nsystem\n.",
        b"\xff.",
        pickle.dumps(PLAIN)[:-200],
        b"N" * 1_000_001 + b".",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_damaged_and_endless_pickles_raise_value_error(data):
    with pytest.raises(ValueError, match="not a readable pickle"):
        safe_pickle.load(data)


def test_every_cut_and_every_changed_byte_is_read_or_refused():
    data = pickle.dumps({**PLAIN, "long": "", "bytes": b"ab", "tokens": np.arange(3)})
    for position in range(len(data)):
        for changed in (data[:position], data[:position] + bytes([data[position] ^ 0x15]) + data[position + 1 :]):
            try:
                safe_pickle.load(changed)
            except ValueError:
                continue


def test_strings_of_python_2_count_too(monkeypatch):
    data = b"S'\xe9'\n" + b"0S'\xe9'\n" * 9 + b"."  # 20 instructions
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 20)
    assert safe_pickle.load(data) == "é"
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 19)
    with pytest.raises(ValueError, match="more than 19 instructions"):
        safe_pickle.load(data)


def test_a_huge_pickle_is_refused_by_its_size(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1,000"):
        safe_pickle.load(pickle.dumps("x" * 1000))
