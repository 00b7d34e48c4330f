"""Shards as others write them: every sample is in the result or counted by reason, once, from local shards and from streams."""

import json
import random
import tarfile

import pytest

from clip_finetuning.loading.sample import (
    FURTHER_FILES,
    NO_CAPTION,
    NO_NAMED_CAPTION,
    NO_NAMED_PRODUCT,
    NO_PICTURE,
    parse_sample,
    split_name,
)
from clip_finetuning.loading.stream_reader import APART, NOT_ADJACENT, UNREADABLE, shard_samples
from clip_finetuning.loading.tar_contents import AMBIGUOUS
from clip_finetuning.loading.tar_format import AFTER_END, TRUNCATED
from clip_finetuning.loading.tar_index import TarIndex
from clip_finetuning.runtime.accounting import Guessed, Skipped
from tests.helpers import add_file, catalogue_sample, encoded_picture, epoch, evaluation, keys, training, write_shard

PICTURE = encoded_picture(1)
NUMBERS = range(4)


def write(path, names, tail=b""):
    """A tar of files with these names; a text says its name, a `.json` its product and its title."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            _, suffix = split_name(name)
            fields = {"product_id": f"P-{name[:3]}", "meta": {"title": f"title of {name}"}}
            data = json.dumps(fields).encode() if suffix == "json" else name.encode() if "t" in suffix else PICTURE
            add_file(tar, name, data)
    with open(path, "ab") as file:
        file.write(tail)
    return str(path)


def local(path):
    index = TarIndex([path])
    samples = [parse_sample(index.read(i)) for i in range(len(index))]
    return [(s.key, s.captions, s.product_id) for s in samples], index.skipped, index.guessed


def streamed(path, expected=None):
    told = []
    samples = [(raw, parse_sample(raw)) for raw in shard_samples(path, told.append, expected)]
    guessed = [Guessed(1, s.guess, s.key, s.key) for _, s in samples if s.guess]
    guessed += [entry for entry in told if isinstance(entry, Guessed)]
    skipped = [entry for entry in told if isinstance(entry, Skipped)]
    return [(s.key, s.captions, s.product_id) for _, s in samples], skipped, guessed


def counted(entries):
    counts = {}
    for entry in {entry.of: entry for entry in entries}.values():
        counts[entry.reason] = counts.get(entry.reason, 0) + entry.count
    return counts


def each(*suffixes):
    return [f"{number:03d}{suffix}" for number in NUMBERS for suffix in suffixes]


def apart(*suffixes):
    return [f"{number:03d}{suffix}" for suffix in suffixes for number in NUMBERS]


# name -> (files, samples, reasons of those that are lost, of what is guessed; the same of a stream where it differs)
KINDS = {
    "dotted names": (each(".2.jpg", ".2.txt"), 4, {}, {}),
    "a dot in what all begin with": ([f"v1.2_{name}" for name in each(".jpg", ".txt")], 4, {}, {}),
    "a dot in the folder": ([f"v1.2/{name}" for name in each(".jpg", ".txt")], 4, {}, {}),
    "a text for one view": (each(".front.jpg", ".txt"), 4, {}, {}),
    "a text for two views": (each(".back.jpg", ".front.png", ".json", ".txt"), 8, {}, {}),
    "the first without a dot": (each(".2.jpg", ".2.txt", ".jpg", ".txt"), 8, {}, {}),
    "a mask": (each(".jpg", ".seg.png", ".txt"), 4, {}, {FURTHER_FILES: 4}),
    "two pictures": (each(".jpg", ".png", ".txt"), 4, {}, {FURTHER_FILES: 4}),
    "a language": (each(".en.txt", ".jpg"), 4, {}, {}),
    "two languages": (each(".de.txt", ".en.txt", ".jpg"), 4, {}, {FURTHER_FILES: 4}),
    "files beside the file": (each(".jpg", ".jpg.json", ".jpg.txt"), 4, {}, {}),
    "other formats": (["0.heic", "0.txt", "1.AVIF", "1.txt", "2.bmp", "2.txt", "3.gif", "3.txt"], 4, {}, {}),
    "unknown files beside it": (each(".cls", ".jpg", ".txt", ".x.npy"), 4, {}, {}),
    "unknown files": (each(".abc", ".d.e"), 0, {NO_PICTURE: 4}, {}),
    "no text": (each(".1.jpg", ".2.jpg"), 0, {NO_CAPTION: 8}, {}),
    "no picture": (each(".json", ".txt"), 0, {NO_PICTURE: 4}, {}),
    "pictures, then texts": (apart(".jpg", ".txt"), 4, {}, {}, 0, {NOT_ADJACENT: 4}, {}),
    "texts, then pictures": (apart(".txt", ".json", ".jpg"), 4, {}, {}, 0, {NOT_ADJACENT: 4}, {}),
    "views, then their texts": (apart(".a.jpg", ".b.jpg", ".txt"), 8, {}, {}, 0, {NOT_ADJACENT: 8}, {}),
    "pairs, then records": (each(".jpg", ".txt") + each(".json"), 4, {}, {}, 4, {}, {APART: 4}),
    "names twice, apart": (apart(".jpg", ".jpg", ".txt", ".txt"), 8, {}, {}, 0, {NOT_ADJACENT: 8}, {}),
    "names twice, one text": (apart(".jpg", ".jpg", ".txt"), 0, {AMBIGUOUS: 8}, {}, 0, {NOT_ADJACENT: 8}, {}),
    "names that begin with underscores": (
        ["__0.jpg", "__0.txt", "__1/a.jpg", "__1/a.txt", "__2_.jpg", "__2_.txt"],
        3,
        {},
        {},
    ),
    "what zip and webdataset add": (["__MACOSX/0.jpg", "__meta__", "__x__/a.jpg", *each(".jpg", ".txt")], 4, {}, {}),
    "a picture twice": (each(".jpg") + each(".jpg", ".txt"), 4, {NO_CAPTION: 4}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_there_or_counted_once(tmp_path, kind):
    files, samples, lost, guessed, *of_stream = KINDS[kind]
    path = write(tmp_path / "a.tar", files)
    found = local(path)
    assert (len(found[0]), counted(found[1]), counted(found[2])) == (samples, lost, guessed)
    for key, captions, product in found[0]:
        name = key.rpartition("/")[2].removeprefix("v1.2_")
        assert captions[0].rpartition("/")[2].removeprefix("v1.2_").startswith(name.split(".")[0])
        assert product == (f"P-{key[:3]}" if any(file.endswith("json") for file in files) else captions[0])
    stream = streamed(path)
    samples, lost, guessed = of_stream or (samples, lost, guessed)
    assert (len(stream[0]), counted(stream[1]), counted(stream[2])) == (samples, lost, guessed)
    if not of_stream:
        assert stream[0] == found[0]
    assert counted(streamed(path, expected=len(stream[0]) + sum(lost.values()))[1]) == lost  # nobody is missing


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("prefix", "num_workers"), [("", 0), ("", 2), ("pipe:cat ", 0)])
def test_all_kinds_through_training_and_evaluation(tmp_path, prefix, num_workers):
    """Over two epochs and whatever the workers: samples in = samples out + samples counted."""
    samples, lost, guessed = 0, {}, {}
    for number, (files, *told) in enumerate(KINDS.values()):
        write(tmp_path / f"{number:02d}.tar", files)
        told = told[3:] if prefix and told[3:] else told[:3]
        samples += told[0]
        for counts, more in ((lost, told[1]), (guessed, told[2])):
            counts.update({reason: counts.get(reason, 0) + count for reason, count in more.items()})
    shards = "::".join(f"{prefix}{tmp_path}/{number:02d}.tar" for number in range(len(KINDS)))
    for loader in (evaluation(shards, num_workers=num_workers), training(shards, 4, num_workers=num_workers)):
        for _ in range(2):
            batches = list(loader)
        assert loader.num_samples == samples and loader.skipped == lost
        assert {reason: loader.guessed[reason] for reason in guessed} == guessed
        if not loader.dataset.train:
            assert len(keys(batches)) == samples


def test_names_that_say_nothing_are_named(tmp_path):
    _, skipped, _ = local(write(tmp_path / "a.tar", ["0.abc", "0.txt"]))
    assert skipped[0].where == "a.tar: 0 (.abc)"


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("sku.2.jpg", "sku.2", "jpg"),
        ("v1.2/00001.front.JPEG", "v1.2/00001.front", "jpeg"),
        ("x.y.txt0.txt", "x.y", "txt0.txt"),
        ("1.5.Json", "1.5", "json"),
        ("a.b.unknown", "a", "b.unknown"),
        (".a.jpg", "", "a.jpg"),
        ("jpg.txt", "jpg", "txt"),
        ("a..jpg", "a.", "jpg"),
        ("line\nbreak.1.jpg", "line\nbreak.1", "jpg"),
    ],
)
def test_names_split_before_the_longest_known_suffix(name, key, suffix):
    assert split_name(name) == (key, suffix)


# -------------------------------------------------------------------------------------------- one tar after the other


def tar_bytes(tmp_path, names):
    write(tmp_path / "other.tar", names)
    return (tmp_path / "other.tar").read_bytes()


@pytest.mark.parametrize("read", [local, streamed])
def test_what_follows_the_first_end_is_read_or_told(tmp_path, read):
    first, second = each(".jpg", ".txt"), ["x.jpg", "x.txt", "y.jpg", "y.txt"]
    data = tar_bytes(tmp_path, second)
    for tail, samples, lost, guessed in (
        (data, 6, {}, {}),
        (bytes(512) * 7 + data + bytes(5), 6, {}, {}),
        (data + data, 8, {}, {}),
        (data[: 512 + 100], 4, {TRUNCATED: 1}, {}),
        (b"no tar" * 200, 4, {}, {AFTER_END: 1}),
        (data + b"x", 6, {}, {AFTER_END: 1}),
    ):
        found = read(write(tmp_path / "a.tar", first, tail))
        assert (len(found[0]), counted(found[1]), counted(found[2])) == (samples, lost, guessed)


def test_fuzz_any_order_is_joined_and_a_stream_accounts_for_it(tmp_path):
    """Random names and orders: an index finds every sample; a stream finds those that are neighbours, and counts the others."""
    chance = random.Random(0)
    for _ in range(40):
        stems = {f"{chance.choice('ab/')}{chance.choice(['', '.', '.x.', '-'])}{n}" for n in range(12)}
        stems = [stem.replace("/", "f.1/") for stem in sorted(stems) if not stem.startswith((".", "/"))]
        samples = [[f"{stem}.{suffix}" for suffix in ("jpg", "txt", "json")] for stem in stems]
        names = [name for files in samples for name in files]
        for _ in range(chance.choice([0, 1, 3, 100])):
            one, other = chance.randrange(len(names)), chance.randrange(len(names))
            names[one], names[other] = names[other], names[one]
        path = write(tmp_path / "a.tar", names)
        found, skipped, guessed = local(path)
        assert {(key, tuple(captions)) for key, captions, _ in found} == {(s, (f"{s}.txt",)) for s in stems}
        assert len(found) == len(stems) and not skipped and not guessed
        stream, lost, _ = streamed(path)
        assert set(counted(lost)) <= {NOT_ADJACENT, NO_CAPTION, NO_PICTURE}
        assert {(key, tuple(captions)) for key, captions, _ in stream} <= {(s, (f"{s}.txt",)) for s in stems}
        assert len(stream) + sum(counted(lost).values()) == len(stems)


def test_fuzz_cut_or_damaged_anywhere_both_agree_and_nothing_is_taken_for_another(tmp_path):
    chance = random.Random(1)
    whole = tar_bytes(tmp_path, each(".jpg", ".json", ".txt")) + tar_bytes(tmp_path, ["x.1.jpg", "x.1.txt", "x.2.jpg"])
    path = tmp_path / "a.tar"
    for _ in range(150):
        data = bytearray(whole[: chance.randrange(1024, len(whole))])
        for _ in range(chance.choice([0, 0, 1, 5])):
            data[chance.randrange(1024, len(data) + 1) - 1] = chance.randrange(256)
        path.write_bytes(data)
        (found, skipped, _), (stream, told, _) = local(str(path)), streamed(str(path))
        assert stream == found
        assert sum(counted(told).values()) == sum(counted(skipped).values())
        assert {TRUNCATED if r == UNREADABLE else r for r in counted(told)} >= {
            r for r in counted(skipped) if r == TRUNCATED
        }


def test_texts_that_are_cut_off_do_not_change_products(tmp_path):
    """The records come last and break off: the samples without one would be told by their captions."""
    path = tmp_path / "a.tar"
    write(path, apart(".jpg", ".txt", ".json"))
    path.write_bytes(path.read_bytes()[: -10240 - 2048])
    found, skipped, guessed = local(str(path))
    assert all(product.startswith("P-") for _, _, product in found)
    assert len(found) + sum(counted(skipped).values()) >= len(NUMBERS) > len(found) and not guessed


# ------------------------------------------------------------------------------------------ CAPTION_KEY, PRODUCT_KEY


def with_records(path, records, prefix=""):
    samples = []
    for number, record in enumerate(records):
        sample = catalogue_sample(number, number)
        samples.append(sample | {f"{number:09d}.json": json.dumps(record).encode()})
    write_shard(path, samples)
    return prefix + str(path)


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_named_fields_of_the_json(tmp_path, prefix):
    records = [
        {"meta": {"title": "a shoe"}, "ids": [{"sku": 7}]},
        {"meta": {"title": ["a boot", "a high boot"]}, "ids": [{"sku": ["7"]}]},
        {"meta.title": "a hat", "ids": [{"sku": "8"}]},
        {"meta": {}, "ids": [{"sku": 9}]},
        {"meta": {"title": "a belt"}},
    ]
    shards = with_records(tmp_path / "a.tar", records, prefix)
    loader = evaluation(shards, caption_key="meta.title", product_key="ids.0.sku")
    (batch,) = loader
    assert batch.captions == ["a shoe", "a boot", "a hat", "a belt"]
    assert batch.product_ids == ["7", "7", "8", "a belt"]
    assert loader.skipped == {NO_NAMED_CAPTION: 1} and loader.guessed == {NO_NAMED_PRODUCT: 1}
    trained = training(shards, 2, caption_key="meta.title", product_key="ids.0.sku")
    drawn = {caption for number in range(20) for batch in epoch(trained, number) for caption in batch.captions}
    assert {"a boot", "a high boot"} <= drawn
    assert trained.skipped == {NO_NAMED_CAPTION: 1} and trained.guessed == {NO_NAMED_PRODUCT: 1}


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_a_named_field_that_no_sample_has_is_told_with_those_there_are(tmp_path, prefix):
    shards = with_records(
        tmp_path / "a.tar", [{"title": f"t{n}", "meta": {"sku": n}, "on": True} for n in range(3)], prefix
    )
    with pytest.raises(
        ValueError, match=r"^CAPTION_KEY=titel: .*keys there are title, meta\.sku, on; did you mean title\?$"
    ):
        evaluation(shards, caption_key="titel")
    with pytest.raises(ValueError, match=r"^PRODUCT_KEY=sku: .*keys there are title, meta\.sku, on$"):
        training(shards, 2, caption_key="title", product_key="sku")
    with pytest.raises(ValueError, match=r"^PRODUCT_KEY=on: "):  # true is no id
        evaluation(shards, product_key="on")
    write_shard(tmp_path / "a.tar", [{"0.jpg": PICTURE, "0.txt": b"a"}])
    with pytest.raises(ValueError, match=r"^PRODUCT_KEY=sku: .*; there is no \.json with fields$"):
        evaluation(shards, product_key="sku")


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_attributes_are_those_of_the_json_or_the_fields_that_are_named(tmp_path, prefix):
    records = [
        {"attributes": {"colour": "Red", "size": 7.0, "on": True, "none": None}, "meta": {"tags": ["b", "a", "b"]}},
        {"attributes": "red", "meta": {"tags": [{"x": 1}]}, "colour": "blue"},
    ]
    shards = with_records(tmp_path / "a.tar", records, prefix)
    (batch,) = evaluation(shards)
    assert batch.attributes == [{"colour": "Red", "size": "7", "on": "true"}, {}] and batch.looks == []
    (batch,) = evaluation(shards, attributes=["colour", "meta.tags"])
    assert batch.attributes == [{"colour": "Red", "meta.tags": "a, b"}, {"colour": "blue"}]
    (batch,) = evaluation(shards, look=len)
    assert batch.looks == [len(encoded_picture(number)) for number in range(2)]
    with pytest.raises(ValueError, match=r"^--attributes hue: .*keys there are attributes\.colour, .*colour$"):
        evaluation(shards, attributes=["meta.tags", "hue"])
