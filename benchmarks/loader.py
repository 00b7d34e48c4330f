"""Loader throughput beside the plain webdataset recipe and open_clip_train's own loader.

    python benchmarks/loader.py                                   # ours against the plain recipe
    pip install --target .peer --no-deps webdataset==0.2.86 pandas python-dateutil six
    python benchmarks/loader.py --peer-packages .peer             # and against open_clip_train's get_wds_dataset
    python benchmarks/loader.py --start 260000 10000000           # how soon a training of so many samples begins

All read the same shards (256-pixel JPEG of quality 95, four views a product, product captions; and 1000x1300 photos)
through the page cache and make training batches of 64 at 224 pixels, with tokens. A contender is a process of its own
with one torch thread (and its workers); they take turns, an epoch each, after one epoch to warm up. Printed are medians,
ratios of medians, and our share of the ceiling, which is decoding and resizing alone. Ours hands out uint8, to be
normalised on the device; "ours, float" does that on the CPU in the consumer. "ours, PIL decode" is what remains without
simplejpeg.

`--start` makes shards of 1,000 samples that are one file under many names, with an index kept of each that tells its
products, four views each. Timed in a fresh process, after its imports, are the loader and its first batch; beside them
stand the largest memory of that process, and the same without a kept index up to 260,000 samples.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE, SIZE, SHARDS = 64, 224, 4
OURS, PLAIN, PEER = "ours", "plain recipe", "open_clip_train"
FLOAT, BY_PIL, CEILING = "ours, float", "ours, PIL decode", "ceiling"
WORDS = {
    "cut": "Long sleeve, Short sleeve, Sleeveless, Slim-fit, Relaxed-fit, Cropped, Oversized, Tailored",
    "fabric": "cotton, merino wool, silk, denim, linen, cashmere, nylon, leather, jersey, canvas",
    "garment": "sweater, t-shirt, dress, jacket, trousers, skirt, coat, shirt, shorts, hoodie",
    "colour": "black, navy, off-white, burgundy, olive green, light grey, camel, indigo, blush pink, red",
    "detail": "Ribbed crewneck collar, Notched lapel, Button closure at front, Welt pockets, Zip closure, Pleats at waist",
    "finish": "Tonal stitching, Logo patch at chest, Fringed edges, Silver-tone hardware, Raw hem, Fully lined",
}


def photo(random, size):
    """A studio shot: a textured body, with the spectrum of photographs and some grain, on a plain light background."""
    width, height = size
    body = np.full((height, width, 3), 128, dtype=np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = random.integers(0, 256, (cells * height // width + 1, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        body += (np.asarray(layer, dtype=np.float32) - 128) * np.float32(1.2 / np.sqrt(cells))
    body += random.normal(0, 2, (height, width, 1)).astype(np.float32)
    outline = Image.new("L", size)
    ImageDraw.Draw(outline).ellipse((width * 0.15, height * 0.05, width * 0.85, height * 0.95), fill=255)
    background = Image.new("RGB", size, (236, 236, 234))
    return Image.composite(Image.fromarray(body.clip(0, 255).astype(np.uint8)), background, outline)


def caption(random):
    word, other = ({kind: random.choice(words.split(", ")) for kind, words in WORDS.items()} for _ in range(2))
    return (
        f"{word['cut']} {word['fabric']} {word['garment']} in {word['colour']}. {word['detail']}. {other['detail']} and "
        f"cuffs in {other['colour']}. {word['finish']}. Style {random.integers(1e6)}."
    )


def write_shards(folder, count, size, views):
    """Shards with `count` pictures of `size` (width, height), `views` of each product -> their pattern."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"photos.{shard:06d}.tar", "w") as tar:
            for number in range(count * shard // SHARDS, count * (shard + 1) // SHARDS):
                if number % views == 0:
                    text = caption(random)
                encoded = io.BytesIO()
                photo(random, size).save(encoded, "JPEG", quality=95)
                record = {"product_id": str(number // views), "category": "TOPS", "image_name": f"{number}.png"}
                files = {"jpg": encoded.getvalue(), "txt": text.encode(), "json": json.dumps(record).encode()}
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / f"photos.{{000000..{SHARDS - 1:06d}}}.tar")


def kilobytes(folder, count):
    return sum(path.stat().st_size for path in folder.iterdir()) / count / 1024


def make_contender(name, pattern, count, workers, reduced):
    """A function without arguments that runs an epoch: what it yields is (images, tokens) as the model would get them."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    config = PreprocessCfg(size=SIZE)
    preprocess = image_transform_v2(config, is_train=True)
    if name == PLAIN:
        return plain_recipe(pattern, preprocess, tokenizer, workers)
    if name == PEER:
        return open_clip_train_loader(pattern, count, preprocess, tokenizer, workers)
    from clip_finetuning.model import preprocessing
    from clip_finetuning.model.preprocessing import ImageTransform, normalize
    from dBManagement import train_loader

    if name == CEILING:
        return decode_and_resize(pattern)
    if name == BY_PIL:
        preprocessing.simplejpeg = None

    transform = ImageTransform(SIZE, train=True, reduced_decode=reduced)
    loader = train_loader(pattern, transform, tokenizer, batch_size=BATCH_SIZE, num_workers=workers)
    if name == FLOAT:
        return lambda: ((normalize(batch.images, config.mean, config.std), batch.tokens) for batch in loader)
    return lambda: ((batch.images, batch.tokens) for batch in loader)


def plain_recipe(pattern, preprocess, tokenizer, workers):
    import torch
    import webdataset as wds

    dataset = wds.WebDataset(pattern, shardshuffle=SHARDS)  # pyright: ignore[reportAttributeAccessIssue]  found lazily
    dataset = dataset.shuffle(1000).decode("pil").to_tuple("jpg", "txt")
    dataset = dataset.map_tuple(preprocess, str)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    return lambda: ((images, tokenizer(list(captions))) for images, captions in loader)


def open_clip_train_loader(pattern, count, preprocess, tokenizer, workers):
    from open_clip_train.data import get_wds_dataset

    arguments = types.SimpleNamespace(
        train_data=pattern,
        train_num_samples=count,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH_SIZE,
        workers=workers,
        world_size=1,
    )
    data = get_wds_dataset(arguments, preprocess, is_train=True, tokenizer=tokenizer)
    return lambda: data.dataloader


def decode_and_resize(pattern):
    import torch

    from clip_finetuning.loading.shard_list import expand_pattern
    from clip_finetuning.loading.tar_index import TarIndex
    from clip_finetuning.model.preprocessing import decode

    index = TarIndex(expand_pattern(pattern))
    encoded = [index.read(i)["jpg"] for i in range(len(index))]

    def epoch():
        for data in encoded:
            picture = torch.from_numpy(decode(data)).permute(2, 0, 1)[None]
            torch.nn.functional.interpolate(picture, (SIZE, SIZE), mode="bicubic", antialias=True)
            yield picture, None

    return epoch


def contend(arguments):
    """A contender's process: for each line on standard input it runs an epoch and prints images a second."""
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    epoch = make_contender(*arguments)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        images = sum(len(images) for images, _ in epoch())
        print(images / (time.perf_counter() - start), flush=True)


class Contender:
    def __init__(self, name, pattern, count, workers, reduced=False, packages=None):
        command = [sys.executable, __file__, "--contender", json.dumps([name, pattern, count, workers, reduced])]
        paths = [str(packages)] if packages else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        self.rates = []
        self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a contender ended early; its message is above")
        return line

    def run(self, keep=True):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        rate = float(self._read())
        if keep:
            self.rates.append(rate)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(title, names, pattern, count, workers, options, reduced=False):
    """Let the contenders take turns; print images a second and ratios; return name -> median."""
    contenders = {}
    for name in names:
        packages = options.peer_packages.resolve() if name == PEER else None
        contenders[name] = Contender(name, pattern, count, workers, reduced, packages)
    for contender in contenders.values():
        contender.run(keep=False)
    for _ in range(options.rounds):
        for contender in contenders.values():
            contender.run()
    medians = {name: statistics.median(contender.rates) for name, contender in contenders.items()}
    print(f"\n{title}")
    for name, contender in contenders.items():
        spread = f"{min(contender.rates):,.0f} to {max(contender.rates):,.0f}"
        ratio = f"ours is {medians[OURS] / medians[name]:.2f}x" if name != OURS else ""
        print(f"  {name:<16} {medians[name]:8,.0f} images/s  ({spread:>16})  {ratio}", flush=True)
        contender.close()
    if BY_PIL in medians:
        ratios = [f"{medians[BY_PIL] / medians[name]:.2f}x the {name}" for name in (PLAIN, PEER) if name in medians]
        print(f"  with PIL decode: {', '.join(ratios)}")
    return medians


# ------------------------------------------------------------------------------------------------------------ the start


def write_many_names(folder, samples):
    """One shard of 1,000 samples under `samples` / 1,000 names, and an index of each -> their pattern."""
    from clip_finetuning.loading import kept_index, tar_contents, tar_index
    from clip_finetuning.loading.sample import USUAL

    write_shards(folder, 1000 * SHARDS, (64, 64), views=4)
    names = [folder / f"many.{number:06d}.tar" for number in range(samples // 1000)]
    for name in names:
        os.link(folder / "photos.000000.tar", name)
    contents = tar_contents.read_contents(str(names[0]))
    random = np.random.default_rng(0)
    ids = np.repeat(random.integers(-(2**63), 2**63 - 1, samples // 4), 4).reshape(len(names), -1)
    for name, products in zip(names, ids):
        columns = contents.columns._replace(products=products)
        (folder / ".index").mkdir(exist_ok=True)  # without `save`, which flushes each file to the disk
        data = kept_index.encode(contents._replace(columns=columns), tar_index.rules_of(USUAL))
        next(kept_index.places(str(name))).write_bytes(data)
    return str(folder / f"many.{{000000..{len(names) - 1:06d}}}.tar")


def start_once(pattern, workers):
    """In a process of its own: print seconds to the loader, seconds to its first batch, and the largest memory in MB."""
    sys.path.insert(0, str(ROOT))
    import resource

    import open_clip

    from clip_finetuning.model.preprocessing import ImageTransform
    from dBManagement import train_loader

    transform, tokenizer = ImageTransform(SIZE, train=True), open_clip.get_tokenizer("ViT-B-32")
    begin = time.perf_counter()
    loader = train_loader(pattern, transform, tokenizer, batch_size=BATCH_SIZE, num_workers=workers)
    made = time.perf_counter() - begin
    next(iter(loader))
    first = time.perf_counter() - begin
    loader.close()
    memory = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps([made, first, *memory]))


def compare_starts(samples, workers):
    """Print how soon a training of so many samples begins."""
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        pattern = write_many_names(Path(folder, "many"), samples)
        for kept in ("with a kept index", "without one"):
            if kept == "without one":
                if samples > 260_000:
                    break
                shutil.rmtree(Path(folder, "many", ".index"))
            command = [sys.executable, __file__, "--starter", json.dumps([pattern, workers])]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            made, first, mine, workers_memory = json.loads(printed.splitlines()[-1])
            print(
                f"{samples:,} samples, {workers} workers, {kept}: loader {made:.2f} s, first batch {first:.2f} s; "
                f"{mine:,.0f} MB, a worker {workers_memory:,.0f} MB",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-packages", type=Path, help="folder with webdataset 0.2.86, see above")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender [7]")
    parser.add_argument("--samples", type=int, default=1024, help="256-pixel pictures [1024]")
    parser.add_argument("--photos", type=int, default=128, help="large photos [128]")
    parser.add_argument("--workers", type=int, default=2, help="workers of the second comparison [2]")
    parser.add_argument("--start", type=int, nargs="+", metavar="N", help="time the start with N samples instead")
    parser.add_argument("--starter", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--contender", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contend(options.contender)
        return
    if options.starter:
        start_once(*options.starter)
        return
    if options.start:
        for samples in options.start:
            compare_starts(samples, options.workers)
        return
    names = [OURS, PLAIN] + ([PEER] if options.peer_packages else [])
    with tempfile.TemporaryDirectory() as folder:
        count = options.samples // BATCH_SIZE * BATCH_SIZE
        pattern = write_shards(Path(folder, "small"), count, (256, 256), views=4)
        size = kilobytes(Path(folder, "small"), count)
        print(f"{count} pictures of 256x256, {size:.0f} KB each; {os.cpu_count()} cores; {options.rounds} rounds")
        alone = compare("0 workers", [*names, BY_PIL, FLOAT, CEILING], pattern, count, 0, options)
        print(f"  {alone[OURS] / alone[CEILING]:.0%} of the ceiling")
        compare(f"{options.workers} workers", [*names, BY_PIL, FLOAT], pattern, count, options.workers, options)
        photos = options.photos // BATCH_SIZE * BATCH_SIZE
        pattern = write_shards(Path(folder, "large"), photos, (1000, 1300), views=1)
        size = kilobytes(Path(folder, "large"), photos)
        compare(
            f"{photos} photos of 1000x1300, {size:.0f} KB each, 0 workers",
            [*names, BY_PIL],
            pattern,
            photos,
            0,
            options,
        )
        compare("the same, ours with reduced_decode", names[:2], pattern, photos, 0, options, reduced=True)
    if not options.peer_packages:
        print("\nNot compared with open_clip_train: see --help for how to install what it needs.")


if __name__ == "__main__":
    main()
