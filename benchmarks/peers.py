"""Others' retrieval metrics behind one call each: (Q, G) scores and which are right -> {our name of the measure: theirs}.

Versions, in an environment of their own or beside ours:

    pip install clip-benchmark==1.6.2 ranx==0.3.21 torchmetrics==1.9.0 scikit-learn "open_clip_torch[training]==3.3.0"
"""

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

KS = (1, 5, 10)
INSTALL = (__doc__ or "").strip().splitlines()[-1].strip()
Numbers = dict[str, float]


def load(name: str) -> Any:
    """A peer's module; one line on how to install what is missing ends the script."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name} cannot be imported ({error}); {INSTALL}")


# ------------------------------------------------------------------------------------------ any scores, any positives


def clip_benchmark(scores: torch.Tensor, right: torch.Tensor) -> Numbers:
    """What CLIP_benchmark's `evaluate` does with its scores: the share of queries with a recall above 0."""
    task = load("clip_benchmark.metrics.zeroshot_retrieval")
    return {
        f"recall@{k}": float((task.batchify(task.recall_at_k, scores, right, 64, "cpu", k=k) > 0).double().mean())
        for k in KS
        if k <= scores.shape[1]
    }


def ranx(scores: torch.Tensor, right: torch.Tensor) -> Numbers:
    """ranx on its own Qrels and Run, which it sorts itself."""
    package = load("ranx")
    names = {"mrr": "mrr", "map": "map", "r-precision": "r_precision"} | {f"hit_rate@{k}": f"recall@{k}" for k in KS}
    names |= {f"ndcg@{k}": f"ndcg@{k}" for k in KS}
    qrels, run = package.Qrels(_listed(right, right)), package.Run(_listed(scores, scores > -torch.inf))
    values = package.evaluate(qrels, run, list(names))
    # It has no mAP@R: that is its mAP of a run that ends after each query's first R items.
    cut = _ranked(scores) < right.sum(1, keepdim=True)
    at_r = package.evaluate(qrels, package.Run(_listed(scores, cut)), "map")
    return {names[name]: float(value) for name, value in values.items()} | {"map_at_r": float(at_r)}


def ranx_sorted(scores: torch.Tensor, right: torch.Tensor) -> Numbers:
    """ranx's quickest way: arrays (Q, G, 2) of items and scores that are sorted already."""
    values = scores.double().numpy()
    items = np.argsort(-values, axis=1)
    run = np.stack([items.astype(float), np.take_along_axis(values, items, 1)], axis=2)
    truth = np.nonzero(right.numpy())[1].reshape(len(values), -1).astype(float)
    qrels = np.stack([truth, np.ones_like(truth)], axis=2)
    names = [*(f"hit_rate@{k}" for k in KS), "mrr", "map", "r-precision", *(f"ndcg@{k}" for k in KS)]
    return load("ranx").evaluate(qrels, run, names)


def ranx_recall(scores: torch.Tensor, right: torch.Tensor) -> tuple[Numbers, Numbers]:
    """ranx's recall@k, the share of a query's positives, and the share of queries where it is above 0."""
    package = load("ranx")
    names = [f"recall@{k}" for k in KS]
    qrels, run = package.Qrels(_listed(right, right)), package.Run(_listed(scores, scores > -torch.inf))
    values = package.evaluate(qrels, run, names, return_mean=False)
    return {n: float(values[n].mean()) for n in names}, {n: float((values[n] > 0).mean()) for n in names}


def _listed(values, chosen):
    """{query: {item: value}} of the chosen ones."""
    listed = {}
    for query, (row, is_chosen) in enumerate(zip(values.double().numpy(), chosen.numpy())):
        items = np.flatnonzero(is_chosen)
        listed[f"q{query}"] = dict(zip(map(str, items.tolist()), row[items].tolist()))
    return listed


def _ranked(scores):
    """(Q, G) the place of each item from 0, equal scores by number."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def torchmetrics(scores: torch.Tensor, right: torch.Tensor) -> Numbers:
    """torchmetrics' classes on the flat lists that they want."""
    module = load("torchmetrics.retrieval")
    made = {f"recall@{k}": module.RetrievalHitRate(top_k=k) for k in KS}
    made |= {"mrr": module.RetrievalMRR(), "map": module.RetrievalMAP(), "r_precision": module.RetrievalRPrecision()}
    made |= {f"ndcg@{k}": module.RetrievalNormalizedDCG(top_k=k) for k in KS}
    query = torch.arange(len(scores))[:, None].expand(scores.shape)
    return {name: float(metric(scores.ravel(), right.ravel(), query.ravel())) for name, metric in made.items()}


def scikit_learn(scores: torch.Tensor, right: torch.Tensor) -> Numbers:
    """scikit-learn's ndcg_score and, a query at a time, average_precision_score."""
    module = load("sklearn.metrics")
    truth, values = right.numpy().astype(int), scores.double().numpy()
    precision = [module.average_precision_score(*rows) for rows in zip(truth, values)]
    return {"map": float(np.mean(precision))} | {f"ndcg@{k}": float(module.ndcg_score(truth, values, k=k)) for k in KS}


ANY_SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor], Numbers]] = {
    "CLIP_benchmark": clip_benchmark,
    "ranx": ranx,
    "torchmetrics": torchmetrics,
    "scikit-learn": scikit_learn,
}


# ------------------------------------------------------------------------------------- from pictures or embeddings on


def get_clip_metrics(images: torch.Tensor, texts: torch.Tensor) -> dict[str, Numbers]:
    """open_clip_train's {direction: numbers} of (N, D) images and their (N, D) texts."""
    values = load("open_clip_train.train").get_clip_metrics(images, texts, torch.tensor(1.0))
    names = {f"R@{k}": f"recall@{k}" for k in KS} | {"mean_rank": "mean_rank"}
    return {
        way: {ours: float(values[f"{way}_{theirs}"]) for theirs, ours in names.items()}
        for way in ("text_to_image", "image_to_text")
    }


class Rows:
    """A model for `evaluate` whose pictures are embeddings, and whose texts are numbers of embeddings."""

    def __init__(self, texts: torch.Tensor) -> None:
        self.texts = texts

    def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows as they are."""
        return rows

    def encode_text(self, numbers: torch.Tensor) -> torch.Tensor:
        """The embeddings of these numbers."""
        return self.texts[numbers]


def evaluate_rows(images: torch.Tensor, texts: torch.Tensor, texts_of: Sequence[Sequence[int]]) -> dict[str, Numbers]:
    """CLIP_benchmark's `evaluate` on embeddings, where each image has the texts of these numbers."""
    return evaluate(Rows(texts), [(images, texts_of)], torch.tensor)


def evaluate(model: Any, batches: Any, tokenizer: Callable) -> dict[str, Numbers]:
    """CLIP_benchmark's `evaluate` of batches of (pictures, texts of each) -> {direction: numbers}."""
    task = load("clip_benchmark.metrics.zeroshot_retrieval")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        values = task.evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=list(KS))
    names = {"text_to_image": "image_retrieval", "image_to_text": "text_retrieval"}
    return {way: {f"recall@{k}": values[f"{name}_recall@{k}"] for k in KS} for way, name in names.items()}


def load_clip(config: Path, weights: Path) -> tuple[Any, Callable, Callable]:
    """(model, preprocessing, tokenizer), as CLIP_benchmark loads them of an OpenCLIP config and a checkpoint."""
    load("open_clip").add_model_config(config)
    model, transform, tokenizer = load("clip_benchmark.models").load_clip(
        "open_clip", config.stem, str(weights), None, "cpu"
    )
    return model.eval(), transform, tokenizer


def batches(folder: str, transform: Callable) -> Any:
    """CLIP_benchmark's loader of a folder of shards, made as its command line makes it."""
    data = load("clip_benchmark.datasets.builder").build_dataset(
        "wds/ours", root=folder, transform=transform, split="test", task="zeroshot_retrieval"
    )
    return torch.utils.data.DataLoader(data.batched(64), batch_size=None, shuffle=False, num_workers=0)


def roles_swapped(model: Any, folder: str, transform: Callable, tokenizer: Callable) -> tuple[Any, Any, Callable]:
    """What `evaluate` takes so that each distinct caption has the pictures that carry it as its "texts".

    A text of CLIP_benchmark's belongs to one picture, while a product's caption belongs to several.
    """
    pictures, views = [], {}
    for rows, captions in batches(folder, transform):
        for row, (caption,) in zip(rows, captions):
            views.setdefault(caption, []).append(len(pictures))
            pictures.append(row)
    stacked = torch.stack(pictures)
    return Swapped(model), [(tokenizer(list(views)), list(views.values()))], lambda numbers: stacked[numbers]


class Swapped:
    """A model whose pictures are texts, and whose texts are pictures."""

    def __init__(self, model: Any) -> None:
        self.encode_image, self.encode_text = model.encode_text, model.encode_image
