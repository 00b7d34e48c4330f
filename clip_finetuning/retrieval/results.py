"""What is measured of a model, as its result file holds it: the protocols' numbers, and what one should know of them."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from clip_finetuning.model.clip_model import ClipModel
from clip_finetuning.retrieval import between_images, citation, names, power, protocols, query_texts
from clip_finetuning.retrieval.embed import Loader, NothingFinite, embed
from clip_finetuning.retrieval.embeddings import Embeddings, unlike_captions
from clip_finetuning.retrieval.names import DIRECTIONS, DIRECTIONS_OF, KS, QUERIES_OF
from clip_finetuning.retrieval.query_texts import NothingToAsk, QueryTexts
from clip_finetuning.retrieval.ranking import Ranks
from clip_finetuning.retrieval.sampled101 import Candidates, draw_candidates
from clip_finetuning.retrieval.truth import Truth
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
    truth: Truth | None = None,
    queries: Mapping[str, QueryTexts] | None = None,
    kept: dict[str, Ranks] | None = None,
    device: torch.device | None = None,
    shared: bool = False,
) -> dict[str, Any]:
    """Results of the protocols; the first one's recalls stand at the top level too. Those that the data cannot be asked are
    named in `not_measured`; if that is so of all, NothingToAsk is raised.

    `truth` says what else than the items of one product may count as right; `queries`: the texts of those that do not ask
    the captions; `kept` is that of `protocols.evaluate`. `shared`: all processes of a run call this, and each ranks its
    part of the queries on its device; rank 0 alone has results, the others {}.
    """
    if "sampled101" in protocol_names:
        candidates = candidates or draw_candidates(embeddings, seed)
    work = partial(protocols.evaluate, truth=truth, queries=queries, kept=kept, device=device, shared=shared)
    evaluated, not_measured = {}, {}
    for name in protocol_names:
        try:
            evaluated[name] = work(embeddings, name, ks, seed, candidates)
        except NothingToAsk as error:  # what was embedded is not lost for it
            not_measured[name] = str(error)
    if not evaluated:
        raise NothingToAsk("; ".join(not_measured.values()))
    if shared and distributed.rank() > 0:
        return {}
    _cite(evaluated, embeddings, candidates, queries or {})
    headline_name = next(iter(evaluated))
    headline, ways = evaluated[headline_name], DIRECTIONS_OF[headline_name]
    recalls = {f"recall@{k}": {way: headline[way][f"recall@{k}"] for way in ways} for k in ks}
    return {
        "num_samples": len(embeddings.image_key),
        **recalls,
        "protocol": headline_name,
        "cite": headline["cite"],
        "num_products": len(np.unique(embeddings.image_product)),
        "num_captions": len(caption_numbers(embeddings.captions)[1]),
        "ties": "a positive that ties with negatives counts after them; in pair, samples with the same caption share "
        "their expected rank",
        "warnings": warnings_of(embeddings),
        "statistics": {
            "protocol": headline_name,
            "smallest_difference": {way: _smallest_differences(headline[way]) for way in ways},
            "power": power.POWER,
            "correlation": power.CORRELATION,
        },
        **({"judgements": truth.judged.as_result()} if truth and truth.judged else {}),
        "protocols": evaluated,
        **({"not_measured": not_measured} if not_measured else {}),
    }


def _cite(evaluated, embeddings, candidates, queries):
    """Say of each protocol's numbers in which version and on what they are measured."""
    fingerprint = embeddings.fingerprint()
    for name, numbers in evaluated.items():
        if name == "sampled101":
            also = candidates.lists
        elif name in QUERIES_OF:
            also = query_texts.what_decides(name, embeddings, queries)
        else:
            also = between_images.what_decides(name, embeddings)
        numbers |= {"version": names.VERSIONS[name], "cite": citation.line(name, fingerprint, also=also)}


def _smallest_differences(numbers):
    """{recall@k: the smallest difference to another model that this direction's products can show}."""
    table = numbers["by_product"]
    counts = np.array(table["queries"])
    return {key: power.smallest_difference(np.array(table[key]), counts) for key in names.recalls(table)}


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
