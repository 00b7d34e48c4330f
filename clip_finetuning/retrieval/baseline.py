"""Whether the results to compare with fit what is about to be measured: known from the texts of the shards alone."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from clip_finetuning.retrieval import comparability
from clip_finetuning.retrieval.embeddings import fingerprint_of
from clip_finetuning.retrieval.names import DIRECTIONS_OF, OF_CATEGORIES, QUERIES_OF, VERSIONS
from clip_finetuning.runtime.text import caption_numbers


def check(
    baseline: dict[str, Any],
    name: str,
    protocols: Sequence[str],
    keys: Sequence[str] | None,
    products: Sequence[str] = (),
    captions: Sequence[str] = (),
    judged: bool = False,
) -> None:
    """ValueError if results that are to be called `name` cannot be compared with a baseline.

    keys, products, captions: (N,) of the samples that will be measured, in their order; no keys where nobody has read
    them. Which pictures cannot be decoded shows only later: with some lost before, what is left is compared by products.
    `judged`: whether judgements of people will be used; which ones, `comparability.check` finds out afterwards.
    """
    coming: dict[str, Any] = {
        "name": name,
        "protocols": {protocol: {"version": VERSIONS[protocol]} for protocol in protocols},
    }
    if judged:
        coming["judgements"] = baseline.get("judgements", {"fingerprint": "of people"})
    coming["data"] = baseline["data"] if keys is None else {"fingerprint": fingerprint_of(keys, products, captions)}
    if keys is None:
        coming["num_captions"] = baseline.get("num_captions")
    else:
        coming["num_captions"] = len(caption_numbers(captions)[1])
        if _is_part(baseline, Counter(products)):
            coming |= {"data": baseline["data"], "num_captions": baseline.get("num_captions")}
    comparability.check(baseline, coming)


def _is_part(baseline, products):
    """Whether a baseline may be of these samples but for those that it lost: its products are all here, with as many samples."""
    missing = products.total() - baseline.get("num_samples", 0)
    skipped = baseline["data"].get("skipped")  # none: embeddings, which do not say what they lack
    lost = missing if skipped is None else sum(skipped.values())
    if not 0 < missing <= lost:
        return False
    of_products = [name for name in baseline["protocols"] if QUERIES_OF.get(name) != OF_CATEGORIES]
    if not of_products:
        return False
    table = baseline["protocols"][of_products[0]][DIRECTIONS_OF[of_products[0]][-1]]["by_product"]
    return all(products[product] >= queries for product, queries in zip(table["product"], table["queries"]))
