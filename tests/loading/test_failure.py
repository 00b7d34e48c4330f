"""An error in a worker arrives in the main process as what it was."""

import json

import pytest
import torch

from dBManagement import train_loader
from tests.helpers import catalogue_sample, tokenizer, write_shard

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class TwoPartError(ValueError):
    """Its constructor takes other arguments than its message."""

    def __init__(self, name, *, limit):
        super().__init__(f"{name} is above {limit}")
        self.limit = limit


class CodeError(OSError):
    def __init__(self, code):
        super().__init__(code, f"code {code}")
        self.code = code


def not_found():
    with open("/no/such/folder/picture.jpg"):
        pass


def no_json():
    json.loads("{,}")


def raising(error):
    def act():
        raise error

    return act


def errors():
    class Local(RuntimeError):
        """No other process finds this class by its name."""

    class Unsendable(KeyError):
        pass

    held = Unsendable("held")
    held.function = lambda: None
    return {
        "several lines": (raising(RuntimeError("first: line\nsecond: line\n  third")), RuntimeError),
        "other arguments": (raising(TwoPartError("size", limit=3)), TwoPartError),
        "code": (raising(CodeError(7)), CodeError),
        "file": (not_found, FileNotFoundError),
        "json": (no_json, json.JSONDecodeError),
        "no message": (raising(ZeroDivisionError()), ZeroDivisionError),
        "unicode": (lambda: b"\xff".decode("ascii"), UnicodeDecodeError),
        "no name": (raising(Local("as it was")), RuntimeError),
        "unsendable": (raising(held), KeyError),
    }


CASES = list(errors())


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("failure") / "a.tar"
    write_shard(path, [catalogue_sample(number, number) for number in range(8)])
    return str(path)


def error_of(loader):
    """What iterating raises; without its traceback, which would hold the loader and its workers."""
    try:
        list(loader)
    except Exception as error:
        return error.with_traceback(None)
    pytest.fail("no error")


def failing(shard, act, num_workers):
    """A loader whose tokenizer fails: it is called where no sample is to blame."""

    def tokenize(captions):
        act()
        return tokenizer(captions)

    def transform(data, seed):
        return torch.zeros((3, 8, 8), dtype=torch.uint8)

    return train_loader(shard, transform, tokenize, batch_size=4, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_workers_error_keeps_its_type_and_its_message(shard, num_workers, case):
    act, kind = errors()[case]
    with pytest.raises(Exception) as expected:
        act()
    raised = error_of(failing(shard, act, num_workers))
    assert isinstance(raised, kind) and str(raised) == str(expected.value)
    if case != "no name" and case != "unsendable":
        assert type(raised) is type(expected.value)
        assert vars(raised) == vars(expected.value)
    if case == "file":
        assert (raised.errno, raised.filename) == (expected.value.errno, expected.value.filename)


def test_where_a_worker_failed_can_be_seen(shard):
    """The traceback of the worker stands as the cause."""
    cause = str(error_of(failing(shard, raising(ValueError("here")), 1)).__cause__)
    assert "in tokenize" in cause and "here" in cause


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_an_error_the_next_epoch_is_whole(shard, num_workers, tmp_path):
    flag = tmp_path / "fails"
    flag.touch()

    def act():
        if flag.exists():
            raise ValueError("for now")

    loader = failing(shard, act, num_workers)
    assert str(error_of(loader)) == "for now"
    flag.unlink()
    assert [len(batch.keys) for batch in loader] == [4, 4]
