"""Captions with weights: from the mapping through the shards to what training draws, and what is said of those that cannot be used."""

import json
from collections import Counter

import pytest

import create_webdataset
from clip_finetuning.catalogue.mapping import check_entries
from clip_finetuning.loading.sample import WEIGHTS_DO_NOT_FIT, Fields, drawn, parse_sample
from clip_finetuning.loading.seeds import sample_seed
from tests.helpers import (
    assert_same,
    catalogue_sample,
    contents,
    encoded_picture,
    entry,
    epoch,
    evaluation,
    read_records,
    shards_in,
    training,
    write_mapping,
    write_shard,
    write_shards,
)

THREE = {"caption": "one", "captions": ["one", "two", "three"]}


def draws(count=4000, names=None, **record):
    """How often each caption of a sample with this `.json` is drawn."""
    raw = {"__key__": "a", "__url__": "", "jpg": b"", "txt": b"one", "json": json.dumps(record).encode()}
    names = names or Fields()
    sample = parse_sample(raw, names)
    found = [drawn(raw, sample, sample_seed(1, 2, number), names) for number in range(count)]
    return Counter(caption for caption, _ in found), {fit for _, fit in found}


def test_captions_are_drawn_by_their_weights():
    found, fit = draws(**THREE, caption_weights=[1, 0, 3])
    assert fit == {True} and set(found) == {"one", "three"}
    assert found["three"] / 4000 == pytest.approx(0.75, abs=0.03)
    found, _ = draws(captions=["two", " two ", "three"], caption_weights=[1, 1, 1.0])  # `one`, of the .txt, counts 1
    assert [round(4 * found[name] / 4000) for name in ("one", "two", "three")] == [1, 2, 1]
    found, _ = draws(names=Fields("titles"), titles=["a", "b"], caption_weights=[0, 1e-9])
    assert set(found) == {"b"}


def test_the_ends_of_the_range_draw_no_caption_without_weight():
    record = {**THREE, "caption_weights": [0, 0.1, 0]}
    raw = {"__key__": "a", "__url__": "", "jpg": b"", "txt": b"one", "json": json.dumps(record).encode()}
    for seed in (0, 1, 2**63, 2**64 - 1):
        assert drawn(raw, parse_sample(raw), seed) == ("two", True)


WRONG = {
    "[1, 2]": "it has 2 numbers for 3 captions",
    "[1, -1, 1]": "-1 is no number >= 0",
    "[1, NaN, 1]": "nan is no number >= 0",
    "[1, Infinity, 1]": "inf is no number >= 0",
    "[1, 1e200, 1]": "1e+200 is no number >= 0",
    "[1, true, 1]": "True is no number >= 0",
    '[1, "2", 1]': "it holds what is no number",
    "[0, 0.0, 0]": "all of it is 0",
    '{"one": 1}': "it is no list",
    "2": "it is no list",
}


@pytest.mark.parametrize("weights", WRONG)
def test_weights_that_cannot_be_used_are_one_line_or_counted(tmp_path, weights, caplog):
    """A mapping is refused; of shards that others wrote, the captions are drawn alike, and that is counted."""
    (tmp_path / "a.jpg").write_bytes(encoded_picture(1))
    entries = [entry(tmp_path / "a.jpg", 0), entry(tmp_path / "a.jpg", 1, **THREE, caption_weights=json.loads(weights))]
    mapping = write_mapping(tmp_path / "clip_dataset_train.json", entries)
    with pytest.raises(ValueError, match=r"caption_weights of 1 entry cannot be used, first of entry 1 \(") as error:
        create_webdataset.main(["--json", str(mapping), "--output-dir", str(tmp_path / "out")])
    assert f": {WRONG[weights]}; it takes one number >= 0 for each of captions, not all of them 0" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert "they count as none" in check_entries(entries).remarks()[-1]  # the audit goes on
    samples = [catalogue_sample(number, number, **THREE, caption_weights=json.loads(weights)) for number in range(2)]
    plain = [catalogue_sample(number, number, **THREE) for number in range(2)]
    write_shard(tmp_path / "a.tar", samples)
    write_shard(tmp_path / "b.tar", plain)
    loader, other = (training(str(tmp_path / name), 2) for name in ("a.tar", "b.tar"))
    assert [batch.captions for batch in epoch(loader)] == [batch.captions for batch in epoch(other)]
    assert loader.guessed == {WEIGHTS_DO_NOT_FIT: 2} and not other.guessed
    again = evaluation(str(tmp_path / "a.tar"))
    epoch(again)
    assert not again.guessed  # the first caption is used, whatever it weighs


def test_weights_travel_from_the_mapping_to_the_batches(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded_picture(1))
    captions = {"caption": "one", "captions": ["one", None, "two"]}
    entries = [entry(tmp_path / "a.jpg", product, **captions, caption_weights=[0, 5, 1]) for product in range(4)]
    entries += [entry(tmp_path / "a.jpg", 4, caption_weights=[2]), entry(tmp_path / "a.jpg", 5, caption_weights=[])]
    write_shards(write_mapping(tmp_path / "t.json", entries), tmp_path / "out")
    records = read_records(*shards_in(tmp_path / "out"))
    weights = {record["product_id"]: record.get("caption_weights") for record in records}
    assert weights == {**{f"P{product}": [0, 1] for product in range(4)}, "P4": None, "P5": None}
    pattern = str(shards_in(tmp_path / "out")[0])
    for number in range(3):
        (batch,) = epoch(training(pattern, 6), number)
        assert batch.captions.count("two") == 4 and "one" not in batch.captions
    (batch,) = epoch(evaluation(pattern))
    assert batch.captions.count("one") == 4


def test_without_weights_nothing_changes_and_equal_ones_draw_all(tmp_path):
    """The captions of a seed, as they were drawn before there were weights; and the same shards."""
    sample = parse_sample({"__key__": "a", "jpg": b"", "json": json.dumps(THREE).encode()})
    for number in range(50):
        seed = sample_seed(3, number)
        assert drawn({"json": json.dumps(THREE).encode()}, sample, seed) == (sample.captions[seed % 3], True)
    found, _ = draws(**THREE, caption_weights=[2, 2, 2])
    assert min(found.values()) > 1150
    (tmp_path / "a.jpg").write_bytes(encoded_picture(1))
    for name, extra in (("plain", {}), ("none", {"caption_weights": None})):
        mapping = write_mapping(tmp_path / "t.json", [entry(tmp_path / "a.jpg", 0, **THREE, **extra)])
        write_shards(mapping, tmp_path / name)
    assert contents(tmp_path / "plain")["t.000000.tar"] == contents(tmp_path / "none")["t.000000.tar"]


def test_a_training_goes_on_with_the_same_draws(tmp_path):
    samples = [catalogue_sample(number, number, **THREE, caption_weights=[1, 2, 3]) for number in range(12)]
    write_shard(tmp_path / "a.tar", samples)
    whole = epoch(training(str(tmp_path / "a.tar"), 4), 2)
    assert_same(epoch(training(str(tmp_path / "a.tar"), 4, num_workers=1), 2, start=1), whole[1:])
    drawn_captions = [
        [batch.captions for batch in epoch(training(str(tmp_path / "a.tar"), 4), number)] for number in (2, 3)
    ]
    assert drawn_captions[0] != drawn_captions[1]
