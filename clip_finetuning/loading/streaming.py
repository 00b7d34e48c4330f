"""Batches from shards that can only be read from front to back: `http:`, `pipe:`, `s3:` ..., through webdataset 1.x.

Every stage is a function from iterator to iterator over raw samples (see shard_samples). What webdataset leaves to its
users is done here: shards are closed, a broken one is reported and its readable samples are used, more readers than
shards are no error, no batch holds two samples of a product, and the order is a function of (seed, epoch, readers).
"""

import collections
import contextlib
import itertools
import json
import logging
import math
import os
import random
import tarfile
import zlib
from urllib.parse import urlparse

import fsspec
import webdataset as wds
from webdataset.gopen import Pipe

from clip_finetuning.loading.sample import SampleError, parse_sample, product_hash
from clip_finetuning.loading.shard_list import is_url
from clip_finetuning.loading.tar_index import FEWER, TRUNCATED, Lost, ShardDamage, group_members, is_count

SHUFFLE_BUFFER = 2000  # samples of a reader; they are still encoded, so this is tens of megabytes
HELD_BACK = 20  # batches that may wait because their products are in the present one
UNREADABLE = "unreadable shard"
log = logging.getLogger(__name__)


class StreamedBatches:
    """The batches of one rank from streamed shards; the same interface as dBManagement.LocalBatches."""

    streamed = True
    most_captions = math.inf  # nobody has looked yet

    def __init__(self, shards, *, batch_size, train, seed, views, rank, world_size, max_samples):
        self.shards, self.batch_size, self.train = shards, batch_size, train
        self.seed, self.views, self.rank, self.world_size = seed, views, rank, world_size
        self.lost = []
        # A worker without a shard of its own could only read what another one reads, as any second one in shard order.
        self.max_workers = max(1, len(shards) // world_size) if train else 1
        self.sizes = self._count(train and views == "random")
        self.num_samples = sum(self.sizes)
        if train:
            self.batch_size = min(batch_size, self.num_samples // world_size)
            self.num_batches = self.num_samples // (self.batch_size * world_size) if self.batch_size else 0
            return
        self.num_samples = min(self.num_samples, max_samples or self.num_samples)
        starts = [0, *itertools.accumulate(self.sizes)]
        self._wanted = [min(max(self.num_samples - start, 0), size) for start, size in zip(starts, self.sizes)]
        self._mine = range(len(shards) * rank // world_size, len(shards) * (rank + 1) // world_size)
        self.num_batches = -(-sum(self._wanted[shard] for shard in self._mine) // batch_size)

    def _count(self, products_alone):
        """Samples of each shard, from `sizes.json` beside it; without one, every shard has to be read once."""
        listed = {} if products_alone else remote_sizes(self.shards)
        unlisted = [shard for shard in self.shards if shard not in listed]
        if unlisted:
            why = "--views random needs the number of products" if products_alone else "no sizes.json lists them"
            log.warning("counting the samples of %d streamed shards, since %s", len(unlisted), why)
        places = collections.Counter()  # product -> runs of neighbouring views
        for shard in unlisted:
            samples = with_product(shard_samples(shard, self.lost.append))
            if products_alone:
                runs = [product for product, _ in itertools.groupby(sample["__product__"] for sample in samples)]
                places.update(runs)
                listed[shard] = len(set(runs))
            else:
                listed[shard] = sum(1 for _ in samples)
        if scattered := sum(count > 1 for count in places.values()):
            log.warning(
                "%d products have views that are no neighbours in the streamed shards: of these, --views random draws "
                "only among the views that come first; write the shards with a product's views together",
                scattered,
            )
        return [listed[shard] for shard in self.shards]

    def fingerprint(self):
        return [[os.path.basename(shard), size] for shard, size in zip(self.shards, self.sizes)]

    def read(self, sample):
        return sample

    def name(self, sample):
        return f"{sample['__url__']}: {sample['__key__']}"

    def identity(self, sample):
        return sample["__url__"], sample["__key__"], sample["__place__"]

    def number(self, sample):
        return product_hash(f"{os.path.basename(sample['__url__'])}/{sample['__key__']}")

    def groups(self, epoch, start, part, parts, report):
        """(samples, spares) of the batches start..., those numbered `part` modulo `parts`."""
        if not self.train:
            samples = (s for i in self._mine for s in itertools.islice(self._samples(i, report), self._wanted[i]))
            batches = iter(lambda: list(itertools.islice(samples, self.batch_size)), [])
            mine = itertools.islice(batches, start + (part - start) % parts, None, parts)
            return ((batch, ()) for batch in mine)
        # The batch after a batch provides what replaces its unreadable samples.
        batches = itertools.pairwise(distinct_batches(self._endless(epoch, part, parts, report), self.batch_size))
        numbered = zip(range(part, self.num_batches, parts), batches)
        return ((batch, spares_for(batch, after)) for number, (batch, after) in numbered if number >= start)

    def _samples(self, shard, report):
        return shard_samples(self.shards[shard], report, self.sizes[shard])

    def _endless(self, epoch, part, parts, report):
        """This reader's samples in random order, lap after lap: it may hold fewer than its share of an epoch.

        A reader has shards of its own if there are enough of them, else the products of its own from all shards.
        """
        reader, readers = self.rank * parts + part, self.world_size * parts
        by_shard = len(self.shards) >= readers
        generator = random.Random(f"{self.seed} {epoch} {reader} {readers}")
        for lap in itertools.count():
            order = list(range(len(self.shards)))
            random.Random(f"{self.seed} {epoch} {lap}").shuffle(order)  # the same for all readers
            mine = order[reader::readers] if by_shard else order
            samples = (sample for shard in mine for sample in with_product(self._samples(shard, report)))
            if not by_shard:
                samples = (sample for sample in samples if sample["__product__"] % readers == reader)
            if self.views == "random":
                samples = one_view(samples, generator)
            met = 0
            for sample in wds.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=generator)(samples):
                met += 1
                yield sample
            if not met:
                raise ValueError(
                    f"reader {reader + 1} of {readers} found no sample in {len(self.shards)} streamed shards "
                    f"({self.shards[0]} ...): are they empty, or out of reach?"
                )


def open_shard(shard):
    """A binary stream of a local path, or of any URL that webdataset or fsspec knows."""
    if not is_url(shard):
        return open(shard, "rb")
    if urlparse(shard).scheme in wds.gopen_schemes:
        return wds.gopen(shard)
    return fsspec.open(shard, "rb").open()


def shard_samples(shard, report, expected=None):
    """The raw samples of one shard, in order. What breaks it off goes to `report` as a Lost."""
    found, problem = 0, None
    try:
        stream = open_shard(shard)
    except (OSError, ValueError, ImportError) as error:
        report(Lost(expected or 1, UNREADABLE, f"{shard} ({error})", shard))
        return
    try:
        for key, sample in group_members(_members(_bytes_of(stream))):
            found += 1
            yield {"__key__": key, "__url__": shard, "__place__": found, **sample}
    except ShardDamage as damage:
        problem = damage.reason
    except GeneratorExit:  # whoever reads wants no more: the rest is not worth its transfer
        _close(stream)
        raise
    problem = _failure_at_end(stream) or problem
    if problem or found < (expected or 0):
        reason = FEWER if not problem else TRUNCATED if found else UNREADABLE
        lost = 1 if expected is None else max(expected - found, 0)
        report(Lost(lost, reason, f"{shard} ({problem})" if problem else shard, shard))


def _bytes_of(stream):
    """webdataset's Pipe raises once its command has failed, although samples may still wait in the pipe."""
    return stream.stream if isinstance(stream, Pipe) else stream


def _failure_at_end(stream):
    """Read the rest, since a command fails if nobody takes its output, and close -> what failed, or None."""
    try:
        while _bytes_of(stream).read(1 << 16):
            pass
        status = stream.proc.wait() if isinstance(stream, Pipe) else 0
    except OSError as error:
        return str(error)
    finally:
        _close(stream)
    return f"exit code {status}" if status and status not in stream.ignore_status else None


def _close(stream):
    with contextlib.suppress(OSError):
        stream.close()


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a stream that ends without the end marker for a whole one."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):
            raise tarfile.ReadError("unexpected end of data") from None


def _members(stream):
    """(name, bytes) of the regular files in a tar, plain or compressed. Raises ShardDamage."""
    name = None
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictHeader) as tar:
            for header in tar:
                if header.isfile():
                    name = header.name
                    data = tar.extractfile(header).read()
                    name = None
                    yield header.name, data
                tar.members = []  # it would keep every header
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ShardDamage(str(error.args[0] if error.args else error), name) from None


def remote_sizes(shards):
    """Shard -> sample count, for those that a `sizes.json` beside them lists."""
    sizes = {}
    for folder in dict.fromkeys(shard.rpartition("/")[0] for shard in shards if not shard.startswith("pipe:")):
        try:
            with contextlib.closing(open_shard(f"{folder}/sizes.json" if folder else "sizes.json")) as stream:
                listed = json.loads(stream.read())
        except (OSError, ValueError, ImportError):
            continue
        if isinstance(listed, dict):
            named = {f"{folder}/{name}" if folder else name: size for name, size in listed.items()}
            sizes |= {shard: named[shard] for shard in shards if is_count(named.get(shard))}
    return sizes


def with_product(samples):
    """Add `__product__`, the hash of each sample's product; unusable samples pass, to be counted where they are used."""
    for sample in samples:
        try:
            product = parse_sample(sample).product_id
        except SampleError:
            product = sample["__key__"]
        yield {**sample, "__product__": product_hash(product)}


def one_view(samples, generator):
    """A random sample of each product, where its views are neighbours; a product that comes again later is left out."""
    seen = set()
    for product, views in itertools.groupby(samples, key=lambda sample: sample["__product__"]):
        views = list(views)
        if product not in seen:
            seen.add(product)
            yield generator.choice(views)


def spares_for(batch, after):
    """Samples of the batch after whose products are not in this one."""
    products = {sample["__product__"] for sample in batch}
    return [sample for sample in after if sample["__product__"] not in products]


def distinct_batches(samples, batch_size):
    """Lists of `batch_size` samples of distinct products; a sample whose product is there already waits for its turn."""
    waiting = collections.deque()
    while True:
        batch = {}
        for _ in range(len(waiting)):
            sample = waiting.popleft()
            if len(batch) < batch_size and sample["__product__"] not in batch:
                batch[sample["__product__"]] = sample
            else:
                waiting.append(sample)
        while len(batch) < batch_size:
            sample = next(samples, None)
            if sample is None:
                return
            if batch.setdefault(sample["__product__"], sample) is not sample:
                waiting.append(sample)
            if len(waiting) > HELD_BACK * batch_size:
                raise ValueError(
                    f"the streamed shards of a reader hold too few products for batches of {batch_size} distinct ones; "
                    "lower BATCH_SIZE or NUM_WORKERS"
                )
        yield list(batch.values())
