"""Look-alikes where others than the captions ask, or where a list is the gallery: against references that compare all with all."""

import numpy as np
import pytest

from clip_finetuning.retrieval import between_images, positives, protocols, result_file, sampled101, table, truth
from clip_finetuning.retrieval.alike import Likeness
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.names import DIRECTIONS
from clip_finetuning.retrieval.query_texts import rows_of
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue

KS = (1, 2, 3)


def drawn(seed):
    """A small catalogue with many equal scores, and what is alike in it."""
    random = np.random.default_rng(seed)
    mine = embedded_catalogue(products=int(random.integers(4, 12)), views=int(random.integers(1, 4)), dimensions=4)
    for rows in (mine.image_embeddings, mine.text_embeddings):
        rows[:] = random.integers(-1, 2, rows.shape)
        rows[~rows.any(1), 0] = 1  # none of length zero
    images, count = len(mine.image_key), len(mine.captions)
    looks = images // 2 + 1
    known = Likeness(
        wording=random.integers(0, count, count),
        look=random.integers(0, looks, images),
        near=positives.one_to_one(looks),
        kind=random.integers(-1, count, images),
    )
    return mine, truth.Truth(truth.TRUTHS, np.arange(count), known)


def alike_to(own, images, known, image_text):
    """The images of none of its own that are alike to some of these images, by the definition."""
    kinds, looks = {known.kind[i] for i in own} - {-1}, {known.look[i] for i in own}
    said = {known.wording[image_text[i]] for i in own}
    return {
        j
        for j in range(images)
        if j not in own and (known.kind[j] in kinds or known.look[j] in looks or known.wording[image_text[j]] in said)
    }


def ranks_of(scores, right, spared, there):
    """{truth: rank} of the best right item among those that are there, equal scores against it."""

    def rank(hits, absent=frozenset()):
        best = max(scores[item] for item in hits)
        return 1 + sum(scores[item] >= best for item in there if item not in hits and item not in absent)

    return {"strict": rank(right), "tolerant": rank(right | spared), "without": rank(right, spared)}


def check(found, ranks, queries=None):
    """The truth of a direction against [{truth: rank}] of its queries."""
    for name in truth.TRUTHS:
        best = np.array([of[name] for of in ranks])
        for k in KS:
            assert found[name][f"recall@{k}"] == pytest.approx(np.mean(best <= k)), name
        assert found[name]["mrr"] == pytest.approx(np.mean(1 / best))
        assert found[name]["median_rank"] == np.median(best)
        assert found[name]["queries"] == queries or len(ranks)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("protocol", "column"), [("image_to_image", "image_product"), ("same_category", "category")])
def test_pictures_that_ask_for_pictures(monkeypatch, seed, protocol, column):
    mine, wanted = drawn(seed)
    mine.image_product[:2], mine.category[-1] = "two views", ""
    monkeypatch.setattr(between_images, "MOST_PAIRS", 5 + 100 * (seed % 2))  # a few at a time, or all at once
    result = protocols.evaluate(mine, protocol, KS, truth=wanted)
    groups, images = getattr(mine, column), len(mine.image_key)
    scores = mine.image_embeddings @ mine.image_embeddings.T
    ranks, pairs = [], 0
    for query in range(images):
        own = {item for item in range(images) if groups[query] and groups[item] == groups[query]}
        if len(own) > 1:
            spared = alike_to(own, images, wanted.likeness, mine.image_text)
            pairs += len(spared)
            ranks.append(ranks_of(scores[query], own - {query}, spared, set(range(images)) - {query}))
    found = result["truth"]
    check({name: found[name]["image_to_image"] for name in truth.TRUTHS}, ranks)
    assert found["pairs"]["all"] == pairs and f"{pairs:,} pairs of pictures of different " in found["sentence"]
    plain = protocols.evaluate(mine, protocol, KS)
    assert {name: result[name] for name in plain} == plain and "truth" not in plain


@pytest.mark.parametrize("seed", range(8))
def test_lists_of_candidates(seed):
    mine, wanted = drawn(seed)
    lists = sampled101.draw_candidates(mine)
    result = protocols.evaluate(mine, "sampled101", KS, 0, lists, truth=wanted)
    of_text = {t: set(np.flatnonzero(mine.image_product == p)) for t, p in enumerate(mine.text_product)}
    alike = {t: alike_by_text(t, of_text, wanted.likeness) for t in of_text}
    scores, pairs = mine.text_embeddings @ mine.image_embeddings.T, 0
    for way, rows in lists.lists.items():
        ranks = []
        for row in rows.reshape(-1, rows.shape[2]):
            row = row[row >= 0]
            own = mine.image_text[row[0]]
            if way == "text_to_image":
                own_scores, spared = scores[own, row], {n for n, item in enumerate(row) if item in alike[own]}
            else:
                asked = mine.image_text[row]
                own_scores, spared = scores[asked, row[0]], {n for n, t in enumerate(asked) if row[0] in alike[t]}
            pairs += len(spared)
            ranks.append(ranks_of(own_scores, {0}, spared, set(range(len(row)))))
        check({name: result["truth"][name][way] for name in truth.TRUTHS}, ranks, rows.shape[1])
    assert result["truth"]["pairs"]["all"] == pairs
    assert (
        f"{pairs:,} pairs of captions and pictures of different products that meet in a list are alike"
        in (result["truth"]["sentence"])
    )
    plain = protocols.evaluate(mine, "sampled101", KS, 0, lists)
    assert {name: result[name] for name in plain} == plain and "truth" not in plain


def alike_by_text(text, of_text, known):
    """The images of other products that are alike to a text, by the definition: its own pictures', and its wording."""
    own = of_text[text]
    kinds, looks = {known.kind[i] for i in own} - {-1}, {known.look[i] for i in own}
    same = {i for i in range(len(known.look)) if known.kind[i] in kinds or known.look[i] in looks}
    for other in of_text:
        if known.wording[other] == known.wording[text]:
            same |= of_text[other]
    return same - own


def test_short_queries_and_names_of_categories():
    """P0 and P1 are one look, and what asks for one of them finds the other's picture first."""
    mine = embedded_catalogue(products=4, views=1)
    mine.image_embeddings = np.eye(16, dtype=np.float32)[:4]
    mine.category[:] = "SHOES", "TOPS", "HATS", "HATS"
    mine.looks = np.stack([np.full(200, 40 * number, np.uint8) for number in (1, 1, 3, 5)])
    rows, names = np.eye(16, dtype=np.float32), ("red", "blue", "green", "grey")
    rows[0] = rows[1] = 0
    rows[0, :2], rows[1, :2] = (0.6, 0.8), (0.8, 0.6)  # each is nearer to the other's picture
    short = rows_of(rows[:4], {(text, f"P{n}"): "en" for n, text in enumerate(names)}, "by hand")
    category = rows_of(rows[[0, 1, 2]], {(name, name): "" for name in ("SHOES", "TOPS", "HATS")}, "by hand")
    queries = {"short": short, "category": category, "wording": short}
    asked = ["short_queries", "all_captions", "category_to_product"]
    results = measure_embeddings(mine, asked, KS, truth=truth.truth_of(mine, "all"), queries=queries)
    of = {name: numbers["truth"] for name, numbers in results["protocols"].items()}
    for name in asked[:2]:
        for way in DIRECTIONS:
            recalls = {kind: of[name][kind][way]["recall@1"] for kind in truth.TRUTHS}
            assert recalls == {"strict": 0.5, "tolerant": 1.0, "without": 1.0}
        assert of[name]["pairs"] == {"pictures": 2, "captions": 0, "all": 2}
    recalls = {kind: of[asked[2]][kind]["text_to_image"]["recall@1"] for kind in truth.TRUTHS}
    assert recalls == pytest.approx({"strict": 1 / 3, "tolerant": 1.0, "without": 1.0})
    assert "2 pairs of names and pictures of different categories are alike" in of[asked[2]]["sentence"]
    result_file.check_results(results | {"data": {}})
    assert "Recall@10 tolerant" not in table.render(results) and "Recall@3 tolerant" in table.render(results)


def test_verdicts_are_on_captions_and_not_on_the_texts_that_ask_besides():
    mine = embedded_catalogue(products=2, views=1)
    mine.image_embeddings = np.eye(16, dtype=np.float32)[[1, 0]]
    mine.text_embeddings = np.eye(16, dtype=np.float32)[[0, 1]]
    short = rows_of(np.eye(16, dtype=np.float32)[[0, 1]], {("a", "P0"): "", ("b", "P1"): ""}, "by hand")
    right = (np.array([0, 1]), np.array([1, 0]))
    verdicts = truth.Judgements(right, (right[0][:0], right[1][:0]), blank=0, unknown=0, fingerprint="f")
    wanted = truth.truth_of(mine, "all", verdicts)
    found = protocols.evaluate(mine, "short_queries", KS, truth=wanted, queries={"short": short})
    assert found["text_to_image"]["recall@1"] == 0 == found["truth"]["tolerant"]["text_to_image"]["recall@1"]
    lists = protocols.evaluate(mine, "sampled101", KS, truth=wanted)  # as in `pair`: there they are alike
    assert lists["text_to_image"]["recall@1"] == 0 and lists["truth"]["tolerant"]["text_to_image"]["recall@1"] == 1


def test_attributes_and_blanks_between_pictures():
    mine = embedded_catalogue(products=4, views=2)
    mine.category[:] = "TOPS"
    mine.attributes = texts([{"colour": "red"}] * 4 + [{}] * 4)
    found = protocols.evaluate(mine, "image_to_image", KS, truth=truth.truth_of(mine, "all"))["truth"]
    assert found["pairs"] == {"captions": 0, "attributes": 8, "all": 8}
    assert "4 samples lack an attribute of their category" in found["sentence"]
