"""The report page: its elements say what was measured; opened in a real browser where there is one."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.retrieval import classification, report, report_categories, report_numbers
from clip_finetuning.retrieval import examples as chosen
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.examples import Confusion
from clip_finetuning.retrieval.names import DIRECTIONS
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue, encoded_picture, parsed_page

NASTY = "<script>document.title = 'x'</script> \"quoted\" & more " + "word " * 80
SECTIONS = ["Recall", "By category", "Most confused categories", "A sample of queries", "The worst failures"]
KEPT = {"before": 0.5, "after": 0.4, "gain": -0.1, "interval": [-0.12, -0.08], "verdict": "worse"}
RETENTION = {"pattern": "coco.tar", "sentence": "before: base", "change": {"text_to_image": {"recall@10": KEPT}}}


def results_of(embeddings, name="model", protocols=("product",)):
    about = {
        "name": name,
        "model": {"name": name, "weights": "<w>", "precision": "fp32"},
        "data": {"pattern": "valid.tar", "fingerprint": embeddings.fingerprint(), "skipped": {"empty file": 3}},
    }
    return measure_embeddings(embeddings, protocols, (1, 5, 10)) | about


def catalogue(noise, **changes):
    captions = [NASTY] + [f"Caption {number}" for number in range(1, 60)]
    return embedded_catalogue(products=60, views=2, noise=noise, captions=captions, **changes)


def zero_shot_of(hits):
    """Of 60 products, every second of each of two classes; `hits` of 30 in each class are right."""
    labels = np.arange(60) % 2
    scores = np.where((np.arange(60) < 2 * hits)[:, None] == (labels == np.arange(2)[:, None]).T, 0.9, 0.1)
    measured = classification.measure(scores, labels, ["A", "<odd>"], texts(f"P{number}" for number in range(60)))
    return {"prompts": ["a photo of {}"], "without_category": 7, "without_embedding": ["B"]} | measured


def page_of(results, embeddings, baseline=None, pictures=None, examples=None):
    examples = examples or chosen.pick(embeddings)
    return parsed_page(report.render(results, embeddings, examples, pictures or {}, baseline))


@pytest.fixture(scope="module")
def embeddings():
    """Of a model whose queries succeed and fail."""
    return catalogue(noise=1.8)


@pytest.fixture(scope="module")
def base():
    """Of the worse model before."""
    return catalogue(4.0)


@pytest.fixture(scope="module")
def examples(embeddings, base):
    picked = chosen.pick(embeddings)
    picked.before = chosen.before(base, None, picked, embeddings)
    return picked


@pytest.fixture(scope="module")
def now(embeddings):
    return results_of(embeddings)


@pytest.fixture(scope="module")
def before(base):
    return results_of(base, "base")


@pytest.fixture(scope="module")
def text(embeddings, examples, now, before):
    """The page of a model, with the worse one before it."""
    pictures = {image: encoded_picture(image, (300, 400)) for image in examples.images(embeddings)}
    return report.render(now, embeddings, examples, pictures, before)


@pytest.fixture(scope="module")
def page(text):
    return parsed_page(text)


def section(page, title):
    (found,) = (part for part in page.find("section") if part.find("h2")[0].text == title)
    return found


def rows_of(table):
    """Rows of texts; what is left blank between a number and its sign is one blank."""
    cells = ([child for child in row.children if not isinstance(child, str)] for row in table.find("tr"))
    return [[cell.text.replace("\u202f", " ") for cell in row] for row in cells]


def percent(value):
    return f"{100 * value:.1f} %"


# ------------------------------------------------------------------------------------------------ the verdict


def test_the_page_opens_with_the_verdict_and_two_large_figures(page, now, before):
    assert page.find("h1")[0].text == "Better in both directions, and not by chance"
    figures = page.find("div", "figure")
    assert len(figures) == 2
    for figure, way in zip(figures, DIRECTIONS):
        old, new = (r["protocols"]["product"][way]["recall@10"] for r in (before, now))
        (large,) = figure.find("p", "large")
        assert large.text.replace("\u202f", " ") == f"{percent(old)} → before, now {percent(new)}"
        (words,) = figure.find("p", "better")
        assert words.text.startswith(f"{100 * (new - old):+.1f} points (") and words.text.endswith(
            "better, and not by chance"
        )
        assert f"Of 100 {'captions' if way == 'text_to_image' else 'pictures'}, {round(100 * new)} find" in figure.text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("worse", "worse"), "Worse in both directions, and not by chance"),
        (("unclear", "unclear"), "No difference that these 60 products can show"),
        (("better", "worse"), "Better text → image, and not by chance; worse image → text, and not by chance"),
        (
            ("unclear", "better"),
            "Text → image no difference that these data can show; better image → text, and not by chance",
        ),
    ],
)
def test_the_verdict_is_that_of_both_directions(said, words):
    figures = [
        {"title": title, "change": {"verdict": verdict}}
        for title, verdict in zip(("Text → image", "Image → text"), said)
    ]
    assert report_numbers.verdict(figures, True, 60) == words


def test_a_page_of_one_result_compares_with_chance_alone(embeddings, now):
    page = page_of(now, embeddings)
    assert page.find("h1")[0].text == "Better than chance in both directions"
    table = rows_of(section(page, "Recall").find("table")[0])
    assert table[0] == ["Measure", "Chance", "Value"]
    assert not page.find("i", "before") and not page.find(name="compared") and "compared with" not in page.text
    assert [h.text.split()[0] for card in page.find("article") for h in card.find("div", "found")[0].find("h5")] == [
        "Found"
    ] * 60


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_captions": 61}, "base counts a caption in two spellings as two in product; measure it anew"),
        (
            {"data": {"fingerprint": "other"}},
            "base and this result are results of different data and cannot be compared",
        ),
        ("protocol", "base and this result have no protocol in common"),
    ],
)
def test_what_cannot_be_compared_is_said_not_shown(embeddings, now, change, why):
    before = results_of(embeddings, "base")
    before |= {"protocols": {"pair": before["protocols"]["product"]}} if change == "protocol" else change
    page = page_of(now | {"name": "this result"}, embeddings, before)
    assert page.find("p", "note")[0].text == f"Not compared: {why}."
    assert page.find("dt")[-1].text == "not comparable with" and page.find("dd")[-1].text == "base"
    assert len(rows_of(page.find("table")[0])[0]) == 3 and not page.find("i", "before")


# ------------------------------------------------------------------------------------------------- the tables


def test_a_block_a_direction_has_intervals_and_what_was_gained(page, now, before):
    blocks = section(page, "Recall").find("div", "blocks")[0].find("div", "block")
    for block, way in zip(blocks, DIRECTIONS):
        numbers, old = (r["protocols"]["product"][way] for r in (now, before))
        head, *rows = rows_of(block.find("table")[0])
        assert head == ["Measure", "Chance", "Before", "Now", "Change"]
        assert [row[0] for row in rows] == ["Recall@1", "Recall@5", "Recall@10", "median rank", "MRR", "mAP"]
        low, high = numbers["intervals"]["recall@10"]
        assert rows[2][1:4] == [
            percent(numbers["chance"]["recall@10"]),
            percent(old["recall@10"]),
            f"{percent(numbers['recall@10'])} {100 * low:.1f}–{100 * high:.1f}",
        ]
        assert rows[2][4].startswith(f"{100 * (numbers['recall@10'] - old['recall@10']):+.1f} ") and rows[2][
            4
        ].endswith("better")
        assert len(block.find("b", "better")) == 3


def test_what_else_was_measured_is_shown_where_it_is(embeddings, now):
    headline = now["protocols"]["product"]
    more = {"expected_recall@5": 0.41, "ndcg@10": 0.37, "r_precision": 0.29}
    more |= {"hubness": {"skew_at_10": 1.5, "never_in_top_10": 0.25}}
    truth = {"strict": 0.3, "tolerant": 0.35, "without": 0.4}
    truth = {name: {way: {"recall@10": value} for way in DIRECTIONS} for name, value in truth.items()}
    truth |= {"pairs": {"pictures": 12}, "sentence": "12 pairs are alike"}
    product = headline | {"text_to_image": headline["text_to_image"] | more, "truth": truth}
    results = now | {"protocols": {"product": product}, "zero_shot": zero_shot_of(20), "retention": RETENTION}
    page = page_of(results, embeddings)
    words = page.text.replace("\u202f", " ")
    cells = {row[0]: row[-1] for table in section(page, "Recall").find("table")[:2] for row in rows_of(table)}
    assert cells["R-precision"].startswith("29.0 %") and cells["nDCG@10"].startswith("37.0 %")
    assert cells["expected R@5"].startswith("41.0 %")
    assert "skewness 1.50, 25.0 % of products in no first ten" in words
    assert "12 pairs are alike. Text → image" in words
    assert "are misses are hits left out Recall@10 30.0 % 35.0 % 40.0 %" in words
    facts = dict(zip((e.text for e in page.find("dt")), (e.text for e in page.find("dd"))))
    assert facts["to cite"] == f"product/v1 strict sha256:{embeddings.fingerprint()}"
    assert "80 % of comparisons would show a difference in Recall@10" in section(page, "Recall").text
    (zero_shot, taken) = section(page, "Zero-shot classification").find("table")
    assert rows_of(zero_shot)[0] == ["Accuracy", "Chance", "Always “A”", "Value"]
    assert rows_of(zero_shot)[1][:3] == ["top-1", "50.0 %", "50.0 %"] and rows_of(zero_shot)[1][3].startswith("66.7 %")
    assert ["<odd>", "A", "33.3 %", "10"] in rows_of(taken)
    assert "7 pictures without a category" in words and "name's embedding is not finite: B." in words
    (kept,) = section(page, "What it still knows of other data").find("table")
    assert rows_of(kept)[1] == ["Recall@10 Text → image", "50.0 %", "40.0 %", "−10.0 −12.0 to −8.0 worse"]


def test_what_other_data_gave_is_shown_where_nothing_is_known_of_before(embeddings, now):
    kept = now | {"pattern": "coco.tar", "sentence": "what was forgotten is not known", "change": {}}
    part = section(page_of(now | {"retention": kept}, embeddings), "What it still knows of other data")
    assert "what was forgotten is not known." in part.text and len(part.find("div", "block")) == 2


def test_every_protocol_is_there_and_what_the_baseline_lacks_is_said(embeddings, now, before):
    results = results_of(embeddings, "this result", protocols=("product", "pair", "one_view"))
    results["protocols"]["pair"]["languages"] = {"de": results["protocols"]["pair"]}
    baseline = {**before, "protocols": before["protocols"] | results_of(embeddings, protocols=("pair",))["protocols"]}
    others = section(page_of(results, embeddings, baseline), "Other protocols").find("details")
    others = [detail for detail in others if detail.find("summary")[0].text.split()[0] in ("pair", "one_view")]
    assert len(others) == 2
    for detail, name in zip(others, ("pair", "one_view")):
        assert results["protocols"][name]["protocol"] in detail.text
        assert f"To cite: {name}/v2 strict sha256:" in detail.text
        assert len(detail.find("div", "block")) == 2
    assert not others[0].find("p", "note") and len(rows_of(others[0].find("table")[0])[0]) == 5
    assert others[1].find("p", "note")[0].text == "Not compared: one_view: base lacks it."
    by_language = rows_of(others[0].find("table", "narrow")[0])
    assert by_language[0] == ["Language", "Text → image", "Image → text"]
    assert by_language[1][0] == "de" and by_language[1][1].endswith("120 queries")
    assert "Other protocols" not in [h.text for h in page_of(now, embeddings).find("h2")]


def test_zero_shot_has_the_numbers_before_of_the_same_categories_alone(embeddings, now, before):
    results = now | {"zero_shot": zero_shot_of(20)}
    other = zero_shot_of(10)
    other["by_product"] = other["by_product"] | {"category": ["C"] * 60}
    for theirs, shown in ((zero_shot_of(10), True), (other, False)):
        part = section(page_of(results, embeddings, before | {"zero_shot": theirs}), "Zero-shot classification")
        head, first, *_ = rows_of(part.find("table")[0])
        row = dict(zip(head, first))
        assert row.get("Before") == ("33.3 %" if shown else None)
        assert row.get("Change", "").startswith("+33.3 " if shown else "")
        assert [p.text for p in part.find("p", "note")] == (
            [] if shown else ["Not compared: the two have other categories, or products in them."]
        )


# ----------------------------------------------------------------------------------------------- categories


def test_a_dot_stands_where_the_recall_is_and_a_hollow_one_where_it_was(page, now, before):
    tables = section(page, "By category").find("table")
    assert len(tables) == 2
    for table, way in zip(tables, DIRECTIONS):
        found, old = (r["protocols"]["product"][way]["categories"] for r in (now, before))
        rows = table.find("tbody")[0].find("tr")
        assert [row.find("bdi")[0].text for row in rows] == sorted(found)  # of one size
        for row, name in zip(rows, sorted(found)):
            value, (low, high) = found[name]["recall@10"], found[name]["intervals"]["recall@10"]
            hollow, dot = row.find("i", "dot")
            assert dot.attributes["style"] == f"left:{value:.1%}"
            assert (
                hollow.classes == {"dot", "before"}
                and hollow.attributes["style"] == f"left:{old[name]['recall@10']:.1%}"
            )
            assert row.find("i", "range")[0].attributes["style"] == f"left:{low:.1%};width:{high - low:.1%}"
            change = f"{100 * (value - old[name]['recall@10']):+.1f}"
            assert [cell.text for cell in row.find("td")][2] == f"{change} better"  # by Holm: 30 products each
        assert [mark.text for mark in table.find("span", "axis")[0].find("i")] == ["0", "25", "50", "75", "100%"]


def test_both_directions_have_one_order_and_few_products_are_grey():
    """The largest first, whatever a direction's own order; what a direction lacks has a blank row."""

    def numbers(products, value):
        return {"products": products, "recall@10": value, "intervals": {"recall@10": [0.0, 0.08]}}

    headline = {
        "text_to_image": {"categories": {"B": numbers(5, 0.05), "A": numbers(9, 0.04)}},
        "image_to_text": {"categories": {"A": numbers(9, 0.03), "C": numbers(4, 0.02), "B": numbers(5, 0.01)}},
    }
    charts = report_categories.charts(headline, None)
    for direction in charts["directions"]:
        assert [row["name"] for row in direction["rows"]] == ["A", "B", "C"]
        assert [row["is_few"] for row in direction["rows"]] == [False, False, True]
    assert charts["directions"][0]["rows"][2]["value"] is None and charts["few"] == 1
    assert charts["ticks"][-1] == ("100%", "10%")  # the axis ends where all intervals have room
    assert charts["directions"][0]["rows"][0]["at"] == "40.0%"


def test_all_categories_are_on_the_page_the_smaller_ones_folded():
    count = report_categories.OPEN + 3
    embeddings = embedded_catalogue(products=count, views=1)
    embeddings.category = texts(f"category {number}" for number in range(count))
    part = section(page_of(results_of(embeddings), embeddings), "By category")
    folded = part.find("details")
    assert [len(detail.find("bdi")) for detail in folded] == [3, 3] and len(part.find("bdi")) == 2 * count
    assert all(row.classes == {"few"} for row in folded[0].find("tbody")[0].find("tr"))


def test_confusions_of_few_products_are_counted_apart():
    many = [Confusion("A", f"B{number}", 4, 0.4 - number / 100, 10) for number in range(14)]
    few = [Confusion("C", "A", 2, 1.0, 1), Confusion("D", "A", 1, 0.5, 1)]
    shown = report_categories.confusions(few[:1] + many + few[1:])
    assert [c.answered for c in shown["shown"] + shown["more"]] == [f"B{number}" for number in range(14)]
    assert len(shown["shown"]) == 12 and (shown["few"], shown["few_pictures"]) == (2, 3)
    assert report_categories.confusions(few)["shown"] == few  # where all are small, they are all there is


# ----------------------------------------------------------------------------------------------------- cards


def test_a_failed_query_shows_what_it_should_have_found_and_no_other_does(embeddings, examples, page):
    for title, shown in (("A sample of queries", examples.sample), ("The worst failures", examples.worst)):
        cards = section(page, title).find("article")
        assert len(cards) == len(shown)
        assert any(example.is_failed for example in shown) and not all(example.is_failed for example in shown)
        for card, example in zip(cards, shown):
            wanted = card.find(name="wanted")
            assert len(wanted) == example.is_failed
            if not wanted:
                continue
            assert wanted[0].find("h5")[0].text == f"The right answer missed, {example.wanted.score:.3f}".replace(
                "-", "−"
            )
            if example.direction == "text_to_image":
                (picture,) = wanted[0].find("img")
                assert picture.attributes["alt"].startswith(f"{embeddings.image_key[example.wanted.item]}: ")
            else:
                (caption,) = wanted[0].find("p")
                assert caption.text == embeddings.captions[example.wanted.item].strip()


def test_before_and_now_stand_side_by_side(embeddings, examples, page):
    known = {way: {entry["query"]: entry for entry in entries} for way, entries in examples.before.items()}
    for card, example in zip(section(page, "A sample of queries").find("article"), examples.sample):
        old, new = card.find("div", "found")
        entry = known[example.direction][chosen.name_of(embeddings, example.direction, example.query)]
        for part, word, rank, hits, scores in (
            (
                old,
                "Before",
                entry["rank"],
                [a["hit"] for a in entry["answers"]],
                [a["score"] for a in entry["answers"]],
            ),
            (new, "Now", example.rank, example.hits, [answer.score for answer in example.answers]),
        ):
            where = "right answer first" if rank == 1 else f"right answer at rank {rank}"
            assert part.find("h5")[0].text == f"{word} {where}"
            items = part.find("li")
            assert [item.classes for item in items] == [{"hit"} if hit else {"miss"} for hit in hits]
            marks = [item.find(name="mark")[0].text.replace("−", "-") for item in items]
            assert marks == [
                f"{'✓ right' if hit else '✗ wrong'}, score {score:.3f}" for hit, score in zip(hits, scores)
            ]
        if example.direction == "text_to_image":
            alts = [image.attributes["alt"].split(":")[0] for image in old.find("img")]
            assert alts == [answer["name"] for answer in entry["answers"]]
        else:
            assert [p.text for p in old.find("p")] == [answer["name"].strip() for answer in entry["answers"]]


def test_twelve_cards_are_open(page):
    folded = sum(len(detail.find("article")) for detail in page.find("details"))
    assert len(page.find("article")) - folded == 12


def test_a_baseline_that_does_not_know_its_answers_says_what_is_needed(embeddings, base, now, before):
    examples = chosen.pick(embeddings)
    page = page_of(now, embeddings, before, examples=examples)
    assert "measure it anew, or give its embeddings" in section(page, "A sample of queries").text
    unknown = "The baseline's file does not hold its answer to this query."
    assert len([p for p in page.find("p") if p.text == unknown]) == len(examples.sample + examples.worst)
    examples.before = chosen.record(base)
    page = page_of(now, embeddings, before, examples=examples)
    assert not [p for p in section(page, "A sample of queries").find("p") if p.text == unknown]
    assert "with --baseline FILE.npz all cards have them" in section(page, "A sample of queries").text
    assert [p for p in section(page, "The worst failures").find("p") if p.text == unknown]


def test_a_model_without_failures_has_none_to_show():
    embeddings = embedded_catalogue(products=60, views=2)
    page = page_of(results_of(embeddings), embeddings)
    worst, confused = section(page, "The worst failures"), section(page, "Most confused categories")
    assert [p.text for p in worst.find("p")] == ["Every query has a hit in first place."] and not worst.find("article")
    assert [p.text for p in confused.find("p")] == ["No picture is nearest to a caption of another category."]


def test_a_picture_that_is_gone_leaves_its_key(embeddings, examples, now):
    unreadable, missing, *others = examples.images(embeddings)
    pictures = {unreadable: b"no picture"} | {image: encoded_picture(image) for image in others}
    page = page_of(now, embeddings, pictures=pictures, examples=examples)
    gone = {element.text for element in page.find("span", "gone")}
    assert gone <= {f"no picture: {embeddings.image_key[image]}" for image in (unreadable, missing)} and gone


# ----------------------------------------------------------------------------------------------- the page as such


def test_the_sections_facts_and_jump_links(page, now):
    assert [heading.text for heading in page.find("section") for heading in heading.find("h2")] == [
        *SECTIONS,
        "About these numbers",
    ]
    (facts,) = page.find("dl")
    names, values = ([element.text for element in facts.find(tag)] for tag in ("dt", "dd"))
    assert dict(zip(names, values)) == {
        "to cite": f"product/v1 strict sha256:{now['data']['fingerprint']}",
        "weights": "<w>",
        "precision": "fp32",
        "shards": "valid.tar",
        "data": "120 images, 60 products, 60 captions",
        "left out": "3 empty file",
        "compared with": "base",
    }
    assert page.find("title")[0].text == page.find("p", "kicker")[0].text == "Retrieval with model"
    anchors = [link.attributes["href"] for link in page.find("nav")[0].find("a")]
    assert anchors == [f"#{part.attributes['id']}" for part in page.find("section")]


def test_the_page_is_self_contained(text, page):
    assert not page.find("script") and not page.find("link") and "url(" not in text and "@import" not in text
    sources = [element.attributes["src"] for element in page.find() if "src" in element.attributes]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_foreign_text_stays_text():
    words = ["<b>TOPS</b>", '" onload="x', "c\ud800", "d\x1b[2J", "{{ 7 * 7 }}", "{% include 'x' %}"]
    embeddings = embedded_catalogue(products=6, views=1, captions=words, noise=3.0)
    embeddings.category = texts(words)
    embeddings.image_key = texts(words)
    examples = chosen.pick(embeddings)
    results = results_of(embeddings, "<u>name</u>") | {"warnings": ["<i>warned</i>"]}
    pictures = {image: encoded_picture(image) for image in examples.images(embeddings)[::2]}
    answer = {
        "query": examples.sample[0].query,
        "rank": 2,
        "answers": [{"name": "<img src=x>", "hit": False, "score": 0.5}],
    }
    examples.before = {
        "text_to_image": [answer | {"query": chosen.name_of(embeddings, "text_to_image", answer["query"])}]
    }
    page = page_of(results, embeddings, results | {"name": "<img src=x>.json"}, pictures, examples)
    assert not page.find("u") and not [e for e in page.find("b") if e.text == "TOPS"]
    assert not [e for e in page.find() if "onload" in e.attributes]
    assert "x" not in [e.attributes.get("src") for e in page.find("img")]
    assert (
        page.find("title")[0].text == "Retrieval with <u>name</u>" and page.find("p", "note")[0].text == "<i>warned</i>"
    )
    assert page.find("dd")[-1].text == "<img src=x>.json"
    assert "no picture: <img src=x>" in [e.text for e in page.find("span", "gone")]
    assert {e.text for e in page.find("p")} >= set(words) - {"d\x1b[2J"}
    assert {e.text for e in page.find("bdi")} >= {words[0], words[1], words[4]}


def test_sixty_queries_stay_under_two_megabytes_whatever_the_pictures():
    """Noise is what JPEG keeps worst; a caption that is a book is cut, and the cut is counted."""
    captions = [f"Caption {number:02d} " + "x" * 3000 for number in range(60)]
    embeddings = embedded_catalogue(products=60, views=8, noise=3.0, captions=captions)
    examples = chosen.pick(embeddings)
    examples.before = chosen.before(embedded_catalogue(60, 8, noise=6.0, captions=captions), None, examples, embeddings)
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 200).convert("RGB").save(noise, "PNG")
    results = results_of(embeddings)
    text = report.render(
        results, embeddings, examples, dict.fromkeys(examples.images(embeddings), noise.getvalue()), results
    )
    assert len(text.encode()) < 2_000_000 and text.count("data:image/jpeg") > 300
    assert "(1,511 more characters)" in text


# --------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def opened(browser, text, tmp_path_factory):
    """The page as a file, open at the width of a phone."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(text, encoding="utf-8", errors="replace")
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(file.as_uri())
    return page


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")


def test_keyboard_alone_reaches_everything(opened, page):
    """Every link, box and fold in turn; Enter opens a fold."""
    reached = []
    for _ in range(200):
        opened.keyboard.press("Tab")
        focused = opened.evaluate("(document.activeElement.outerHTML + document.activeElement.parentElement.open)")
        if focused in reached or focused.startswith("<body"):
            break
        reached.append(focused)
        if focused.startswith("<summary"):
            opened.keyboard.press("Enter")
            assert opened.evaluate("document.activeElement.parentElement.open")
    counts = [sum(focused.startswith(f"<{tag}") for focused in reached) for tag in ("a ", "summary", "input")]
    assert counts == [len(page.find(tag)) for tag in ("a", "summary", "input")]
    assert opened.title() == "Retrieval with model"  # the script in a caption never ran


def test_the_right_answer_of_a_failed_query_is_seen(opened, examples):
    failed = [example for example in examples.sample + examples.worst if example.is_failed]
    unfold(opened)
    wanted = opened.locator(".wanted")
    assert wanted.count() == len(failed) > 10
    for number, example in enumerate(failed):
        shown = wanted.nth(number).locator("img" if example.direction == "text_to_image" else "p")
        box = shown.bounding_box()
        assert shown.is_visible() and 0 <= box["x"] <= 400 - box["width"] and min(box["width"], box["height"]) >= 10
    assert opened.evaluate("[...document.images].every((picture) => picture.naturalWidth > 0)")


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_nothing_is_wider_than_the_screen(opened, width):
    unfold(opened)
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    tiles = opened.evaluate("[...document.querySelectorAll('li .tile')].map((e) => [e.clientWidth, e.clientHeight])")
    assert all(abs(w - h) <= 1 and w > 30 for w, h in tiles)  # equal squares
    out = """[...document.querySelectorAll('td, th, p, h5, .track')].filter((e) =>
        e.getBoundingClientRect().right > innerWidth + 1 || (e.scrollWidth > e.clientWidth + 1 && e.tagName == 'P')).length"""
    assert opened.evaluate(out) == 0


def test_axe_finds_no_fault(browser, embeddings, base, now, before, tmp_path):
    """All that a page can have, with few queries: axe looks at each element against all that lie around it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    few = chosen.pick(embeddings, queries=6)
    few.before = chosen.before(base, None, few, embeddings)
    results = now | {"zero_shot": zero_shot_of(20), "retention": RETENTION, "warnings": ["A warning"]}
    pictures = {image: encoded_picture(image) for image in few.images(embeddings)[1:]}
    (tmp_path / "page.html").write_text(report.render(results, embeddings, few, pictures, before), encoding="utf-8")
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto((tmp_path / "page.html").as_uri())
    unfold(page)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert [(fault["id"], fault["impact"], fault["nodes"][0]["html"]) for fault in found] == []
    page.close()


def test_paper_shows_what_is_folded(opened):
    opened.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = false })")
    count = "[...document.querySelectorAll('article')].filter((e) => e.checkVisibility({contentVisibilityAuto: true}) && e.clientHeight > 0).length"
    opened.emulate_media(media="screen")
    assert opened.evaluate(count) == 12
    opened.emulate_media(media="print")
    assert opened.evaluate(count) == opened.locator("article").count() > 40
    opened.emulate_media(media="screen")


def test_a_category_is_written_whole(opened):
    opened.set_viewport_size({"width": 400, "height": 800})
    assert re.fullmatch(r"SHOES 30", opened.locator(".dots tbody th").first.inner_text().replace("\n", " "))
