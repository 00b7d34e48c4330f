"""What several tests share: drawn pictures, catalogues and shards of them, tiny models, processes.

Torch and the scripts are imported where they are needed, so that a test of one room loads no more than that room.
"""

import contextlib
import html.parser
import io
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------------------- pictures


def encoded_picture(number, size=(40, 48), file_format="JPEG"):
    """A picture that tells its number: a random colour gradient, encoded."""
    random = np.random.default_rng(number)
    corners = Image.fromarray(random.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    corners.resize(size, Image.Resampling.BICUBIC).save(buffer, file_format, quality=95)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that says how large it is, and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# --------------------------------------------------------------------------------------------------------------- shards


def add_file(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_shard(path, samples):
    """`samples`: dicts of file name -> bytes."""
    with tarfile.open(path, "w") as tar:
        for files in samples:
            for name, data in files.items():
                add_file(tar, name, data)


def catalogue_sample(number, product, **fields):
    """The three files of a sample as create_webdataset.py writes them."""
    record = {
        "product_id": f"P{product}",
        "category": "TOPS",
        "subcategory": "KNITS",
        "image_name": f"P{product}_{number}.png",
    }
    return {
        f"{number:09d}.jpg": encoded_picture(number),
        f"{number:09d}.txt": f"Caption of product {product}".encode(),
        f"{number:09d}.json": json.dumps(record | fields).encode(),
    }


# ------------------------------------------------------------------------------------------------- create_webdataset.py


VIEWS = 3


def write_catalogue(folder, products=10, name="clip_dataset_valid", file_format="png"):
    """Pictures and their mapping, `VIEWS` a product -> the path of the JSON."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    entries = []
    for product in range(products):
        for view in range(VIEWS):
            path = folder / "pictures" / f"{product}_{view}.{file_format}"
            corners = np.random.default_rng([product, view]).integers(0, 230, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(corners).resize((32, 40), Image.Resampling.BICUBIC).save(path)
            entries.append(entry(path, product))
    return write_mapping(folder / f"{name}.json", entries)


def entry(path, product, **fields):
    record = {
        "image_path": str(path),
        "image_name": Path(path).name,
        "caption": f"Caption of product {product}",
        "category": "TOPS",
        "product_id": f"P{product}",
    }
    return record | fields


def write_mapping(path, entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def write_shards(mapping, output, *arguments):
    """The script in this process, without progress bars."""
    import create_webdataset

    create_webdataset.main(["--json", str(mapping), "--output-dir", str(output), "--num-workers=0", *arguments])


def run_create(*arguments, code=0, **options):
    """The command -> what it prints on stdout and stderr."""
    command = [sys.executable, ROOT / "create_webdataset.py", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def read_samples(*paths):
    """Key -> {suffix: bytes} of some shards."""
    found = defaultdict(dict)
    for path in sorted(paths):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found[key][suffix] = tar.extractfile(member).read()
    return found


def read_records(*paths):
    return [json.loads(sample["json"]) for sample in read_samples(*paths).values()]


def shards_in(folder):
    return sorted(folder.glob("*.tar"))


def contents(folder):
    """Name -> bytes of every file below a folder, hidden ones too, but for the kept index, which holds the shards' times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != ".index")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -------------------------------------------------------------------------------------------------------------- loaders


SIZE = 16


def tokenizer(captions):
    import torch

    return torch.tensor([[49406, zlib.crc32(caption.encode()), 49407] for caption in captions])


class CountedTransform:
    """A transform that counts its calls over all processes."""

    def __init__(self, transform):
        self.transform = transform
        self.calls = multiprocessing.Value("l", 0)

    def __call__(self, data, seed=None):
        with self.calls.get_lock():
            self.calls.value += 1
        return self.transform(data, seed)


def training(pattern, batch_size=15, **options):
    from clip_finetuning.model.preprocessing import ImageTransform
    from dBManagement import train_loader

    return train_loader(pattern, ImageTransform(SIZE, train=True), tokenizer, batch_size=batch_size, **options)


def evaluation(pattern, batch_size=16, **options):
    from clip_finetuning.model.preprocessing import ImageTransform
    from dBManagement import eval_loader

    return eval_loader(pattern, ImageTransform(SIZE, train=False), tokenizer, batch_size=batch_size, **options)


def epoch(loader, number=0, start=0):
    loader.set_epoch(number, start)
    return list(loader)


def keys(batches):
    return [key for batch in batches for key in batch.keys]


def assert_same(batches, others):
    import torch

    assert len(batches) == len(others)
    for one, other in zip(batches, others):
        assert torch.equal(one.images, other.images) and torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.identities, other.identities)
        assert one[3:-2] == other[3:-2]  # but for what was lost and guessed on the way


# --------------------------------------------------------------------------------------------------------------- models


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_config(folder, name="tiny-test", **changes):
    """Write a config JSON and return its path; `changes` replace top-level entries."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**TINY, **changes}), encoding="utf-8")
    return str(path)


def local_folder(folder, config, preprocess=None):
    """A folder that open_clip reads a model from, but for its weights -> its name for MODEL_NAME."""
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


@contextlib.contextmanager
def tiny_siglip_tower(name="test_tiny_siglip", act="gelu_tanh"):
    """Within the context timm knows a SigLIP tower small enough for a test -> (vision_cfg, text_cfg) that name it."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    def build(pretrained=False, **options):
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
        sizes |= {"class_token": False, "global_pool": "map", "act_layer": act}
        return VisionTransformer(**sizes, **{k: v for k, v in options.items() if k == "num_classes"})

    build.__name__, build.__module__ = name, "timm.models.vision_transformer"
    entrypoints = timm.models._registry._model_entrypoints
    entrypoints[name] = build
    vision = {"image_size": 32, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, "no_causal_mask": True}
    text |= {
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }
    try:
        yield vision, text
    finally:
        del entrypoints[name]


# ----------------------------------------------------------------------------------------------------------- embeddings


def embedded_catalogue(products=6, views=3, dimensions=16, noise=0.0, seed=0, captions=None, subcategories=2):
    """`views` noisy images around one direction a product, whose caption's embedding that direction is."""
    from clip_finetuning.retrieval.embeddings import Embeddings

    random = np.random.default_rng(seed)
    centres = random.normal(size=(products, dimensions))
    images = np.repeat(centres, views, axis=0) + noise * random.normal(size=(products * views, dimensions))
    ids = np.array([f"P{number}" for number in range(products)])
    kinds = np.array([f"kind {number % subcategories}" for number in range(products)])

    def unit(rows):
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return Embeddings(
        image_embeddings=unit(images),
        text_embeddings=unit(centres),
        image_product=np.repeat(ids, views),
        text_product=ids,
        image_key=np.array([f"{number:09d}" for number in range(products * views)]),
        captions=captions or [f"caption of {product}" for product in ids],
        category=np.repeat(np.where(np.arange(products) % 2, "TOPS", "SHOES"), views),
        subcategory=np.repeat(kinds, views),
        image_text=np.repeat(np.arange(products), views),
    )


def overflowing(monkeypatch, encoder, rows_of, only_in_half=True):
    """Let some rows of `encode_images` or `encode_texts` overflow, under autocast alone or always."""
    import torch

    from clip_finetuning.model import clip_model

    encode = getattr(clip_model, encoder)

    def broken(model, rows):
        embeddings = encode(model, rows)
        if torch.is_autocast_enabled("cpu") or not only_in_half:
            embeddings[rows_of(rows)] = torch.nan
        return embeddings

    monkeypatch.setattr(clip_model, encoder, broken)


# ---------------------------------------------------------------------------------------------------------------- pages


class Element:
    """An element of an HTML page: its tag, its attributes, and what lies within."""

    def __init__(self, tag, attributes=()):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    @property
    def classes(self):
        return set(self.attributes.get("class", "").split())

    @property
    def text(self):
        """All text within, blanks and line breaks as one blank."""
        within = [child.text if isinstance(child, Element) else child for child in self.children]
        return " ".join(" ".join(within).split())

    def find(self, tag=None, name=None):
        """All elements within of this tag and this class, in the order of the page."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in (None, child.tag) and (name is None or name in child.classes):
                    found.append(child)
                found += child.find(tag, name)
        return found


def parsed_page(page):
    """The root Element of an HTML page; fails if an element is closed that is not open, or stays open."""

    class Parser(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = [Element("page")]

        def handle_starttag(self, tag, attributes):
            element = Element(tag, attributes)
            self.open[-1].children.append(element)
            if tag not in ("meta", "img", "br", "link", "input", "hr"):
                self.open.append(element)

        def handle_endtag(self, tag):
            assert self.open.pop().tag == tag

        def handle_data(self, data):
            self.open[-1].children.append(data)

    parser = Parser()
    parser.feed(page)
    assert [element.tag for element in parser.open] == ["page"]
    return parser.open[0]


# ------------------------------------------------------------------------------------------------------------ processes


def launch(worker, job, *arguments, processes=2, restarts=0):
    """Run `worker job arguments` in several processes under torchrun -> the finished launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    command += [f"--max-restarts={restarts}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(worker), job, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def read_table(folder, name, data, columns=None, **options):
    """(rows, {reason: names of the skipped}, remarks) of a table of text or bytes, written beside a picture 1.jpg."""
    from clip_finetuning.catalogue.rows import Row
    from clip_finetuning.catalogue.table import Columns, open_table

    (folder / "1.jpg").touch()
    if data is not None:  # else it is there
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    source = open_table(folder / name, columns or Columns("photo", ("text",), product="id"), folder, **options)
    read = list(source.rows)
    skipped = {}
    for row in read:
        if not isinstance(row, Row):
            skipped.setdefault(row.reason, []).append(row.name)
    return [row for row in read if isinstance(row, Row)], skipped, source.remarks()
