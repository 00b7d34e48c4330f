"""What is queried against what: the four protocols, each from embeddings to numbers with intervals.

product     every distinct caption against all images, every image against the distinct captions; any item of the
            same product is a hit
pair        every sample's caption against every sample's image, one to one
one_view    the first image of each product and its caption, one to one
sampled101  one positive among 100 negatives of the same subcategory, other products; frozen candidate lists

The same caption (`text.same_caption_key`) is never a negative. In `pair`, where it is the sample alone that counts,
samples with the same caption share their expected rank.
"""

from dataclasses import dataclass

import numpy as np

from clip_finetuning.retrieval import metrics
from clip_finetuning.retrieval.embeddings import Embeddings, texts
from clip_finetuning.runtime.text import caption_numbers

PROTOCOLS = ("product", "pair", "one_view", "sampled101")
DIRECTIONS = ("text_to_image", "image_to_text")
QUERIES, NEGATIVES, DRAWS = 1000, 100, 5  # of sampled101
CATEGORY_RESAMPLES = 200  # Fashion-Gen has 48 categories


@dataclass
class Task:
    """Queries and gallery of one protocol in one direction."""

    queries: np.ndarray  # (Q, D)
    gallery: np.ndarray  # (G, D)
    positives: metrics.Positives
    query_products: np.ndarray  # (Q,) product ids
    query_categories: np.ndarray  # (Q,)
    query_items: np.ndarray  # (Q,) numbers of the texts or images that ask
    gallery_items: np.ndarray  # (G,) numbers of the images or texts that answer


def evaluate(embeddings: Embeddings, protocol, ks, seed=0, candidates=None):
    """The numbers of one protocol: {query text, per direction: metrics, intervals, per category, per product}."""
    if protocol == "sampled101":
        return _evaluate_sampled(embeddings, ks, seed, candidates)
    if protocol == "pair":
        return _evaluate_pairs(embeddings, ks, seed)
    result = {"protocol": describe(embeddings, protocol)}
    for direction, task in tasks(embeddings, protocol).items():
        ranks = metrics.rank_positives(task.queries, task.gallery, task.positives)
        result[direction] = _rank_numbers(ranks, task.query_products, task.query_categories, ks, seed)
        result[direction]["chance"] = {
            f"recall@{k}": metrics.chance_recall(task.positives, len(task.gallery), k) for k in ks
        }
        result[direction]["gallery"] = len(task.gallery)
    return result


def describe(embeddings, protocol):
    """In words: what was queried against what."""
    images, products = len(embeddings.image_key), len(np.unique(embeddings.image_product))
    captions = len(caption_numbers(embeddings.captions)[1])
    return {
        "product": f"text->image: each of {captions:,} distinct captions against all {images:,} images; image->text: each "
        f"image against the distinct captions; a hit is any item of the same product ({products:,} products); the same "
        "caption is never a negative",
        "one_view": f"the first image of each of {products:,} products against their captions, one to one; the same "
        "caption is never a negative",
    }[protocol]


def tasks(embeddings, protocol):
    """{direction: Task} of a protocol in which products, or captions, are groups of positives."""
    e = embeddings
    if protocol == "product":
        # A caption that several products share is one text, and a positive of all their images.
        text_of, texts = map(np.array, caption_numbers(e.captions))
        _, codes = np.unique(np.concatenate([e.text_product, e.image_product]), return_inverse=True)
        pairs = metrics.by_group(codes[: len(text_of)], codes[len(text_of) :])
        positives = metrics.from_pairs(np.repeat(text_of, np.diff(pairs.offsets)), pairs.items, len(texts))
        images = np.arange(len(e.image_key))
        text_category = e.category[np.array([_first(positives, q) for q in range(len(texts))], dtype=np.int64)]
    else:
        images = np.sort(np.unique(e.image_product, return_index=True)[1])
        texts = e.image_text[images]
        text_of = np.array(caption_numbers(e.captions[texts])[0])
        positives, text_category = metrics.by_group(text_of, text_of), e.category[images]
    image_rows, text_rows = e.image_embeddings[images], e.text_embeddings[texts]
    back = metrics.transposed(positives, len(images))
    return {
        "text_to_image": Task(text_rows, image_rows, positives, e.text_product[texts], text_category, texts, images),
        "image_to_text": Task(image_rows, text_rows, back, e.image_product[images], e.category[images], images, texts),
    }


def _evaluate_pairs(e, ks, seed):
    """`pair`: each sample alone is its own hit, and samples that share a text share their rank."""
    numbers, texts = map(np.array, caption_numbers(e.captions))
    used, text_of = np.unique(numbers[e.image_text], return_inverse=True)  # the gallery has the samples' texts alone
    values = metrics.pair_values(e.image_embeddings, e.text_embeddings[texts[used]], text_of, ks)
    images, shared = len(text_of), int((np.bincount(text_of)[text_of] > 1).sum())
    result = {
        "protocol": f"each of {images:,} captions against {images:,} images, one to one; only the sample itself is a hit; "
        f"{shared:,} samples whose caption others have too share their expected rank",
        "sharing_caption": shared,
    }
    products = {"text_to_image": e.text_product[e.image_text], "image_to_text": e.image_product}
    for direction in DIRECTIONS:
        result[direction] = _numbers(values[direction], products[direction], e.category, seed)
        result[direction] |= {"chance": {f"recall@{k}": min(1.0, k / images) for k in ks}, "gallery": images}
    return result


def _first(positives, query):
    """A query's first positive, or item 0 if it has none (it is then left out of all numbers)."""
    start, end = positives.offsets[query : query + 2]
    return positives.items[start] if end > start else 0


def _rank_numbers(ranks, products, categories, ks, seed):
    """`_numbers` of the queries that have a positive."""
    found = ranks.best != metrics.NEVER
    if not found.any():
        raise ValueError("no query has a positive: the product ids of images and texts have nothing in common")
    numbers = _numbers(metrics.query_values(ranks, ks), products[found], categories[found], seed)
    return numbers | {"without_positive": int((~found).sum())}


def _numbers(values, products, categories, seed):
    """Metrics with intervals, by category, and by product for later comparisons; values: {name: (Q,)}."""
    names, products = np.unique(products, return_inverse=True)  # numbers, which are faster to tell apart
    sums, counts, _ = metrics.product_sums(values, products)
    return {
        "queries": len(products),
        "without_positive": 0,
        **metrics.means(values),
        "intervals": _intervals(values, products, seed, metrics.RESAMPLES),
        "categories": _by_category(values, products, categories, seed),
        "by_product": {
            "product": [str(name) for name in names],
            "category": [str(c) for c in categories[np.unique(products, return_index=True)[1]]],
            "queries": counts.tolist(),
            **{
                name: [round(float(v), 6) for v in column] for name, column in sums.items() if name.startswith("recall")
            },
        },
    }


def _intervals(values, products, seed, resamples):
    """{name: 95 % interval}: of shares in closed form, of ranks, which have no upper end, by bootstrap over products."""
    sums, counts, _ = metrics.product_sums(values, products)
    intervals = {}
    for name, column in sums.items():
        if name == "mean_rank":
            intervals |= metrics.bootstrap({name: column}, counts, seed, resamples)
        else:
            least = 1.0 if name.startswith("recall") else 0.0
            intervals[name] = metrics.share_interval(column, counts, least)
    intervals["median_rank"] = metrics.bootstrap_median(values["mean_rank"], products, seed, resamples)
    return intervals


def _by_category(values, products, categories, seed):
    """{category: queries, metrics, intervals}, the largest first."""
    table = {}
    names, codes = np.unique(categories, return_inverse=True)
    for number in np.argsort(-np.bincount(codes), kind="stable"):
        mine = codes == number
        part = {name: column[mine] for name, column in values.items()}
        table[str(names[number])] = {
            "queries": int(mine.sum()),
            "products": len(np.unique(products[mine])),
            **metrics.means(part),
            "intervals": _intervals(part, products[mine], seed, CATEGORY_RESAMPLES),
        }
    return table


# ---------------------------------------------------------------------------------------------- sampled101


def draw_candidates(embeddings, seed=0):
    """The frozen lists of sampled101: {direction: (draws, queries, 1 + negatives) of image numbers}, -1 where none is.

    Column 0 is the positive sample; of each negative sample its image or its caption stands for a product of its own.
    The lists depend on the data and the seed alone: they are made of PCG64's raw numbers, the same on every machine.
    """
    e = embeddings
    products, codes = np.unique(e.image_product, return_inverse=True)
    views = metrics.by_group(np.arange(len(products)), codes)
    kinds, sharing = _kinds(e, views), _captions_of_products(e, codes)
    lists, topped_up = {}, 0
    for number, direction in enumerate(DIRECTIONS):
        draws = []
        for draw in range(DRAWS):
            random = np.random.PCG64(np.random.SeedSequence([seed, number, draw]))
            queries = np.argsort(random.random_raw(len(e.image_key)), kind="stable")[:QUERIES]
            rows = [_row(image, codes, kinds, views, sharing, random) for image in queries]
            topped_up += sum(topped for _, topped in rows)
            draws.append(np.stack([row for row, _ in rows]))
        lists[direction] = np.stack(draws)
    return lists, topped_up


def _kinds(e, views):
    """[(P,) subcategory codes, (P,) category codes] of the products, from their first image."""
    first = views.items[views.offsets[:-1]]
    subcategories = texts(f"{c}\0{s}" if s else "" for c, s in zip(e.category[first], e.subcategory[first]))
    columns = []
    for names in (subcategories, e.category[first]):
        codes = np.unique(names, return_inverse=True)[1]
        columns.append(np.where(names == "", -1, codes))
    return columns


def _captions_of_products(e, codes):
    """(the texts of each product, the products of each text), both as Positives."""
    text_of = np.array(caption_numbers(e.captions)[0])[e.image_text]
    texts_of = metrics.from_pairs(codes, text_of, codes.max() + 1)
    return texts_of, metrics.transposed(texts_of, text_of.max() + 1)


def _row(image, codes, kinds, views, sharing, random):
    """(1 + 100 image numbers, whether the subcategory was too small) for one query."""
    product = codes[image]
    order = np.argsort(random.random_raw(len(views.offsets) - 1), kind="stable")
    texts_of, products_of = sharing
    negative = np.full(len(order), True)
    for text in texts_of.items[slice(*texts_of.offsets[product : product + 2])]:
        negative[products_of.items[slice(*products_of.offsets[text : text + 2])]] = (
            False  # itself, and who says the same
        )
    order = order[negative[order]]
    near = np.full(len(order), 2)  # 0: same subcategory, 1: same category, 2: any
    for level in (1, 0):
        same = kinds[level][order] == kinds[level][product]
        near[same & (kinds[level][product] >= 0)] = level if level == 0 else 1
    chosen = order[np.argsort(near, kind="stable")[:NEGATIVES]]
    topped = len(chosen) == 0 or near[np.argsort(near, kind="stable")[: len(chosen)]].max() > 0
    view = random.random_raw(len(chosen)) % np.diff(views.offsets)[chosen].astype(np.uint64)
    row = np.full(1 + NEGATIVES, -1)
    row[0] = image
    row[1 : 1 + len(chosen)] = views.items[views.offsets[chosen] + view.astype(np.int64)]
    return row, bool(topped)


def _evaluate_sampled(e, ks, seed, candidates):
    """sampled101, averaged over the draws; intervals over the products of all draws together."""
    lists, topped_up = candidates if candidates is not None else draw_candidates(e, seed)
    lists, left_out = _without_shared_captions(e, lists)
    draws, queries, _ = lists[DIRECTIONS[0]].shape
    smallest = int(min((rows >= 0).sum(2).min() for rows in lists.values())) - 1
    few = "" if smallest == NEGATIVES else f"{smallest} to "
    result = {
        "protocol": f"{queries:,} queries a direction, each against its positive and {few}{NEGATIVES} negatives of the same "
        f"subcategory, other products; {draws} draws averaged; {topped_up:,} of {2 * draws * queries:,} lists topped up from "
        "the category or any; the same caption is never a negative"
        + (f", for which {left_out:,} candidates of these lists were left out" if left_out else ""),
        "draws": draws,
        "fewest_negatives": smallest,
        "topped_up": topped_up,
    }
    for direction, rows in lists.items():
        ranks = [_rank_draw(e, direction, draw) for draw in rows]
        together = metrics.Ranks(*(np.concatenate(column) for column in zip(*ranks)))
        asked, sizes = rows[:, :, 0].ravel(), (rows >= 0).sum(2)
        result[direction] = _rank_numbers(together, e.image_product[asked], e.category[asked], ks, seed)
        result[direction]["queries"] = queries
        result[direction]["chance"] = {f"recall@{k}": float(np.minimum(1.0, k / sizes).mean()) for k in ks}
    return result


def _without_shared_captions(e, lists):
    """The lists with -1 for negatives whose caption the query's product has, and how many: a file's may hold such."""
    text_of, _ = caption_numbers(e.captions)
    text_of = np.array(text_of)[e.image_text]
    _, codes = np.unique(e.image_product, return_inverse=True)
    width = text_of.max() + 1
    said = np.unique(codes * width + text_of)  # which product has which caption
    cleaned, left_out = {}, 0
    for direction, rows in lists.items():
        shared = (rows >= 0) & np.isin(codes[rows[:, :, :1]] * width + text_of[rows], said)
        shared[:, :, 0] = False
        cleaned[direction], left_out = np.where(shared, -1, rows), left_out + int(shared.sum())
    return cleaned, left_out


def _rank_draw(e, direction, rows, chunk=100):
    """The ranks of one draw, `chunk` queries at a time."""
    parts = []
    for part in np.array_split(rows, max(1, len(rows) // chunk)):
        if direction == "text_to_image":
            queries, candidates = e.text_embeddings[e.image_text[part[:, 0]]], e.image_embeddings[part]
        else:
            queries, candidates = e.image_embeddings[part[:, 0]], e.text_embeddings[e.image_text[part]]
        candidates = np.where(part[:, :, None] >= 0, candidates, -np.sign(queries)[:, None] * 1e6)  # no rival at all
        parts.append(metrics.rank_candidates(queries, candidates))
    return metrics.Ranks(*(np.concatenate(column) for column in zip(*parts)))
