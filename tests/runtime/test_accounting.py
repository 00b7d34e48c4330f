"""Every lost sample is counted once, whoever met it, and in linear time."""

from clip_finetuning.runtime import accounting
from clip_finetuning.runtime.accounting import Skipped, count_lost

TRUNCATED = "truncated shard"


def test_noting_a_lost_sample_does_not_look_at_those_before(caplog):
    class Unwalked(dict):
        def walk(self):
            raise AssertionError("80,000 lost samples would take 3 billion looks")

        __iter__ = items = keys = values = walk

    account = accounting.Account()
    account.counted = Unwalked()
    for number in range(100):
        account.note(
            [Skipped(1, "one reason", f"sample {number}", number), Skipped(1, "another", "again and again", "x")]
        )
    assert (
        count_lost([dict(dict.items(account.counted))]) == {"one reason": 100, "another": 1}
        and len(caplog.records) == accounting.NAMED + 1
    )


def test_what_several_processes_lost_is_counted_once():
    """A shard that is lost as a whole or in part, and samples that have the same name in two folders or twice in one."""
    first = {"a.tar": (10, TRUNCATED), 3: (1, "not an image"), ("b.tar", "key", 1): (1, "no caption")}
    second = {"a.tar": (4, TRUNCATED), 3: (1, "not an image"), ("c.tar", "key", 1): (1, "no caption"), 4: (1, "empty")}
    expected = {TRUNCATED: 10, "not an image": 1, "no caption": 2, "empty": 1}
    assert count_lost([first, second]) == count_lost([second, first]) == expected


def test_one_product_that_holds_most_samples_is_a_warning():
    warning = accounting.majority_warning(["P1"] * 9 + ["P2"] * 8)
    assert warning and "one product ('P1') holds 9 of 17 samples" in warning
    assert accounting.majority_warning(["P1"] * 9 + ["P2"] * 9) is None
    assert accounting.majority_warning(["P1"] * 8) is None  # a few views of a single product
    assert accounting.majority_warning([]) is None
