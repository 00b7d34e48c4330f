"""The report page: its elements say what was measured; opened in a real browser where there is one."""

import io
import re
import shutil
import subprocess

import pytest
from PIL import Image

from clip_finetuning.retrieval import report
from clip_finetuning.retrieval.embeddings import texts
from clip_finetuning.retrieval.names import DIRECTIONS
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue, parsed_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NASTY = "<script>alert('x')</script> \"quoted\" & more"
SECTIONS = ["Recall", "By category", "A sample of queries", "The worst failures", "Most confused categories"]


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 400), colour).save(buffer, "PNG")
    return buffer.getvalue()


def results_of(embeddings, name="model"):
    about = {
        "name": name,
        "model": {"name": name, "weights": "<w>", "precision": "fp32"},
        "data": {"pattern": "valid.tar", "fingerprint": embeddings.fingerprint(), "skipped": {"empty file": 3}},
    }
    return measure_embeddings(embeddings, ["product"], (1, 5, 10)) | about


def catalogue(noise, **changes):
    captions = [NASTY] + [f"Caption {number}" for number in range(1, 60)]
    return embedded_catalogue(products=60, views=2, noise=noise, captions=captions, **changes)


@pytest.fixture(scope="module")
def embeddings():
    """Of a model whose queries succeed and fail."""
    return catalogue(noise=1.8)


@pytest.fixture(scope="module")
def examples(embeddings):
    return report.pick_examples(embeddings)


@pytest.fixture(scope="module")
def text(embeddings, examples):
    """The page of a model, with the worse one before it."""
    pictures = {image: png((image * 2, 99, 9)) for image in examples.images()}
    return report.render(results_of(embeddings), embeddings, examples, pictures, results_of(catalogue(4.0), "base"))


@pytest.fixture(scope="module")
def page(text):
    return parsed_page(text)


def section(page, title):
    (found,) = (part for part in page.find("section") if part.find("h2")[0].text == title)
    return found


def table_of(part):
    """Rows of texts."""
    (table,) = part.find("table")
    return [[cell.text for cell in row.find("th") + row.find("td")] for row in table.find("tr")]


# ------------------------------------------------------------------------------------------- what is shown


def test_what_is_shown_is_what_was_asked_for(embeddings):
    examples = report.pick_examples(embeddings, queries=60, seed=3)
    assert len(examples.sample) == 40
    assert len(examples.worst) <= 20
    assert examples == report.pick_examples(embeddings, queries=60, seed=3)
    assert examples != report.pick_examples(embeddings, queries=60, seed=4)
    for example in examples.sample + examples.worst:
        asked, answered = embeddings.text_product, embeddings.image_product
        if example.direction == "image_to_text":
            asked, answered = answered, asked
        assert len(example.answers) == 5
        assert (example.rank <= 5) == any(example.hits) == (not example.is_failed)
        assert example.hits == [answered[answer.item] == asked[example.query] for answer in example.answers]
        assert [answer.score for answer in example.answers] == sorted((a.score for a in example.answers), reverse=True)
    ranks = [example.rank for example in examples.worst if example.direction == "image_to_text"]
    assert ranks == sorted(ranks, reverse=True) and min(ranks) > 1


def test_what_is_wanted_is_the_best_of_the_right_answers(embeddings, examples):
    failed = [example for example in examples.worst if example.is_failed]
    assert {example.direction for example in failed} == set(DIRECTIONS)
    for example in examples.sample + examples.worst:
        scores = embeddings.image_embeddings @ embeddings.text_embeddings.T
        if example.direction == "text_to_image":
            own, scores = embeddings.image_product == embeddings.text_product[example.query], scores[:, example.query]
        else:
            own, scores = embeddings.text_product == embeddings.image_product[example.query], scores[example.query]
        assert own[example.wanted.item]
        assert example.wanted.score == pytest.approx(scores[own].max(), abs=1e-6)
        assert (scores > example.wanted.score + 1e-6).sum() < example.rank


def test_pictures_are_those_that_the_page_shows(embeddings, examples, page):
    shown = {image.attributes["alt"] for image in page.find("img")}
    assert shown == set(embeddings.image_key[examples.images()])
    assert examples.keys(embeddings) == {image: embeddings.image_key[image] for image in examples.images()}


def test_a_key_of_two_samples_stands_for_no_picture(embeddings, examples):
    twice = catalogue(noise=1.8)
    first = examples.images()[0]
    twice.image_key[first] = twice.image_key[first - 1]
    assert set(examples.keys(twice)) == {*examples.images()} - {first, first - 1}


def test_confused_categories_are_counted():
    """All pictures of SHOES lie where the captions of TOPS do, and one of TOPS where one of SHOES does."""
    confused = embedded_catalogue(products=6, views=2)
    for product in (0, 2, 4):
        confused.image_embeddings[2 * product : 2 * product + 2] = confused.text_embeddings[product + 1]
    confused.image_embeddings[2] = confused.text_embeddings[0]
    examples = report.pick_examples(confused)
    assert examples.confusions == [("SHOES", "TOPS", 6, 1.0), ("TOPS", "SHOES", 1, pytest.approx(1 / 6))]
    shown = parsed_page(report.render(results_of(confused), confused, examples, {}))
    assert table_of(section(shown, "Most confused categories"))[1:] == [
        ["SHOES", "TOPS", "6", "100.0%"],
        ["TOPS", "SHOES", "1", "16.7%"],
    ]


# ---------------------------------------------------------------------------------------------- the page


def test_a_failed_query_shows_what_it_should_have_found_and_no_other_does(embeddings, examples, page):
    for title, shown in (("A sample of queries", examples.sample), ("The worst failures", examples.worst)):
        articles = section(page, title).find("article")
        assert len(articles) == len(shown)
        assert any(example.is_failed for example in shown) and not all(example.is_failed for example in shown)
        for article, example in zip(articles, shown):
            wanted = article.find(name="wanted")
            assert len(wanted) == example.is_failed
            if not wanted:
                continue
            assert wanted[0].find(name="mark")[0].text == f"should have found, {example.wanted.score:.3f}"
            if example.direction == "text_to_image":
                (picture,) = wanted[0].find("img")
                assert picture.attributes["alt"] == embeddings.image_key[example.wanted.item]
            else:
                (caption,) = wanted[0].find("p")
                assert caption.text == embeddings.captions[example.wanted.item]


def test_each_answer_is_marked_by_whether_it_is_right(embeddings, examples, page):
    for article, example in zip(section(page, "A sample of queries").find("article"), examples.sample):
        rank = article.find("header")[0].find("small")[0].text
        assert rank == ("hit in first place" if example.rank == 1 else f"first hit at rank {example.rank}")
        items = article.find("li")
        assert [item.classes for item in items] == [{"hit"} if hit else {"miss"} for hit in example.hits]
        for item, hit, answer in zip(items, example.hits, example.answers):
            assert item.find(name="mark")[0].text == f"{'✓ hit' if hit else '✗'} {answer.score:.3f}"
            if example.direction == "text_to_image":
                assert item.find("img")[0].attributes["alt"] == embeddings.image_key[answer.item]
            else:
                assert item.find("p")[0].text == embeddings.captions[answer.item]


def test_the_sections_and_facts(page):
    assert [heading.text for heading in page.find("h2")] == SECTIONS
    (facts,) = page.find("dl")
    names, values = ([element.text for element in facts.find(tag)] for tag in ("dt", "dd"))
    assert dict(zip(names, values)) == {
        "weights": "<w>",
        "shards": "valid.tar",
        "data": "120 images, 60 products, 60 captions",
        "left out": "3 empty file",
        "compared with": "base",
    }
    assert page.find("title")[0].text == page.find("h1")[0].text == "Retrieval with model"


def test_the_page_is_self_contained_and_escaped(text, page):
    assert not page.find("script") and not page.find("link") and "url(" not in text and "@import" not in text
    links = [e.attributes[name] for e in page.find() for name in ("src", "href") if name in e.attributes]
    assert links and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert any(caption.text == NASTY for caption in page.find("p"))


def test_foreign_text_stays_text():
    words = ["<b>TOPS</b>", '" onload="x', "c\ud800", "d\x1b[2J", "{{ 7 * 7 }}", "{% include 'x' %}"]
    embeddings = embedded_catalogue(products=6, views=1, captions=words, noise=3.0)
    embeddings.category = texts(words)
    embeddings.image_key = texts(words)
    examples = report.pick_examples(embeddings)
    results = results_of(embeddings, "<u>name</u>") | {"warnings": []}
    pictures = {image: png("red") for image in examples.images()[::2]}
    text = report.render(results, embeddings, examples, pictures, results | {"name": "<img src=x>.json"})
    page = parsed_page(text)
    assert not page.find("u") and not [e for e in page.find("b") if e.text == "TOPS"]
    assert not [e for e in page.find() if "onload" in e.attributes]
    assert "x" not in [e.attributes.get("src") for e in page.find("img")]
    assert page.find("h1")[0].text == "Retrieval with <u>name</u>"
    assert page.find("dd")[-1].text == "<img src=x>.json"
    assert {e.text for e in page.find("p")} >= set(words) - {"d\x1b[2J"}
    assert {e.text.rpartition(" ")[0] for e in page.find(name="name")} >= {words[0], words[1], words[4]}


def test_the_headline_has_intervals_and_what_was_gained(embeddings, page):
    head, *rows = table_of(section(page, "Recall"))
    assert head == ["direction", "measure", "value", "95 % interval", "chance", "before", "gain, paired"]
    assert [row[:2] for row in rows[:6]] == [
        ["text → image", name] for name in ("Recall@1", "Recall@5", "Recall@10", "median rank", "MRR", "mAP")
    ]
    now, before = (results_of(e)["protocols"]["product"] for e in (embeddings, catalogue(4.0)))
    for row, way in ((rows[2], "text_to_image"), (rows[8], "image_to_text")):
        low, high = now[way]["intervals"]["recall@10"]
        value, old = now[way]["recall@10"], before[way]["recall@10"]
        assert row[2:6] == [
            f"{value:.3f}",
            f"{low:.3f} – {high:.3f}",
            f"{now[way]['chance']['recall@10']:.3f}",
            f"{old:.3f}",
        ]
        assert row[6].startswith(f"{value - old:+.3f} [") and row[6].endswith("] better")
    gains = section(page, "Recall").find("span", "better")
    assert len(gains) == 6 and not section(page, "Recall").find("span", "worse")


def test_a_page_of_one_result_compares_nothing(embeddings, examples):
    page = parsed_page(report.render(results_of(embeddings), embeddings, examples, {}))
    assert table_of(section(page, "Recall"))[0] == ["direction", "measure", "value", "95 % interval", "chance"]
    assert "compared with" not in [name.text for name in page.find("dt")] and not page.find("i", "before")


@pytest.mark.parametrize("change", ["rules", "data", "protocol"])
def test_what_cannot_be_compared_is_said_not_shown(embeddings, examples, change):
    """Older rules that count other hits, other data, a result without this protocol."""
    before = results_of(embeddings, "base")
    if change == "rules":
        before |= {"rules": 1, "num_captions": 61}
    elif change == "data":
        before["data"] |= {"fingerprint": "other"}
    else:
        before["protocols"] = {"pair": before["protocols"]["product"]}
    page = parsed_page(report.render(results_of(embeddings), embeddings, examples, {}, before))
    assert page.find("dt")[-1].text == "not comparable with" and page.find("dd")[-1].text == "base"
    assert len(table_of(section(page, "Recall"))[0]) == 5 and not page.find("i", "before")


def test_a_bar_is_as_long_as_the_recall(embeddings, page):
    charts = section(page, "By category").find("div", "bars")
    assert [len(chart.find("i", "before")) for chart in charts] == [2, 2]
    now, before = (results_of(e)["protocols"]["product"] for e in (embeddings, catalogue(4.0)))
    for chart, way in zip(charts, DIRECTIONS):
        names = [name.text for name in chart.find(name="name")]
        assert names == [f"{name} {numbers['products']}" for name, numbers in now[way]["categories"].items()]
        for name, track in zip(now[way]["categories"], chart.find("div", "track")):
            value, old = now[way]["categories"][name], before[way]["categories"][name]
            low, high = value["intervals"]["recall@10"]
            assert track.find("i", "bar")[0].attributes["style"] == f"width:{value['recall@10']:.1%}"
            assert track.find("i", "range")[0].attributes["style"] == f"left:{low:.1%};width:{high - low:.1%}"
            assert track.find("i", "before")[0].attributes["style"] == f"left:{old['recall@10']:.1%}"


def test_categories_beyond_the_chart_are_counted():
    embeddings = embedded_catalogue(products=report.BARS + 3, views=1)
    embeddings.category = texts(f"category {number}" for number in range(report.BARS + 3))
    page = parsed_page(report.render(results_of(embeddings), embeddings, report.pick_examples(embeddings), {}))
    chart = section(page, "By category")
    assert len(chart.find(name="name")) == 2 * report.BARS
    assert [p.text for p in chart.find("p")][1:] == ["3 smaller categories are left out."] * 2


def test_sixty_queries_stay_under_five_megabytes(text):
    assert len(text.encode()) < 5_000_000


def test_a_model_without_failures_has_none_to_show():
    embeddings = embedded_catalogue(products=60, views=2)
    examples = report.pick_examples(embeddings)
    page = parsed_page(report.render(results_of(embeddings), embeddings, examples, {}))
    worst, confused = (section(page, title) for title in SECTIONS[3:])
    assert [p.text for p in worst.find("p")] == ["Every query has a hit in first place."] and not worst.find("article")
    assert [p.text for p in confused.find("p")] == ["No picture is nearest to a caption of another category."]


def test_a_picture_that_is_gone_leaves_its_key(embeddings, examples):
    unreadable, missing, *others = examples.images()
    pictures = {unreadable: b"no picture"} | {image: png("red") for image in others}
    page = parsed_page(report.render(results_of(embeddings), embeddings, examples, pictures))
    gone = {element.text for element in page.find("span", "gone")}
    assert gone == {embeddings.image_key[image] for image in (unreadable, missing)}


# --------------------------------------------------------------------------------------------- in a browser


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_the_pictures_and_the_marks(text, page, tmp_path):
    count = """<script>addEventListener("load", () => {
      const pictures = [...document.images], loaded = pictures.filter((p) => p.naturalWidth > 0)
      const framed = (e) => getComputedStyle(e).borderTopColor != "rgba(0, 0, 0, 0)"
      const ruled = (e) => getComputedStyle(e).borderLeftStyle == "solid"
      const marked = [...document.querySelectorAll("li.hit")].filter(framed)
      const wanted = [...document.querySelectorAll(".wanted")].filter(ruled)
      const numbers = [pictures, loaded, marked, wanted].map((found) => found.length)
      document.title = [...numbers, document.documentElement.scrollWidth].join(" ")
    })</script>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", count + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--virtual-time-budget=5000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *flags, profile, "--dump-dom", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+) (\d+)</title>", shown)
    assert found, shown[:500]
    pictures, loaded, marked, wanted, width = map(int, found.groups())
    assert pictures == loaded == len(page.find("img")) > 60
    assert marked == len(page.find("li", "hit")) > 10
    assert wanted == len(page.find(name="wanted")) > 10
    assert width <= 500  # nothing sticks out on a phone
