"""Streams: commands and a web server as sources of shards; what holds for local shards, as far as it can."""

import collections
import functools
import gzip
import http.server
import json
import threading

import fsspec
import pytest
import torch

from clip_finetuning.loading.stream_reader import UNREADABLE, shard_samples
from clip_finetuning.loading.streaming import distinct_batches
from clip_finetuning.loading.tar_contents import FEWER
from clip_finetuning.loading.tar_format import TRUNCATED
from clip_finetuning.loading.tar_index import TarIndex
from clip_finetuning.model.preprocessing import ImageTransform
from dBManagement import eval_loader, train_loader
from tests.helpers import (
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

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
ALL = [f"{number:09d}" for number in range(90)]


class Server:
    """Serves a folder on 127.0.0.1; `.requests` counts what was asked for."""

    def __init__(self, folder):
        self.requests = requests = collections.Counter()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(self, *_):
                requests[self.path.rpartition("/")[2]] += 1

            def log_error(self, *_):
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def folder(make_shards, tmp_path_factory):
    """90 samples, 3 of each product side by side, in 6 shards: train.000000.tar ..."""
    folder = tmp_path_factory.mktemp("streams")
    make_shards(folder / "train", shards=6)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture(params=["pipe", "http"])
def pattern(request, folder, server):
    shards = "train.{000000..000005}.tar"
    return f"pipe:cat '{folder}/'{shards}" if request.param == "pipe" else f"{server.address}/{shards}"


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_gives_every_sample_once_in_order(pattern, num_workers):
    loader = evaluation(pattern, num_workers=num_workers)
    for _ in range(2):
        batches = list(loader)
        assert keys(batches) == ALL
        assert [len(batch.images) for batch in batches] == [16] * 5 + [10]
        assert len(loader) == 6 and loader.num_samples == 90 and not loader.skipped


def test_evaluation_is_that_of_local_shards(pattern, folder):
    assert_same(list(evaluation(pattern)), list(evaluation(f"{folder}/train.*.tar")))
    assert keys(evaluation(pattern, max_samples=20)) == ALL[:20]
    parts = [keys(evaluation(pattern, rank=rank, world_size=4)) for rank in range(4)]
    assert [key for part in parts for key in part] == ALL


def test_a_sizes_file_spares_the_counting(server, caplog):
    before = server.requests.copy()
    assert training(f"{server.address}/train.{{000000..000005}}.tar").num_samples == 90
    assert server.requests - before == {"sizes.json": 1}
    assert not caplog.records


def test_without_a_sizes_file_every_shard_is_counted(folder, caplog):
    assert evaluation(f"pipe:cat {folder}/train.{{000000..000005}}.tar").num_samples == 90
    assert "counting the samples of 6 streamed shards, since no sizes.json lists them" in caplog.text


def test_any_file_system_that_fsspec_knows(folder):
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/shards/{number}.tar", (folder / f"train.{number:06d}.tar").read_bytes())
    assert keys(evaluation("memory://shards/{0..1}.tar")) == ALL[:30]


def test_commands_may_unpack_and_local_shards_may_stand_beside_streams(folder, tmp_path):
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress((folder / "train.000000.tar").read_bytes()))
    assert keys(evaluation(f"pipe:gzip -dc {tmp_path}/0.tar.gz::{folder}/train.000001.tar")) == ALL[:30]


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_are_full_distinct_and_reproducible(pattern, num_workers):
    loader = training(pattern, 10, num_workers=num_workers, seed=3)
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == len(loader) == 9
    for batch in first + second:
        assert len(batch.images) == 10 == len(set(batch.product_ids))
    assert keys(first) != keys(second)
    assert_same(epoch(training(pattern, 10, num_workers=num_workers, seed=3)), first)
    assert keys(epoch(training(pattern, 10, num_workers=num_workers, seed=4))) != keys(first)


def test_an_epoch_of_one_reader_is_nearly_every_sample(pattern):
    """Only those held back for their product's sake at the end of a lap come later than others again."""
    assert len(set(keys(epoch(training(pattern, 10))))) >= 80


def test_random_views_show_each_product_once(pattern):
    loader = training(pattern, 10, views="random")
    shown = [epoch(loader, number) for number in range(2)]
    for batches in shown:
        assert len(batches) == len(loader) == 3
        assert len({name for batch in batches for name in batch.product_ids}) == 30
    assert set(keys(shown[0])) != set(keys(shown[1]))


def test_views_that_are_no_neighbours_are_said_where_one_is_drawn(tmp_path, caplog):
    """A stream cannot look ahead: those that come later in a shard are never drawn."""
    order = [0, 0, 1, 2, 2, 0, 3, 1, 4]  # products 0 and 1 come again
    write_shard(tmp_path / "a.tar", [catalogue_sample(number, product) for number, product in enumerate(order)])
    loader = training(f"pipe:cat {tmp_path}/a.tar", 5, views="random")
    assert loader.num_samples == 5
    assert "2 products have views that are no neighbours" in caplog.text
    assert not {"000000005", "000000007"} & {key for number in range(8) for key in keys(epoch(loader, number))}


def test_alternative_captions_are_drawn(tmp_path):
    captions = [f"wording {number}" for number in range(4)]
    write_shard(tmp_path / "a.tar", [catalogue_sample(number, number, captions=captions) for number in range(12)])
    loader = training(f"pipe:cat {tmp_path}/a.tar", 12)
    drawn = {caption for number in range(3) for batch in epoch(loader, number) for caption in batch.captions}
    assert drawn > set(captions)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4])
def test_resume_yields_the_rest_and_decodes_nothing_else(folder, num_workers, start):
    pattern = f"pipe:cat {folder}/train.{{000000..000005}}.tar"
    whole = epoch(training(pattern, 10, num_workers=num_workers), 2)
    transform = CountedTransform(ImageTransform(SIZE, train=True))
    loader = train_loader(pattern, transform, tokenizer, batch_size=10, num_workers=num_workers)
    assert_same(epoch(loader, 2, start), whole[start:])
    assert transform.calls.value == 10 * (9 - start)


def test_the_number_of_workers_is_part_of_the_state(pattern):
    state = json.loads(json.dumps(training(pattern, 10, num_workers=2).state()))
    assert training(pattern, 10, num_workers=2).check_state(state) == []
    assert training(pattern, 10, num_workers=1).check_state(state) == ["workers: 2 in the checkpoint, 1 now"]
    assert training(pattern, 5, num_workers=2, world_size=2).check_state(state) == [
        "processes: 1 in the checkpoint, 2 now"
    ]
    assert training(pattern.replace("5}", "4}"), 10, num_workers=2).check_state(state) == [
        "samples: 90 in the checkpoint, 75 now",
        "the shards, or the products in them, are not those of the checkpoint",
    ]


def test_more_workers_than_shards(folder):
    loader = training(f"pipe:cat {folder}/train.{{000000..000001}}.tar", 10, num_workers=5)
    assert loader.num_workers == 2
    assert [len(set(batch.product_ids)) for batch in loader] == [10] * 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_more_processes_than_shards_share_the_products(folder, num_workers):
    pattern = f"pipe:cat {folder}/train.{{000000..000001}}.tar"
    ranks = [epoch(training(pattern, 2, rank=rank, world_size=3, num_workers=num_workers)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [5] * 3
    products = [{name for batch in batches for name in batch.product_ids} for batches in ranks]
    assert not products[0] & products[1] and not products[1] & products[2] and not products[0] & products[2]


# -------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def broken(make_shards, tmp_path):
    """Four shards of 15 samples on a server: whole, truncated, no tar at all, and missing."""
    make_shards(tmp_path / "train", products=20, shards=4)
    path = tmp_path / "train.000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "train.000002.tar").write_bytes(b"<html>" * 500)
    (tmp_path / "train.000003.tar").unlink()
    server = Server(tmp_path)
    yield f"{server.address}/train.{{000000..000003}}.tar", path
    server.close()


def readable(path):
    return keys(evaluation(str(path)))


def test_broken_shards_are_named_used_and_counted_in_evaluation(broken, caplog):
    pattern, truncated = broken
    loader = evaluation(pattern)
    some = readable(truncated)
    assert keys(loader) == ALL[:15] + some and 3 < len(some) < 13
    assert loader.skipped == {TRUNCATED: 15 - len(some), UNREADABLE: 30}
    assert f"train.000001.tar (unexpected end of data): {TRUNCATED}, {15 - len(some)} samples lost" in caplog.text
    assert "train.000002.tar" in caplog.text and "train.000003.tar" in caplog.text


def test_broken_shards_are_named_used_and_counted_in_training(broken, caplog):
    pattern, truncated = broken
    loader = training(pattern, 5)
    batches = epoch(loader)
    assert [len(set(batch.product_ids)) for batch in batches] == [5] * 12  # as sizes.json promised
    assert set(keys(batches)) <= {*ALL[:15], *readable(truncated)}
    epoch(loader, 1)
    assert loader.skipped == {TRUNCATED: 15 - len(readable(truncated)), UNREADABLE: 30}


def test_a_shard_cut_anywhere_gives_what_an_index_gives(folder, tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, [catalogue_sample(number, number) for number in range(4)])
    whole = path.read_bytes()
    headers = len(whole.rstrip(b"\0"))
    for size in [*range(512, headers, 509), *range(1024, headers, 512)]:
        path.write_bytes(whole[:size])
        index, lost = TarIndex([str(path)]), []
        samples = [sample["__key__"] for sample in shard_samples(str(path), lost.append, 4)]
        assert samples == [index.read(i)["__key__"] for i in range(len(index))], size
        assert [(entry.count, entry.reason) for entry in lost] == [
            (4 - len(samples), TRUNCATED if samples else UNREADABLE)
        ]


@pytest.mark.parametrize("batch_size", [15, 4])  # the loss after the last sample of a full batch counts, too
def test_a_command_that_fails_at_the_end(folder, batch_size, caplog):
    pattern = f"pipe:cat {folder}/train.000000.tar; exit 3"
    loader = evaluation(pattern, batch_size)
    assert keys(loader) == ALL[:15]
    assert loader.skipped == {TRUNCATED: 1} and "exit code 3" in caplog.text


def test_a_stream_that_ends_between_two_samples(make_shards, tmp_path):
    make_shards(tmp_path / "train", products=10, shards=1)
    write_shard(tmp_path / "train.000000.tar", [catalogue_sample(number, number // 3) for number in range(20)])
    server = Server(tmp_path)
    loader = evaluation(f"{server.address}/train.000000.tar", 10)
    assert len(keys(loader)) == 20 and loader.skipped == {FEWER: 10}
    server.close()


def test_an_unreadable_picture_is_replaced_and_counted(tmp_path, caplog):
    samples = [catalogue_sample(number, number // 3) for number in range(90)]
    samples[40]["000000040.jpg"] = encoded_picture(40)[:100]
    del samples[50]["000000050.txt"]
    write_shard(tmp_path / "a.tar", samples)
    loader = training(f"pipe:cat {tmp_path}/a.tar", 10)
    batches = epoch(loader)
    assert [len(set(batch.product_ids)) for batch in batches] == [10] * 8  # of 89 samples, as from local shards
    assert not {"000000040", "000000050"} & set(keys(batches))
    whole = evaluation(f"pipe:cat {tmp_path}/a.tar")
    assert keys(whole) == [key for key in ALL if key not in ("000000040", "000000050")]
    assert whole.skipped.total() == 2 and "a.tar: 000000040: " in caplog.text


def test_shards_out_of_reach(tmp_path):
    with pytest.raises(ValueError, match=r"no usable sample in .*2 x unreadable shard"):
        training(f"pipe:cat {tmp_path}/absent.{{0..1}}.tar")
    with pytest.raises(ValueError, match="no usable sample"):
        evaluation("nosuchscheme://host/{0..1}.tar")


def test_a_promise_that_no_shard_keeps(tmp_path):
    (tmp_path / "sizes.json").write_text('{"a.tar": 30}')
    server = Server(tmp_path)
    with pytest.raises(ValueError, match=r"reader 1 of 1 found no sample in 1 streamed shards.*out of reach"):
        epoch(training(f"{server.address}/a.tar", 10))
    server.close()


def test_too_few_products_for_a_batch(tmp_path):
    write_shard(tmp_path / "a.tar", [catalogue_sample(number, number // 30) for number in range(90)])
    with pytest.raises(ValueError, match="too few products for batches of 10 distinct ones; lower BATCH_SIZE"):
        epoch(training(f"pipe:cat {tmp_path}/a.tar", 10))


def test_hostile_names_and_keys_that_come_twice(tmp_path):
    names = ["/etc/passwd", "../../up", "twice", "twice"]
    write_shard(
        tmp_path / "a.tar",
        [{f"{name}.jpg": encoded_picture(i), f"{name}.txt": str(i).encode()} for i, name in enumerate(names)],
    )
    (batch,) = evaluation(f"pipe:cat {tmp_path}/a.tar")
    assert batch.keys == names and batch.captions == ["0", "1", "2", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_distinct_batches_lose_nothing():
    products = torch.randint(0, 12, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    samples = ({"__product__": product, "number": number} for number, product in enumerate(products))
    batches = list(distinct_batches(samples, 5))
    assert all(len({sample["__product__"] for sample in batch}) == 5 for batch in batches)
    numbers = [sample["number"] for batch in batches for sample in batch]
    assert len(numbers) == len(set(numbers)) > 250


def test_streams_are_closed(folder, recwarn):
    shards = f"pipe:cat {folder}/train.{{000000..000005}}.tar"
    list(eval_loader(shards, ImageTransform(16, train=False), tokenizer, batch_size=8, max_samples=20))
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]
