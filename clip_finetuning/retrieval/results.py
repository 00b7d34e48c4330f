"""What is measured of a model, as its result file holds it: the protocols' numbers, and what one should know of them."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval import comparison, protocols
from clip_finetuning.retrieval.embed import Loader, NothingFinite, embed
from clip_finetuning.retrieval.embeddings import Embeddings, unlike_captions
from clip_finetuning.retrieval.names import DIRECTIONS, KS
from clip_finetuning.retrieval.sampled101 import Candidates
from clip_finetuning.runtime import distributed
from clip_finetuning.runtime.accounting import majority_warning
from clip_finetuning.runtime.text import caption_numbers

log = logging.getLogger(__name__)


def measure(
    clip_model: ClipModel,
    loader: Loader,
    precision: str,
    seed: int = 0,
    wished: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """The headline numbers of a model on a loader's samples, as in the result file; the trainer calls this.

    All rank, rank 0 makes the numbers and all have them: what follows from a score, such as an end of the training, is one decision.
    A model that gives no sample a finite embedding finds nothing: it scores 0 and ends no training. `wished` is that of
    `embed`.
    """
    try:
        embeddings, counts = embed(clip_model, loader, precision, wished=wished)
    except NothingFinite as error:  # on every rank alike
        log.warning("every recall counts as 0: %s", error)
        nothing = dict.fromkeys(DIRECTIONS, 0.0)
        return {"num_samples": 0, **{f"recall@{k}": dict(nothing) for k in KS}, **error.counts}
    mine = measure_embeddings(embeddings, ["product"], KS, seed, device=clip_model.device, shared=True)
    results = distributed.agree(mine) | counts
    for warning in results["warnings"]:
        _warn_once(warning)
    return results


@functools.cache
def _warn_once(warning):
    log.warning("%s", warning)


def measure_embeddings(
    embeddings: Embeddings,
    protocol_names: Sequence[str],
    ks: Sequence[int],
    seed: int = 0,
    candidates: Candidates | None = None,
    device: torch.device | None = None,
    shared: bool = False,
) -> dict[str, Any]:
    """Results of the protocols; the first one's recalls stand at the top level too.

    `shared`: all processes of a run call this, and each ranks its part of the queries on its device; rank 0 alone has
    results, the others {}.
    """
    evaluated = {
        name: protocols.evaluate(embeddings, name, ks, seed, candidates, device, shared) for name in protocol_names
    }
    if shared and distributed.rank() > 0:
        return {}
    headline = evaluated[protocol_names[0]]
    recalls = {f"recall@{k}": {way: headline[way][f"recall@{k}"] for way in DIRECTIONS} for k in ks}
    return {
        "num_samples": len(embeddings.image_key),
        **recalls,
        "protocol": protocol_names[0],
        "num_products": len(np.unique(embeddings.image_product)),
        "num_captions": len(caption_numbers(embeddings.captions)[1]),
        "rules": comparison.RULES,
        "ties": "a positive that ties with negatives counts after them; in pair, samples with the same caption share "
        "their expected rank",
        "warnings": warnings_of(embeddings),
        "protocols": evaluated,
    }


def warnings_of(embeddings: Embeddings) -> list[str]:
    """What makes the numbers mean something else than one thinks, a sentence each."""
    found = [majority_warning(embeddings.image_product.tolist())]
    unnamed = int((embeddings.image_product == embeddings.captions[embeddings.image_text]).sum())
    if unnamed:
        found.append(f"{unnamed:,} samples name no product: those with equal captions are one product")
    unlike = unlike_captions(embeddings)
    if unlike:
        found.append(
            f"{unlike:,} texts are embedded otherwise than the same caption before them, which stands for both"
        )
    return [warning for warning in found if warning]
