"""Strict, tolerant and without: hand-written catalogues, and a reference that sorts every query's whole gallery."""

import numpy as np
import pytest

from clip_finetuning.retrieval import protocols, truth
from clip_finetuning.retrieval.alike import Likeness
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.judgements import Judgements
from clip_finetuning.retrieval.positives import Positives
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue

KS = (1, 2, 3)
NONE = (np.empty(0, np.int64),) * 2


def judged(right=(), wrong=()):
    columns = [np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T for pairs in (right, wrong)]
    return Judgements(*((column[0], column[1]) for column in columns), blank=0, unknown=0, fingerprint="f")


def small():
    """Three products of one view; the model mixes 0 and 1 up, which have the same attributes, and finds 2."""
    mine = embedded_catalogue(products=3, views=1)
    mine.text_embeddings = np.eye(3, dtype=np.float32)
    mine.image_embeddings = np.array([[0.6, 0.8, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    mine.category[:] = "TOPS"
    mine.attributes = texts([{"colour": "red"}, {"colour": "red"}, {"colour": "blue"}])
    return mine


@pytest.mark.parametrize("protocol", ["product", "one_view", "pair"])
def test_look_alikes_are_misses_or_hits_or_out_of_the_gallery(protocol):
    mine = small()
    result = protocols.evaluate(mine, protocol, (1, 2), truth=truth.truth_of(mine, "all"))
    for way in ("text_to_image", "image_to_text"):
        found = {name: result["truth"][name][way] for name in truth.TRUTHS}
        assert {name: numbers["recall@1"] for name, numbers in found.items()} == pytest.approx(
            {"strict": 1 / 3, "tolerant": 1.0, "without": 1.0}
        )
        assert found["strict"]["recall@1"] == pytest.approx(result[way]["recall@1"])
        assert all(numbers["queries"] == 3 for numbers in found.values())
    assert result["truth"]["pairs"] == {"captions": 0, "attributes": 2, "all": 2}
    assert "2 pairs of captions and pictures of different products are alike: 0 by captions of one wording, 2 by equal "
    assert "attributes (colour); pictures were not compared" in result["truth"]["sentence"]


def test_only_what_is_asked_for_is_there():
    mine = small()
    assert "truth" not in protocols.evaluate(mine, "product", KS)
    assert "truth" not in protocols.evaluate(mine, "product", KS, truth=truth.truth_of(mine, "strict"))
    found = protocols.evaluate(mine, "product", KS, truth=truth.truth_of(mine, "tolerant"))["truth"]
    assert set(found) == {"strict", "tolerant", "pairs", "sentence"}


def test_the_strict_numbers_are_what_they_are_without_truth():
    mine = embedded_catalogue(products=20, noise=1.5)
    mine.attributes = texts([{"n": str(number % 7)} for number in range(60)])
    for protocol in ("product", "one_view", "pair"):
        plain = protocols.evaluate(mine, protocol, KS, truth=truth.truth_of(mine))
        with_truth = protocols.evaluate(mine, protocol, KS, truth=truth.truth_of(mine, "all"))
        assert {name: with_truth[name] for name in plain} == plain
        for way in ("text_to_image", "image_to_text"):
            for name in ("recall@1", "recall@3", "mrr", "median_rank"):
                assert with_truth["truth"]["strict"][way][name] == pytest.approx(plain[way][name])


def test_what_is_judged_right_is_a_hit_in_every_truth_and_what_is_judged_wrong_in_none():
    mine = small()
    verdicts = judged(right=[(0, 1)], wrong=[(1, 0)])
    found = measure_embeddings(mine, ["product"], (1, 2), truth=truth.truth_of(mine, "all", verdicts))
    recalls = {name: found["protocols"]["product"]["truth"][name]["text_to_image"]["recall@1"] for name in truth.TRUTHS}
    assert recalls == pytest.approx(dict.fromkeys(truth.TRUTHS, 2 / 3))
    assert found["recall@1"]["text_to_image"] == pytest.approx(2 / 3)
    assert found["protocols"]["product"]["image_to_text"]["recall@1"] == pytest.approx(2 / 3)
    assert found["protocols"]["product"]["protocol"].endswith("; " + verdicts.sentence())
    assert found["judgements"]["right"] == found["judgements"]["wrong"] == 1
    assert found["protocols"]["product"]["truth"]["pairs"]["all"] == 0


def test_one_category_or_none_is_no_error():
    mine = small()
    for category in ("", "TOPS"):
        mine.category[:] = category
        found = protocols.evaluate(mine, "product", KS, truth=truth.truth_of(mine, "all"))
        assert found["truth"]["pairs"]["attributes"] == 2


def test_attributes_with_blanks_are_said():
    mine = small()
    mine.attributes = texts([{"colour": "red", "size": "M"}, {"colour": "red"}, {}])
    found = protocols.evaluate(mine, "product", KS, truth=truth.truth_of(mine, "all"))["truth"]
    assert found["pairs"]["attributes"] == 0
    assert "2 samples lack an attribute of their category and are like none by these" in found["sentence"]


# --------------------------------------------------------------------------------------------- the reference


def rank(scores, right, absent=()):
    """Of the best right item, ties against it, as if the absent ones were not there."""
    best = max(scores[item] for item in right)
    others = [item for item in range(len(scores)) if item not in right and item not in absent]
    return 1 + sum(scores[item] >= best for item in others)


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("protocol", ["product", "one_view"])
def test_every_query_by_itself(seed, protocol):
    random = np.random.default_rng(seed)
    mine = embedded_catalogue(products=int(random.integers(2, 12)), views=int(random.integers(1, 4)), dimensions=4)
    mine.image_embeddings = random.integers(-1, 2, mine.image_embeddings.shape).astype(np.float32)  # many ties
    mine.text_embeddings = random.integers(-1, 2, mine.text_embeddings.shape).astype(np.float32)
    images, count = len(mine.image_key), len(mine.captions)
    known = Likeness(
        wording=random.integers(0, 6, count),
        look=np.arange(images),
        near=Positives(np.arange(images + 1), np.arange(images)),
        kind=random.integers(-1, 8, images),
    )
    verdicts = judged({(0, images - 1)}, {(count - 1, 0)})
    wanted = truth.Truth(truth.TRUTHS, np.arange(count), known, verdicts)
    result = protocols.evaluate(mine, protocol, KS, truth=wanted)
    tasks = protocols.tasks(mine, protocol)
    forward = tasks["text_to_image"]
    right, alike = {}, {}
    for query, text in enumerate(forward.query_items):
        own = set(forward.positives.of(query).tolist())
        items = {int(image): item for item, image in enumerate(forward.gallery_items)}
        right[query] = own | ({items[images - 1]} if text == 0 and images - 1 in items else set())
        kinds = {int(known.kind[forward.gallery_items[item]]) for item in own} - {-1}
        same = {item for item, image in enumerate(forward.gallery_items) if known.kind[image] in kinds}
        for other, mate in enumerate(forward.query_items):
            if known.wording[mate] == known.wording[text]:
                same |= set(forward.positives.of(other).tolist())
        judged_wrong = {items[0]} if text == count - 1 and 0 in items else set()
        alike[query] = same - right[query] - own - judged_wrong
    scores = forward.queries @ forward.gallery.T
    back_right = {i: {q for q in right if i in right[q]} for i in range(scores.shape[1])}
    back_alike = {i: {q for q in alike if i in alike[q]} for i in range(scores.shape[1])}
    for way, table, hits, spared in (
        ("text_to_image", scores, right, alike),
        ("image_to_text", scores.T, back_right, back_alike),
    ):
        ranks = {
            "strict": [rank(table[q], hits[q]) for q in hits],
            "tolerant": [rank(table[q], hits[q] | spared[q]) for q in hits],
            "without": [rank(table[q], hits[q], spared[q]) for q in hits],
        }
        for name, best in ranks.items():
            for k in KS:
                assert result["truth"][name][way][f"recall@{k}"] == pytest.approx(np.mean(np.array(best) <= k)), name
            assert result["truth"][name][way]["mrr"] == pytest.approx(np.mean(1 / np.array(best)))
            assert result["truth"][name][way]["median_rank"] == np.median(best)


def test_pair_sample_by_sample():
    """Every sample by itself, over the ranks that its text's images, or its text's copies, have in any order."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        products, views = int(random.integers(2, 7)), int(random.integers(1, 3))
        said = [f"text {random.integers(0, products)}" for _ in range(products)]
        mine = embedded_catalogue(products=products, views=views, dimensions=4, captions=said)
        mine.image_embeddings = random.integers(-1, 2, mine.image_embeddings.shape).astype(np.float32)
        first = {caption: number for number, caption in reversed(list(enumerate(said)))}
        rows = random.integers(-1, 2, mine.text_embeddings.shape).astype(np.float32)
        mine.text_embeddings = rows[[first[caption] for caption in said]]
        count, images = len(said), len(mine.image_key)
        known = Likeness(wording=np.arange(count), kind=random.integers(-1, 4, images))
        caption = np.array([first[text] for text in said])
        wanted = truth.Truth(truth.TRUTHS, caption, known)
        result = protocols.evaluate(mine, "pair", KS, truth=wanted)["truth"]
        own_text = caption[mine.image_text]  # of each sample
        product_of = mine.image_text
        spoken = {text: {p for p in range(count) if caption[p] == text} for text in set(caption)}
        alike = {
            text: {
                j
                for j in range(images)
                if product_of[j] not in of
                and known.kind[j] in {known.kind[i] for i in range(images) if product_of[i] in of} - {-1}
            }
            for text, of in spoken.items()
        }
        scores = mine.text_embeddings[own_text] @ mine.image_embeddings.T  # a row and a column for each sample
        for way, table in (("text_to_image", scores), ("image_to_text", scores.T)):
            ranks = {name: [] for name in truth.TRUTHS}
            for sample in range(images):
                mates = [other for other in range(images) if own_text[other] == own_text[sample]]
                if way == "text_to_image":
                    spared = alike[own_text[sample]]
                    ordered = sorted(mates, key=lambda item: -table[sample][item])
                else:
                    spared = {other for other in range(images) if sample in alike[own_text[other]]}
                    ordered = mates
                others = [item for item in range(images) if item not in mates]
                for place, item in enumerate(ordered):
                    ahead = {other for other in others if table[sample][other] >= table[sample][item]}
                    ranks["strict"].append((len(ahead) + place + 1, len(mates)))
                    ranks["without"].append((len(ahead - spared) + place + 1, len(mates)))
                    best = max((table[sample][other] for other in spared), default=-np.inf)
                    if table[sample][item] > best:
                        ranks["tolerant"].append((len(ahead) + place + 1, len(mates)))
                    else:
                        rivals = [other for other in range(images) if other not in spared and other != item]
                        found = 1 + sum(table[sample][other] >= best for other in rivals)
                        ranks["tolerant"].append((found, len(mates)))
            for name, of in ranks.items():
                for k in KS:
                    expected = sum((rank <= k) / size for rank, size in of) / images
                    assert result[name][way][f"recall@{k}"] == pytest.approx(expected), (seed, name, way)
                expected = sum(1 / rank / size for rank, size in of) / images
                assert result[name][way]["mrr"] == pytest.approx(expected), (seed, name, way)
