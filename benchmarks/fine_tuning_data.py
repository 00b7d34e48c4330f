"""What `fine_tuning.py` trains and measures on: domains as shards, kept batches, and pools of unseen products."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 128
THIRD = 3  # the near pair's new drawings: of every third product
SOME_GARMENTS = 300  # products that are part of the near pair's general world
# name: (the general world, in which a start is trained, the new domain, their pools of unseen products)
PAIRS = {
    "far: emoji -> garments": ("emoji", "garments", "emoji_unseen", "garments_unseen"),
    "far: garments -> emoji": ("garments", "emoji", "garments_unseen", "emoji_unseen"),
    "near: one vendor's drawings -> the other's": ("google", "twitter", "google_unseen", "twitter_unseen"),
    "trained elsewhere: EfficientNet, emoji -> garments": ("emoji", "garments", "emoji_unseen", "garments_unseen"),
}


def prepare(folder: Path, emoji_raw: Path, pixels: int) -> None:
    """Shards of every domain below a folder, from the emoji catalogue and the demo's garments; made once."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    garments_raw = folder / "garments_raw"
    _script("demo/draw_catalogue.py", garments_raw, "--train-products", 1200, "--valid-products", 240)
    rows = {}
    for name, raw in (("emoji", emoji_raw), ("garments", garments_raw)):
        _script("clip_prep.py", "--split", "all", "--data-dir", raw, "--output", folder / (name + "_{split}.json"))
        for split in ("train", "valid"):
            rows[name, split] = json.loads((folder / f"{name}_{split}.json").read_text(encoding="utf-8"))
    some = {row["product_id"]: None for row in rows["garments", "train"]}
    garments = [r for r in rows["garments", "train"] if r["product_id"] in list(some)[:SOME_GARMENTS]]
    thirds = {
        product: number for number, product in enumerate(sorted({r["product_id"] for r in rows["emoji", "train"]}))
    }
    google, twitter = ({split: [r for r in rows["emoji", split] if r["image_name"].endswith(end)] for split in ("train", "valid")}
                       for end in ("_0.png", "_1.png"))  # fmt: skip
    domains = {
        "emoji": rows["emoji", "train"],
        "emoji_unseen": rows["emoji", "valid"],
        "garments": rows["garments", "train"],
        "garments_unseen": rows["garments", "valid"],
        "google": google["train"] + garments,
        "google_unseen": google["valid"],
        "twitter": [r for r in twitter["train"] if thirds[r["product_id"]] % THIRD == 0],
        "twitter_unseen": twitter["valid"],
    }
    for name, domain in domains.items():
        (folder / f"{name}.json").write_text(json.dumps(domain), encoding="utf-8")
        _script(
            "create_webdataset.py", "--json", folder / f"{name}.json", "--output-dir", folder / "shards" / name,
            "--dataset-name", name, "--image-size", pixels, "--shard-size", 100_000,
        )  # fmt: skip
    (folder / "done").touch()


def shard(folder: Path, domain: str) -> str:
    """The pattern of a domain's shards."""
    return str(folder / "shards" / domain / (domain + ".000000.tar"))


def _script(path, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / path), *map(str, arguments)], cwd=ROOT, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(f"{path} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


# ------------------------------------------------------------------------------------------------------- batches


@dataclass
class Kept:
    """A training batch on the device, as `train_step` takes it."""

    images: torch.Tensor  # uint8 (B, 3, H, W)
    tokens: torch.Tensor  # int64 (B, L)
    identities: torch.Tensor  # int64 (B, 1 + C)


def batches(pattern: str, clip_model: Any, count: int, seed: int, workers: int, **image: Any) -> list[Kept]:
    """The first `count` batches of a training on some shards: decoded and cropped once, seen alike by every contender."""
    import dBManagement
    import openClipManagement as clip

    transform = clip.image_transform(clip_model, train=True, **image)
    loader = dBManagement.train_loader(
        pattern, transform, clip_model.tokenizer, batch_size=BATCH_SIZE, seed=seed, num_workers=workers
    )
    kept, device = [], clip_model.device
    while len(kept) < count:
        for batch in loader:
            kept.append(Kept(*(t.to(device) for t in (batch.images, batch.tokens, batch.identities))))
            if len(kept) == count:
                break
    loader.close()
    return kept


def shuffled(kept: list[Kept], seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same samples in an ordinary shuffle, where views of a product may meet in a batch -> (images, tokens) each."""
    images, tokens = torch.cat([b.images for b in kept]), torch.cat([b.tokens for b in kept])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images))).to(images.device)
    return [(images[part], tokens[part]) for part in order.split(BATCH_SIZE)]


# --------------------------------------------------------------------------------------------------------- pools


class Pool:
    """Unseen products of a domain on the device, and Recall@10 of a model there (product protocol, mean of both directions)."""

    def __init__(self, pattern: str, clip_model: Any):
        import dBManagement
        import openClipManagement as clip
        from clip_finetuning.retrieval.embeddings import Embeddings, texts
        from clip_finetuning.retrieval.protocols import tasks

        transform = clip.image_transform(clip_model, train=False)
        loader = dBManagement.eval_loader(pattern, transform, clip_model.tokenizer, batch_size=256, num_workers=0)
        found = list(loader)
        rows = [row for b in found for row in zip(b.keys, b.product_ids, b.captions, b.categories, b.subcategories)]
        keys, products, captions, categories, subcategories = zip(*rows)
        numbers: dict[tuple[str, str], int] = {}
        image_text = np.array([numbers.setdefault(pair, len(numbers)) for pair in zip(products, captions)])
        blank = np.eye(2, dtype=np.float32)[:1]
        embeddings = Embeddings(
            image_embeddings=np.repeat(blank, len(rows), 0), text_embeddings=np.repeat(blank, len(numbers), 0),
            image_product=texts(products), text_product=texts(product for product, _ in numbers), image_key=texts(keys),
            captions=texts(caption for _, caption in numbers), category=texts(categories),
            subcategory=texts(subcategories), image_text=image_text,
        )  # fmt: skip
        self.tasks = tasks(embeddings, "product")
        device = clip_model.device
        self.images = torch.cat([b.images for b in found]).to(device)
        asked = self.tasks["text_to_image"].query_items
        self.tokens = clip_model.tokenizer([str(embeddings.captions[text]) for text in asked]).to(device)

    def recall(self, clip_model: Any, k: int = 10) -> float:
        """Mean Recall@k of both directions, every image against every distinct caption of the pool."""
        import openClipManagement as clip
        from clip_finetuning.retrieval.ranking import NEVER, rank_positives

        clip_model.model.eval()
        with torch.inference_mode():
            images = torch.cat([clip.encode_images(clip_model, part) for part in self.images.split(512)]).cpu().numpy()
            texts = torch.cat([clip.encode_texts(clip_model, part) for part in self.tokens.split(512)]).cpu().numpy()
        rows = {"text_to_image": (texts, images), "image_to_text": (images, texts)}
        hits = []
        for direction, (queries, gallery) in rows.items():
            best = rank_positives(queries, gallery, self.tasks[direction].positives).best
            hits.append(float((best[best != NEVER] <= k).mean()))
        return sum(hits) / 2
