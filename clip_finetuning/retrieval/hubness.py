"""Hubness: whether a few items of the gallery are among the first answers again and again, and some products never.

The k-occurrence of an item is how many queries have it among their first k answers. Its skewness over the gallery is that of
Radovanovic, Nanopoulos and Ivanovic (Hubs in Space, JMLR 2010): 0 where all items come up alike, above 1 where there are hubs.
"""

import numpy as np

from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.runtime.text import caption_numbers

FIRST = 10  # answers of a query that are looked at


def of_lists(lists: np.ndarray, embeddings: Embeddings, direction: str) -> dict[str, float]:
    """{skew_at_10, never_in_top_10: share of products} of each query's first answers in `product`.

    `lists` (Q, at most FIRST) are numbers of images, or of distinct captions in the order in which they come.
    """
    if direction == "text_to_image":
        items, owners = np.arange(len(embeddings.image_product)), embeddings.image_product
    else:
        items, owners = np.array(caption_numbers(embeddings.captions)[0]), embeddings.text_product
    occurrences = np.bincount(lists.ravel(), minlength=items.max() + 1)
    products, number = np.unique(owners, return_inverse=True)
    is_met = np.zeros(len(products), dtype=bool)
    is_met[number[occurrences[items] > 0]] = True
    return {"skew_at_10": skewness(occurrences), "never_in_top_10": float(1 - is_met.mean())}


def skewness(counts: np.ndarray) -> float:
    """The third standardized moment of the counts of a gallery; 0 where all are the same."""
    deviations = counts - counts.mean()
    spread = np.sqrt((deviations**2).mean())
    return float((deviations**3).mean() / spread**3) if spread else 0.0
