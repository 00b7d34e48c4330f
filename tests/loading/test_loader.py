"""What a loader says and counts beside its batches: what was guessed, and data in which hardly anything is a negative."""

import json
import multiprocessing

import pytest

from clip_finetuning.loading.sample import DAMAGED_JSON, DAMAGED_JSON_ALONE
from clip_finetuning.loading.sizes import DAMAGED_SIZES
from clip_finetuning.loading.tar_contents import FEWER
from tests.helpers import catalogue_sample, epoch, evaluation, keys, training, write_shard

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
PREFIXES = pytest.mark.parametrize("prefix", ["", "pipe:cat "])
DAMAGED = {3: b"", 5: b'{"product_id": "P5", ', 6: b"[]", 8: b"\xff\xfe{", 9: b'{"product_id": ["P9"]}'}


def damaged_shard(folder, count=16):
    """A shard in which five samples of sixteen have a damaged .json."""
    samples = [catalogue_sample(number, number) for number in range(count)]
    for number, data in DAMAGED.items():
        samples[number][f"{number:09d}.json"] = data
    write_shard(folder / "a.tar", samples)
    return str(folder / "a.tar")


@PREFIXES
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_json_is_said_and_counted_once_and_its_sample_is_used(tmp_path, caplog, prefix, num_workers):
    loader = evaluation(prefix + damaged_shard(tmp_path), 4, num_workers=num_workers)
    for _ in range(2):
        batches = list(loader)
        assert len(keys(batches)) == loader.num_samples == 16
    assert loader.guessed == {DAMAGED_JSON: 5} and not loader.skipped
    said = [record.getMessage() for record in caplog.records if DAMAGED_JSON in record.getMessage()]
    assert len(said) == 5 and f"a.tar: 000000005: {DAMAGED_JSON}" in said[1]
    names = dict(zip(keys(batches), [name for batch in batches for name in batch.product_ids]))
    assert names["000000005"] == "Caption of product 5" and names["000000004"] == "P4"


@PREFIXES
def test_a_damaged_json_in_training(tmp_path, prefix):
    loader = training(prefix + damaged_shard(tmp_path), 16)
    epoch(loader), epoch(loader, 1)
    assert loader.guessed == {DAMAGED_JSON: 5} and not loader.skipped


@PREFIXES
def test_a_damaged_json_that_would_have_told_the_caption(tmp_path, prefix):
    """A sample without any caption is left out, and the reason names the cause."""
    samples = [catalogue_sample(number, number) for number in range(3)]
    del samples[1]["000000001.txt"]
    samples[1]["000000001.json"] = b'{"caption": "a dre'
    write_shard(tmp_path / "a.tar", samples)
    loader = evaluation(f"{prefix}{tmp_path}/a.tar")
    assert keys(loader) == ["000000000", "000000002"]
    assert loader.skipped == {DAMAGED_JSON_ALONE: 1} and not loader.guessed


def test_samples_without_a_json_are_no_guess(tmp_path):
    sample = catalogue_sample(0, 0)
    del sample["000000000.json"]
    nameless = catalogue_sample(1, 1, product_id=None)
    write_shard(tmp_path / "a.tar", [sample, nameless])
    loader = evaluation(str(tmp_path / "a.tar"))
    assert len(keys(loader)) == 2 and not loader.guessed


@pytest.mark.parametrize("content", ["", "{", "[1]", '"a.tar"', '{"a.tar": "many"}', '{"a.tar": -1}', b"\xff"])
@pytest.mark.parametrize("prefix", ["", "file_system"])
def test_a_damaged_sizes_json_is_said_and_counted_once(tmp_path, caplog, content, prefix):
    if prefix:
        fsspec = pytest.importorskip("fsspec")
        folder, memory = "memory://sizes", fsspec.filesystem("memory")
    else:
        folder, memory = str(tmp_path), None
    write_shard(tmp_path / "a.tar", [catalogue_sample(number, number) for number in range(4)])
    write_shard(tmp_path / "b.tar", [catalogue_sample(number, number) for number in range(4, 6)])
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "sizes.json").write_bytes(data)
    if memory:
        for path in tmp_path.iterdir():
            memory.pipe(f"/sizes/{path.name}", path.read_bytes())
    loader = evaluation(f"{folder}/{{a,b}}.tar")
    for _ in range(2):
        assert len(keys(loader)) == 6
    concerned = 1 if content[:2] in ('{"', b'{"') else 2
    assert loader.guessed == {DAMAGED_SIZES: concerned} and not loader.skipped
    (said,) = [record.getMessage() for record in caplog.records if DAMAGED_SIZES in record.getMessage()]
    assert f"{folder}/sizes.json" in said


def test_a_damaged_entry_leaves_the_others_of_sizes_json_in_force(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.tar", [catalogue_sample(0, 0), catalogue_sample(1, 1)])
    (tmp_path / "sizes.json").write_text(json.dumps({"a.tar": None, "b.tar": 5, "c.tar": "of another pattern"}))
    loader = evaluation(f"{tmp_path}/{{a,b}}.tar")
    assert loader.skipped == {FEWER: 3} and loader.guessed == {DAMAGED_SIZES: 1}


def test_no_sizes_json_is_no_damage(tmp_path, caplog):
    write_shard(tmp_path / "a.tar", [catalogue_sample(0, 0)])
    assert not evaluation(str(tmp_path / "a.tar")).guessed and not caplog.records


def write_majority(folder, most):
    """`most` samples of one product, and ten of ten others."""
    samples = [catalogue_sample(number, 0) for number in range(most)]
    samples += [catalogue_sample(number, number) for number in range(most, most + 10)]
    write_shard(folder / "a.tar", samples)
    return str(folder / "a.tar")


@pytest.mark.parametrize(("most", "rank", "is_said"), [(11, 0, True), (9, 0, False), (11, 1, False)])
def test_one_product_that_holds_most_samples_is_said_before_the_training(tmp_path, caplog, most, rank, is_said):
    pattern = write_majority(tmp_path, most)
    training(pattern, 2, rank=rank, world_size=2)
    said = [
        record.getMessage() for record in caplog.records if "one product holds 11 of 21 samples" in record.getMessage()
    ]
    assert len(said) == is_said
    caplog.clear()
    evaluation(pattern)  # evaluate_clip.py says it of what it has embedded
    assert not caplog.records


def test_a_closed_loader_has_no_workers_and_can_be_read_again(make_shards, tmp_path):
    others = set(multiprocessing.active_children())  # of loaders that nobody has collected yet
    loader = evaluation(make_shards(tmp_path / "a", products=6, views=1, shards=1), 2, num_workers=1)
    first = keys(list(loader))
    assert set(multiprocessing.active_children()) - others
    loader.close()
    assert not set(multiprocessing.active_children()) - others
    assert keys(list(loader)) == first
    loader.close()
