"""An export is proved on the spot: the folder as its user loads it, against the model that it came from.

Equal pixels and equal texts must give equal embeddings; that is the form's arithmetic. Then the same pictures in every
shape that a shop has go through the form's own preprocessing: what that changes is measured and told. At last
`preprocess.py` must be right on all of them.
"""

import importlib.util
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from clip_finetuning.export import pictures as kinds
from clip_finetuning.export.form import Loaded
from clip_finetuning.export.names import PREPARED_COSINE, SAME_COSINE
from clip_finetuning.loading.sample import ShardSample
from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval import metrics, protocols, ranking
from clip_finetuning.retrieval.embed import embed_rows
from clip_finetuning.retrieval.embeddings import Embeddings, texts
from clip_finetuning.runtime.text import printable

BATCH = 32
K = 10
SPOILED_EACH = 8  # captions that are spoiled in each way; the ways matter, not the captions
# Captions as feeds, spreadsheets and web pages spoil them; a tokenizer alone does not undo what open_clip's does.
SPOILED: dict[str, Callable[[str], str]] = {
    "typographic quotes": lambda caption: f"“{caption}” – women’s",
    "HTML entities": lambda caption: f"{caption} &amp; co. &quot;new&quot; caf&eacute;",
    "wrongly decoded UTF-8": lambda caption: f"{caption} cafÃ© naÃ¯ve",
    "capitals and blanks": lambda caption: f"  {caption.upper()} \t X\u00a0L\n",
    "punctuation": lambda caption: f"{caption}: 50%_off! (no. 7-b)",
    "accents and signs": lambda caption: f"{caption} cafe\u0301 ﬁne ｆｕｌｌ №1 ½ 靴 👟",
    "longer than the context": lambda caption: " ".join([caption] * 40),
    "empty": lambda caption: "",
}


class CheckFailed(ValueError):
    """An export that is not the model it was made of."""


class Kind(NamedTuple):
    """What a form's own preprocessing makes of one kind of picture."""

    name: str
    count: int
    recall: float  # of the original
    own: "Skew | None"  # None where the form's own preprocessing fails
    failure: str
    prepared: "Skew"


class Skew(NamedTuple):
    """How far embeddings are from the original's."""

    mean: float  # cosine
    least: float
    recall: float


@dataclass(frozen=True)
class Report:
    """What a check found."""

    pictures: float  # largest difference of embeddings of equal pixels
    captions: float  # the same of equal texts
    kinds: list[Kind]
    own_kinds: Counter[str]  # {kind: pictures of the catalogue that are of it by themselves}
    misread: list[str]  # how captions are spoiled that the form's own tokenizer reads otherwise
    recall: tuple[float, float]  # Recall@10 of the original and of the folder, on the catalogue's pictures
    least: float  # least cosine of equal pixels and texts

    @property
    def skewed(self) -> list[str]:
        """Kinds of pictures on which the form's own preprocessing is not the trained one."""
        return [kind.name for kind in self.kinds if kind.own is None or kind.own.least < SAME_COSINE]

    @property
    def made(self) -> str:
        """Where the pictures of each kind come from, in a sentence."""
        special = {kind: count for kind, count in self.own_kinds.items() if kind != kinds.PLAIN}
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(special.items())) or "none"
        return f"Every kind is made of the catalogue's {sum(self.own_kinds.values())}; of such kinds by themselves: {found}."


class Original:
    """The model that was exported, with the embeddings of the samples in all shapes."""

    def __init__(self, clip_model: ClipModel, samples: Sequence[ShardSample]) -> None:
        self.clip_model, self.samples = clip_model, list(samples)
        self.shapes = [kinds.variants(sample.picture, number) for number, sample in enumerate(samples)]
        transform = clip.image_transform(clip_model, train=False)
        self.pixels = {kind: torch.stack([transform(row[kind]) for row in self.shapes]) for kind in self.shapes[0]}
        self.images = {kind: self._encode(clip.encode_images, rows) for kind, rows in self.pixels.items()}
        self.captions = [sample.captions[0] for sample in samples]
        self.text = self.encode_captions(self.captions)

    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        return self._encode(clip.encode_texts, self.clip_model.tokenizer(list(captions)))

    def _encode(self, encode: Callable[..., torch.Tensor], rows: torch.Tensor) -> np.ndarray:
        parts = [embed_rows(self.clip_model, encode, part, "fp32") for part in rows.split(BATCH)]
        if any(len(part.broken) for part in parts):
            raise ValueError("the model gives some pictures or captions no finite embedding; it is not worth an export")
        return np.concatenate([part.embeddings for part in parts])

    def recall(self, images: np.ndarray, text: np.ndarray, chosen: Sequence[int]) -> float:
        """Mean Recall@10 of both directions among some of the samples, product protocol."""
        rows = np.array(chosen)
        products = texts(self.samples[i].product_id for i in chosen)
        blank = texts("" for _ in chosen)
        embeddings = Embeddings(
            image_embeddings=images[rows],
            text_embeddings=text[rows],
            image_product=products,
            text_product=products,
            image_key=texts(self.samples[i].key for i in chosen),
            captions=texts(self.captions[i] for i in chosen),
            category=blank,
            subcategory=blank,
            image_text=np.arange(len(chosen)),
        )
        found = []
        for task in protocols.tasks(embeddings, "product").values():
            ranks = ranking.rank_positives(task.queries, task.gallery, task.positives)
            found.append(metrics.summarize(ranks, [K])[f"recall@{K}"])
        return float(np.mean(found))


def read_preprocess(path: Path) -> Any:
    """The module of a folder's preprocess.py, as its user imports it."""
    spec = importlib.util.spec_from_file_location("exported_preprocess", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(form: Any, folder: Path, name: str, *suffix: str) -> Loaded:
    """The folder as its user loads it; raises CheckFailed if that is not possible."""
    try:
        return form.load(folder, *suffix)
    except MemoryError:
        raise
    except Exception as error:  # each library has its own ways
        reason = printable(str(error).split("\n")[0])[:200] or type(error).__name__
        raise CheckFailed(f"the check failed: --form {name} cannot be loaded ({reason}); nothing is written") from error


def check(original: Original, loaded: Loaded, preprocess: Any, limit: float | None, least: float = 0.0) -> Report:
    """Measure a folder; raises CheckFailed if it is further from the original than allowed.

    `limit` is the largest difference of a component, None for none; `least` the mean cosine that has to be kept.
    """
    everything = range(len(original.samples))
    alone = original.pixels[kinds.CATALOGUE][:1]  # a batch of another size
    equal = np.concatenate([_encode(loaded, map(_picture, rows)) for rows in [*original.pixels.values(), alone]])
    images = np.concatenate([*original.images.values(), original.images[kinds.CATALOGUE][:1]])
    clean = getattr(preprocess, "clean", str)
    spoiled = {how: [spoil(caption) for caption in original.captions[:SPOILED_EACH]] for how, spoil in SPOILED.items()}
    words = {"as they are": original.captions, "one alone": original.captions[:1], **spoiled}
    references = {how: original.encode_captions(captions) for how, captions in words.items()}
    cleaned = {how: _texts(loaded, [clean(caption) for caption in captions]) for how, captions in words.items()}
    difference = float(np.abs(equal - images).max())
    of_texts = max(float(np.abs(cleaned[how] - references[how]).max()) for how in words)
    cosines = np.concatenate([_cosines(equal, images), *(_cosines(cleaned[how], references[how]) for how in words)])
    _demand(difference, of_texts, cosines, limit, least)
    own_kinds = [kinds.kind_of(sample.picture) for sample in original.samples]
    found = [_kind(original, loaded, preprocess.prepare, *part) for part in _kinds(original, own_kinds)]
    _demand_prepared(found, limit)
    recalls = (
        original.recall(original.images[kinds.CATALOGUE], original.text, everything),
        original.recall(equal[: len(original.samples)], cleaned["as they are"], everything),
    )
    uncleaned = {how: _texts(loaded, captions) for how, captions in spoiled.items()}
    misread = [how for how in spoiled if np.abs(uncleaned[how] - references[how]).max() > (limit or 1 - least)]
    return Report(difference, of_texts, found, Counter(own_kinds), misread, recalls, float(cosines.min()))


def _demand(pictures: float, captions: float, cosines: np.ndarray, limit: float | None, least: float) -> None:
    if not np.isfinite([pictures, captions]).all():
        raise CheckFailed("the check failed: the export gives embeddings that are not finite")
    for what, difference in (("pixels", pictures), ("texts", captions)):
        if limit is not None and difference > limit:
            raise CheckFailed(
                f"the check failed: equal {what} give embeddings that differ by up to {difference:.2g}, more than "
                f"{limit:g}; nothing is written"
            )
    if cosines.mean() < least:
        raise CheckFailed(
            f"the check failed: the embeddings keep a cosine of {cosines.mean():.3f} on the average, less than {least}; "
            "nothing is written"
        )


def _demand_prepared(found: list[Kind], limit: float | None) -> None:
    for kind in found:
        if limit is not None and kind.prepared.least < PREPARED_COSINE:
            raise CheckFailed(
                f"the check failed: preprocess.py keeps a cosine of only {kind.prepared.least:.4f} on pictures that are "
                f"{kind.name}; nothing is written"
            )


def _kinds(original: Original, own: list[str]) -> list[tuple[str, str, list[int]]]:
    """[(name, shape, numbers of samples)]: all shapes, and of the catalogue's pictures each kind that is among them."""
    parts = [(kind, kind, list(range(len(own)))) for kind in original.shapes[0]]
    special = sorted({kind for kind in own if kind != kinds.PLAIN})
    for kind in special:
        parts.append((f"{kinds.CATALOGUE}, {kind}", kinds.CATALOGUE, [i for i, k in enumerate(own) if k == kind]))
    return parts


def _kind(original, loaded, prepare, name: str, shape: str, chosen: list[int]) -> Kind:
    reference = original.images[shape]
    encoded = [original.shapes[i][shape] for i in chosen]
    own, failure = None, ""
    try:
        own = _skew(original, reference, chosen, _encode(loaded, map(_opened, encoded)))
    except Exception as error:  # whatever the form's preprocessing makes of such a picture
        failure = printable(str(error).split("\n")[0])[:80] or type(error).__name__
    prepared = _skew(original, reference, chosen, _encode(loaded, (prepare(io.BytesIO(data)) for data in encoded)))
    return Kind(name, len(chosen), original.recall(reference, original.text, chosen), own, failure, prepared)


def _skew(original: Original, reference: np.ndarray, chosen: list[int], embeddings: np.ndarray) -> Skew:
    cosines = _cosines(embeddings, reference[chosen])
    images = reference.copy()
    images[chosen] = embeddings
    return Skew(float(cosines.mean()), float(cosines.min()), original.recall(images, original.text, chosen))


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum((a * b).sum(1), 1.0)


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _picture(pixels: torch.Tensor) -> Image.Image:
    """(3, H, W) uint8 -> a picture of exactly these pixels."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _encode(loaded: Loaded, pictures: Any) -> np.ndarray:
    pictures = list(pictures)
    parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    return np.concatenate([loaded.encode_pictures(part) for part in parts])


def _texts(loaded: Loaded, captions: list[str]) -> np.ndarray:
    parts = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
    return np.concatenate([loaded.encode_captions(part) for part in parts])
