"""The loaders: which samples, in which order, whatever the workers, the ranks, the sources and the damage."""

import collections
import io
import json
import os
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from PIL import Image

from clip_finetuning.loading import dataset
from clip_finetuning.loading.dataset import RememberedTokens
from clip_finetuning.loading.sample import NO_PICTURE
from clip_finetuning.loading.tar_contents import CUT
from clip_finetuning.loading.tar_format import TRUNCATED
from clip_finetuning.model.preprocessing import ImageTransform
from clip_finetuning.runtime import accounting
from clip_finetuning.training.losses import positives
from dBManagement import train_loader
from tests.helpers import (
    ROOT,
    SIZE,
    CountedTransform,
    assert_same,
    catalogue_sample,
    encoded_picture,
    epoch,
    evaluation,
    keys,
    tokenizer,
    training,
    write_shard,
)
from tests.processes import CONTEXT

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def shards(make_shards, tmp_path_factory):
    """90 samples, 3 of each product side by side, in 3 shards."""
    return make_shards(tmp_path_factory.mktemp("data") / "train")


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_gives_every_sample_once_in_order(shards, num_workers):
    loader = evaluation(shards, num_workers=num_workers)
    for _ in range(2):
        batches = list(loader)
        assert keys(batches) == [f"{number:09d}" for number in range(90)]
        assert [len(batch.images) for batch in batches] == [16] * 5 + [10]
        assert len(batches) == len(loader) and loader.num_samples == 90
    last = batches[-1]
    assert last.images.dtype == torch.uint8 and last.images.shape == (10, 3, SIZE, SIZE)
    assert torch.equal(last.images[9], ImageTransform(SIZE, train=False)(encoded_picture(89)))
    assert torch.equal(last.tokens, tokenizer(last.captions)) and last.captions[9] == "Caption of product 29"
    assert (last.product_ids[9], last.categories[9], last.subcategories[9]) == ("P29", "TOPS", "KNITS")
    assert last.image_names[9] == "P29_89.png"
    assert (last.products[9] == last.products[8]) and (last.products[9] != last.products[0])


def test_evaluation_of_the_first_samples(shards):
    loader = evaluation(shards, max_samples=20)
    assert keys(loader) == [f"{number:09d}" for number in range(20)] and len(loader) == 2
    assert loader.num_samples == 20
    assert evaluation(shards, max_samples=1000).num_samples == 90


def test_evaluation_parts_of_ranks_are_the_whole(shards):
    parts = [keys(evaluation(shards, rank=rank, world_size=4)) for rank in range(4)]
    assert [key for part in parts for key in part] == [f"{number:09d}" for number in range(90)]


# ------------------------------------------------------------------------------------------ training order


@pytest.fixture(scope="module")
def reference(shards):
    """Epochs 0 and 1 of 16 a batch by one process alone."""
    loader = training(shards, 16, seed=7)
    return [epoch(loader, 0), epoch(loader, 1)]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])  # five are more than there are shards
def test_the_order_does_not_depend_on_the_workers(shards, reference, num_workers):
    loader = training(shards, 16, seed=7, num_workers=num_workers)
    for expected in reference:
        assert_same(list(loader), expected)  # without set_epoch, epoch follows epoch
    assert_same(epoch(loader, 0), reference[0])


def test_epochs_and_seeds_differ(shards, reference):
    first, second = reference
    assert keys(first) != keys(second)
    assert set(keys(first)) != set(keys(second))  # other samples are left out of full batches
    assert keys(epoch(training(shards, 16, seed=8))) != keys(first)
    pictures = [dict(zip(keys(batches), torch.cat([b.images for b in batches]))) for batches in reference]
    both = sorted(set(pictures[0]) & set(pictures[1]))
    assert not any(torch.equal(pictures[0][key], pictures[1][key]) for key in both)  # another crop


def test_an_epoch_is_full_batches_of_distinct_products(shards, reference):
    for batches in [*reference, epoch(training(shards, 15), 3)]:
        for batch in batches:
            assert len(set(batch.product_ids)) == len(set(batch.products.tolist())) == len(batch.images)
        assert len(set(keys(batches))) == len(keys(batches))
    assert [len(batch.keys) for batch in reference[0]] == [16] * 5
    assert sorted(keys(epoch(training(shards, 15)))) == [f"{number:09d}" for number in range(90)]


def test_random_views_show_each_product_once(shards):
    loader = training(shards, 10, views="random")
    shown = []
    for number in range(2):
        batches = epoch(loader, number)
        assert len(batches) == len(loader) == 3
        assert len({name for batch in batches for name in batch.product_ids}) == 30
        shown.append(set(keys(batches)))
    assert shown[0] != shown[1]


def test_the_first_batch_is_a_fair_sample_of_sorted_data(make_shards, tmp_path):
    pattern = make_shards(tmp_path / "sorted", products=300, views=1, shards=5)
    means = []
    for seed in range(8):
        batch = next(iter(training(pattern, 60, seed=seed)))
        numbers = [int(key) for key in batch.keys]
        assert {number // 60 for number in numbers} == set(range(5))
        means.append(sum(numbers) / 60)
    # the mean of 60 out of 300 has a standard deviation of 10, that of eight such means one of 3.5
    assert all(abs(mean - 149.5) < 45 for mean in means) and abs(sum(means) / 8 - 149.5) < 15


def test_alternative_captions_are_drawn_in_training_alone(tmp_path):
    captions = [f"wording {number}" for number in range(4)]
    write_shard(tmp_path / "a.tar", [catalogue_sample(number, number, captions=captions) for number in range(12)])
    pattern = str(tmp_path / "a.tar")
    first = [caption for batch in epoch(training(pattern, 12)) for caption in batch.captions]
    again = [caption for batch in epoch(training(pattern, 12)) for caption in batch.captions]
    other = [caption for batch in epoch(training(pattern, 12), 1) for caption in batch.captions]
    assert first == again != other
    assert {caption for caption in first + other if caption.startswith("wording")} == set(captions)
    batch = next(iter(training(pattern, 12)))
    assert torch.equal(batch.tokens, tokenizer(batch.captions))
    assert next(iter(evaluation(pattern))).captions == [f"Caption of product {number}" for number in range(12)]


def with_captions(folder, captions_of_product, prefix=""):
    """A pattern of a shard with one sample for each of these lists of captions, the first as its text."""
    samples = []
    for number, (first, *others) in enumerate(captions_of_product):
        sample = catalogue_sample(number, number, captions=others)
        samples.append(sample | {f"{number:09d}.txt": first.encode()})
    return prefix + write_samples(folder, samples)


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_identities_tell_which_captions_describe_which_picture(tmp_path, prefix):
    """Also those that were not drawn this time, in whatever spaces they were written."""
    captions = [["a dress"], [" a  dress\n"], ["a shirt", "a top"], ["a top", "a tank top"], ["A dress"]]
    captions += [[f"{number}"] for number in range(5)]
    batches = [b for number in range(6) for b in epoch(training(with_captions(tmp_path, captions, prefix), 10), number)]
    texts = [[" ".join(text.split()) for text in own] for own in captions]
    drawn = set()
    for batch in batches:
        right = positives(batch.identities)
        for i, key in enumerate(batch.keys):
            drawn.add(batch.captions[i])
            own = {text.lower() for text in texts[int(key)]}  # CLIP's tokenizer knows no capitals
            assert right[i].tolist() == [i == j or batch.captions[j].lower() in own for j in range(10)]
    assert drawn == {text for own in texts for text in own}
    assert {batch.identities.shape[1] for batch in batches} == {1 + (dataset.MOST_CAPTIONS if prefix else 2)}


def test_more_captions_than_identities_tell_are_said_once(tmp_path, caplog):
    many = [str(number) for number in range(dataset.MOST_CAPTIONS + 2)]
    (batch,) = epoch(training(with_captions(tmp_path, [many, ["x"], many]), 3))
    assert batch.identities.shape == (3, 1 + dataset.MOST_CAPTIONS)
    assert len(caplog.records) == 1 and "has 10 captions" in caplog.text


# ------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 5])
def test_resume_yields_the_rest_and_decodes_nothing_else(shards, reference, num_workers, start):
    transform = CountedTransform(ImageTransform(SIZE, train=True))
    loader = train_loader(shards, transform, tokenizer, batch_size=16, seed=7, num_workers=num_workers)
    assert_same(epoch(loader, 0, start), reference[0][start:])
    assert transform.calls.value == 16 * (5 - start)
    assert_same(list(loader), reference[1])  # the next epoch is whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_was_left_early_does_no_harm(shards, reference, num_workers):
    loader = training(shards, 16, seed=7, num_workers=num_workers)
    for _ in loader:
        break
    assert_same(list(loader), reference[1])


def test_state_names_what_the_order_depends_on(shards, make_shards, tmp_path):
    loader = training(shards, 16)
    state = json.loads(json.dumps(loader.state()))
    assert loader.check_state(state) == []
    assert training(shards, 16, num_workers=2).check_state(state) == []  # the workers do not matter
    assert training(shards, 8, rank=1, world_size=2).check_state(state) == []  # nor who takes which share
    assert training(shards, 16, seed=1).check_state(state) == ["seed: 0 in the checkpoint, 1 now"]
    assert training(shards, 15).check_state(state) == ["global batch size: 16 in the checkpoint, 15 now"]
    assert training(shards, 16, views="random").check_state(state) == ["views: all in the checkpoint, random now"]
    same_number = make_shards(tmp_path / "train", first_product=50)
    assert training(same_number, 16).check_state(state) == [
        "the shards, or the products in them, are not those of the checkpoint"
    ]


def test_a_checkpoint_of_another_order_is_told_where_it_matters(shards):
    """Those before order 2 name none; their order differs only where products of VIEWS=random are left out."""
    for batch_size, views, is_told in [(16, "random", True), (15, "random", False), (16, "all", False)]:
        loader = training(shards, batch_size, views=views)
        state = loader.state()
        assert state["order"] == 2 and loader.changed_order(state) is None
        older = {name: value for name, value in state.items() if name != "order"}
        assert loader.check_state(older) == []  # it resumes all the same
        assert ("order 1, now it is 2" in (loader.changed_order(older) or "")) == is_told
    assert "order 3, now it is 2" in loader.changed_order({**state, "order": 3})


# ------------------------------------------------------------------------------------------------- damage


def write_samples(folder, samples):
    write_shard(folder / "a.tar", samples)
    return str(folder / "a.tar")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_picture_is_replaced_and_counted(tmp_path, caplog, num_workers):
    samples = [catalogue_sample(number, number // 3) for number in range(90)]
    intact = epoch(training(write_samples(tmp_path, samples), 10))
    for number in (4, 40):
        samples[number][f"{number:09d}.jpg"] = b"not a picture"
    loader = training(write_samples(tmp_path, samples), 10, num_workers=num_workers)
    batches = epoch(loader)
    assert [len(batch.images) for batch in batches] == [10] * 9
    for batch, before in zip(batches, intact):
        assert len(set(batch.product_ids)) == 10
        assert not {"000000004", "000000040"} & set(batch.keys)
        kept = [key for key in before.keys if key not in ("000000004", "000000040")]
        assert [key for key in batch.keys if key in kept] == kept  # nobody else moved
    assert loader.skipped == {"not an image": 2} and loader.skipped.total() == 2
    assert "a.tar: 000000004: not an image, 1 sample lost" in caplog.text
    epoch(loader, 1)
    assert loader.skipped.total() == 2  # not counted again
    whole = evaluation(write_samples(tmp_path, samples), 20, num_workers=num_workers)
    assert keys(whole) == [f"{number:09d}" for number in range(90) if number not in (4, 40)]
    assert whole.skipped.total() == 2


def test_the_order_with_damage_is_that_of_any_number_of_workers(tmp_path):
    samples = [catalogue_sample(number, number // 2) for number in range(40)]
    for number in range(0, 40, 7):
        samples[number][f"{number:09d}.jpg"] = encoded_picture(number)[:200]
    pattern = write_samples(tmp_path, samples)
    assert_same(epoch(training(pattern, 8, num_workers=2)), epoch(training(pattern, 8)))


def test_without_a_replacement_a_sample_comes_twice_and_a_lost_batch_is_an_error(tmp_path):
    samples = [catalogue_sample(number, number) for number in range(4)]
    samples[2]["000000002.jpg"] = b""
    batch = next(iter(training(write_samples(tmp_path, samples), 4)))
    assert len(batch.keys) == 4 and set(batch.keys) == {"000000000", "000000001", "000000003"}
    twice = [i for i, key in enumerate(batch.keys) if key == batch.keys[3]]
    assert len(twice) == 2 and torch.equal(batch.images[twice[0]], batch.images[twice[1]])
    for number, sample in enumerate(samples):
        sample[f"{number:09d}.jpg"] = b"nothing"
    with pytest.raises(ValueError, match=r"a whole batch cannot be read, first of all a\.tar: 0000.*: "):
        epoch(training(write_samples(tmp_path, samples), 4))


def test_a_truncated_shard_is_named_used_and_counted(make_shards, tmp_path, caplog):
    pattern = make_shards(tmp_path / "train")
    path = tmp_path / "train.000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    loader = training(pattern, 10)
    read = keys(evaluation(pattern))
    lost = 90 - len(read)
    assert 10 < lost < 20
    assert loader.num_samples == len(read) and loader.skipped == {TRUNCATED: lost}
    assert f"{path}: {TRUNCATED}, {lost} samples lost" in caplog.text
    assert set(keys(epoch(loader))) <= set(read)


def test_only_the_first_lost_samples_are_named(tmp_path, caplog):
    samples = [catalogue_sample(number, number) for number in range(20)]
    for number in range(10):
        samples[number][f"{number:09d}.jpg"] = b""
    loader = evaluation(write_samples(tmp_path, samples))
    assert len(keys(loader)) == 10 and loader.skipped.total() == 10
    assert len(caplog.records) == accounting.NAMED and "further ones are only counted" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_cut_during_the_training_is_counted(tmp_path, num_workers):
    pattern = write_samples(tmp_path, [catalogue_sample(number, number) for number in range(20)])
    loader = training(pattern, 4, num_workers=num_workers)
    epoch(loader)
    os.truncate(pattern, os.path.getsize(pattern) // 2)
    batches = epoch(loader, 1)
    assert [len(batch.keys) for batch in batches] == [4] * 5
    assert 9 <= loader.skipped[CUT] == loader.skipped.total() <= 11


@pytest.mark.parametrize("streamed", [False, True])
def test_lost_samples_of_one_name_are_each_counted(tmp_path, streamed):
    """Shards of one name in two folders, and a key that comes twice in a shard."""
    damaged = catalogue_sample(0, 0) | {"000000000.jpg": b"no picture"}
    without = {"000000000.json": b"{}", "000000000.txt": b"a caption"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        samples = [damaged, damaged, without, without, catalogue_sample(1, 1)]
        write_shard(tmp_path / folder / "a.tar", samples)
    prefix = "pipe:cat " if streamed else ""
    loader = evaluation(f"{prefix}{tmp_path}/one/a.tar::{prefix}{tmp_path}/two/a.tar")
    for _ in range(2):
        assert keys(loader) == ["000000001"] * 2
    assert loader.skipped == {"not an image": 4, NO_PICTURE: 4}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def strange_pictures():
    """name -> (bytes, whether it is usable)."""

    def encoded(picture, file_format, **options):
        buffer = io.BytesIO()
        picture.save(buffer, file_format, **options)
        return buffer.getvalue()

    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return {
        "bomb": (b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)), False),
        "truncated": (encoded_picture(1)[:300], False),
        "empty": (b"", False),
        "text": (b"<html>not found</html>", False),
        "png under another name": (encoded_picture(2, file_format="PNG"), True),
        "cmyk": (encoded(Image.new("CMYK", (20, 20), (0, 255, 0, 0)), "JPEG"), True),
        "sixteen bits": (encoded(Image.new("I;16", (20, 20), 30_000), "PNG"), True),
        "palette": (encoded(Image.new("P", (20, 20)), "PNG", transparency=0), True),
        "gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), True),
        "webp": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), True),
        "one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), True),
        "grey": (encoded(Image.new("L", (20, 20), 9), "JPEG"), True),
    }


def test_strange_pictures_are_in_a_batch_or_counted(tmp_path):
    pictures = strange_pictures()
    samples = [{f"{name}.jpg": data, f"{name}.txt": name.encode()} for name, (data, _) in pictures.items()]
    loader = evaluation(write_samples(tmp_path, samples), 5)
    assert keys(loader) == [name for name, (_, usable) in pictures.items() if usable]
    assert loader.skipped.total() == sum(not usable for _, usable in pictures.values())
    assert all(len(batch.images) == 5 for batch in epoch(training(write_samples(tmp_path, samples), 5)))


def test_strange_captions_and_names(tmp_path):
    captions = [
        "line\nbreak\r\n",
        "NUL \0 inside",
        "\U0001f457" * 5,
        "x" * 100_000,
        "bad \udcff".encode("utf-8", "surrogateescape"),
    ]
    names = ["/etc/passwd", "../../up", "a/../b", "twice", "twice"]
    samples = [
        {f"{name}.jpg": encoded_picture(number), f"{name}.txt": text if isinstance(text, bytes) else text.encode()}
        for number, (name, text) in enumerate(zip(names, captions))
    ]
    batch = next(iter(evaluation(write_samples(tmp_path / ".." / tmp_path.name, samples))))
    assert batch.keys == names
    assert batch.captions[0] == "line break" and len(batch.captions[3]) == 100_000
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", ".index"}


# --------------------------------------------------------------------------------- patterns and foreign shards


def test_missing_shards_are_named_with_what_would_match(shards):
    with pytest.raises(FileNotFoundError, match=r"no shard matches .*absent.*does not exist"):
        training(shards.replace("train.", "absent/train."))
    with pytest.raises(FileNotFoundError, match=r"2 of the 5 shards .*train\.000003\.tar, train\.000004\.tar; this"):
        training(shards.replace("000002}", "000004}"))
    with pytest.raises(FileNotFoundError, match=r"no shard matches 'D:\\\\shards\\\\train"):  # a drive is no URL
        evaluation("D:\\shards\\train.{000000..000002}.tar")


def test_shards_of_others(tmp_path):
    """As img2dataset, open_clip_train and hand-made scripts write them."""
    write_shard(
        tmp_path / "img2dataset.tar",
        [
            {
                f"{number:08d}.jpg": encoded_picture(number),
                f"{number:08d}.json": json.dumps(
                    {"caption": f"from json {number}", "url": "http://x", "status": "success"}
                ).encode(),
            }
            for number in range(2)
        ],
    )
    write_shard(
        tmp_path / "pairs.tar",
        [
            {"a.png": encoded_picture(2, file_format="PNG"), "a.txt": b"a png"},
            {"b.webp": encoded_picture(3, file_format="WEBP"), "b.txt": b"a webp"},
            {"c.jpeg": encoded_picture(4), "c.txt": b"a jpeg"},
            {"d.JPG": encoded_picture(5), "d.txt": b"capitals"},
            {"e.jpg": encoded_picture(6), "e.txt0.txt": b"first of two", "e.txt1.txt": b"second of two"},
            {"f.jpg": encoded_picture(7), "f.txt0": b"first of three", "f.txt1": b"second", "f.txt2": b"third"},
            {"g.jpg": encoded_picture(8), "g.txt": b"a png"},
        ],
    )
    pattern = f"{tmp_path}/img2dataset.tar::{tmp_path}/pairs.tar"
    loader = evaluation(pattern)
    (batch,) = loader
    assert batch.captions == [
        "from json 0", "from json 1", "a png", "a webp", "a jpeg", "capitals", "first of two", "first of three", "a png",
    ]  # fmt: skip
    assert (
        batch.products[2] == batch.products[8] and len(set(batch.products.tolist())) == 8
    )  # equal captions, one product
    assert loader.skipped.total() == 0
    drawn = {caption for number in range(20) for b in epoch(training(pattern, 4), number) for caption in b.captions}
    assert {"first of two", "second of two", "first of three", "second", "third"} <= drawn


def test_data_without_a_usable_sample(tmp_path):
    write_shard(tmp_path / "a.tar", [{"a.txt": b"text alone"}, {"b.jpg": encoded_picture(0)}])
    with pytest.raises(
        ValueError, match=r"no usable sample in .*1 x no image in the shard, 1 x no caption.* needs KEY\.jpg"
    ):
        evaluation(str(tmp_path / "a.tar"))
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match="the shards are empty"):
        training(str(tmp_path / "a.tar"))


def test_fewer_products_than_the_batch_size(tmp_path, caplog):
    pattern = write_samples(tmp_path, [catalogue_sample(number, number // 2) for number in range(10)])
    batches = epoch(training(pattern, 64))
    assert [len(batch.keys) for batch in batches] == [5, 5]
    assert "batches of 5 instead of 64" in caplog.text
    with pytest.raises(ValueError, match="10 samples in .* are too few products for 8 processes"):
        training(pattern, 64, world_size=8)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pictures_are_made_by_one_thread_and_the_callers_setting_stays(shards, num_workers):
    before = torch.get_num_threads()
    torch.set_num_threads(3)

    def transform(data, seed):
        return torch.full((3, SIZE, SIZE), torch.get_num_threads(), dtype=torch.uint8)

    for batch in train_loader(shards, transform, tokenizer, batch_size=15, num_workers=num_workers):
        assert batch.images.unique().tolist() == [1]
        assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_a_caption_is_tokenised_once():
    asked = collections.Counter()

    def counting(captions):
        asked.update(captions)
        return tokenizer(captions)

    tokens = RememberedTokens(counting)
    assert torch.equal(tokens(["a", "b", "a"]), tokenizer(["a", "b", "a"]))
    assert torch.equal(tokens(["b", "c"]), tokenizer(["b", "c"]))
    assert asked == {"a": 1, "b": 1, "c": 1}
    assert tokens([]).shape == (0, 0)


def test_remembered_captions_are_bounded(monkeypatch):
    monkeypatch.setattr(dataset, "REMEMBERED_CAPTIONS", 10)
    tokens = RememberedTokens(tokenizer)
    for number in range(30):
        tokens([f"caption {number}"])
    assert len(tokens.rows) <= 11


# -------------------------------------------------------------------------------------------------- ranks


def rank_job(rank, folder, jobs):
    """One of two gloo processes: a collective each batch, as in training, so that unequal numbers of them would hang."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    seen = []
    for pattern, options in jobs:
        loader = training(pattern, rank=rank, world_size=2, **options)
        for number in range(2):
            loader.set_epoch(number)
            batches = []
            for batch in loader:
                dist.all_reduce(batch.images.float().mean())
                batches.append(batch.keys)
            dist.barrier()
            seen.append(batches)
    (folder / f"seen{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def test_two_processes_share_the_batches_of_one(make_shards, tmp_path):
    one_shard = make_shards(tmp_path / "one", products=11, views=3, shards=1)
    uneven = make_shards(tmp_path / "long", products=20, views=2, shards=2)
    uneven += "::" + make_shards(tmp_path / "short", products=1, views=1, shards=1, first_product=100)
    jobs = [
        (one_shard, {"batch_size": 4}),
        (one_shard, {"batch_size": 5, "num_workers": 2}),
        (uneven, {"batch_size": 3, "seed": 3}),
        (uneven, {"batch_size": 4, "views": "random"}),
    ]
    processes = [CONTEXT.Process(target=rank_job, args=(rank, tmp_path, jobs)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            pytest.fail("a rank hangs")
    assert [process.exitcode for process in processes] == [0, 0]
    ranks = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2)]
    number = 0
    for pattern, options in jobs:
        together = training(pattern, **{**options, "batch_size": 2 * options["batch_size"], "num_workers": 0})
        for this_epoch in range(2):
            mine, theirs = ranks[0][number], ranks[1][number]
            assert [one + other for one, other in zip(mine, theirs)] == [b.keys for b in epoch(together, this_epoch)]
            assert len(mine) == len(theirs) > 0
            assert all(len(batch) == options["batch_size"] for batch in mine + theirs)
            assert not {key for batch in mine for key in batch} & {key for batch in theirs for key in batch}
            number += 1


def test_a_replacement_is_of_no_product_of_any_rank(tmp_path):
    samples = [catalogue_sample(number, number // 3) for number in range(60)]
    for number in range(0, 60, 11):
        samples[number][f"{number:09d}.jpg"] = b""
    pattern = write_samples(tmp_path, samples)
    ranks = [epoch(training(pattern, 5, rank=rank, world_size=2)) for rank in range(2)]
    for one, other in zip(*ranks):
        assert len(set(one.product_ids + other.product_ids)) == 10
    assert len(ranks[0]) == len(ranks[1]) == 6


def test_a_process_that_ends_does_not_wait_for_its_workers(shards):
    """They ignore SIGTERM, by which multiprocessing would end those of a loader that still lives at the exit."""
    program = f"""
import gc
gc.disable()  # whether a circle of references is collected before the exit is chance
import sys
sys.path[:0] = {[str(ROOT)]}
from tests.helpers import training
loader = training({str(shards)!r}, 8, num_workers=2)
loader.itself = loader
batches = iter(loader)
next(batches)
if "fail" in sys.argv:
    raise ValueError("as a training may end")
"""
    for argument in ("", "fail"):
        ended = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, timeout=60)
        assert ended.returncode == (1 if argument else 0), ended.stderr
        assert "as a training may end" in ended.stderr if argument else not ended.stderr
