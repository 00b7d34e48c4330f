"""The report page: numbers, marks and escaped captions; opened in a real browser where there is one."""

import html
import io
import re
import shutil
import subprocess

import pytest
from PIL import Image

from clip_finetuning.retrieval import report
from clip_finetuning.retrieval.protocols import evaluate
from tests.helpers import embedded_catalogue

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NASTY = "<script>alert('x')</script> \"quoted\" & more"


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 400), colour).save(buffer, "PNG")
    return buffer.getvalue()


def results_of(embeddings, name="model"):
    return {
        "name": name,
        "num_samples": len(embeddings.image_key),
        "num_products": 60,
        "num_captions": 60,
        "model": {"name": name, "weights": "<w>", "precision": "fp32"},
        "data": {"pattern": "valid.tar", "fingerprint": embeddings.fingerprint(), "skipped": {"empty file": 3}},
        "protocols": {"product": evaluate(embeddings, "product", (1, 5, 10))},
    }


@pytest.fixture(scope="module")
def page():
    captions = [NASTY] + [f"Caption {number}" for number in range(1, 60)]
    embeddings, before = (
        embedded_catalogue(products=60, views=2, noise=noise, captions=captions) for noise in (0.9, 2.0)
    )
    examples = report.pick_examples(embeddings)
    thumbnails = {image: report.thumbnail(png((image * 2, 99, 9))) for image in examples.images()}
    return report.render(results_of(embeddings), embeddings, examples, thumbnails, results_of(before, "base"))


def test_what_is_shown_is_what_was_asked_for():
    embeddings = embedded_catalogue(products=60, views=2, noise=0.9)
    examples = report.pick_examples(embeddings, queries=60, seed=3)
    assert len(examples.sample) == 40
    assert len(examples.worst) <= 20
    assert examples == report.pick_examples(embeddings, queries=60, seed=3)
    assert examples != report.pick_examples(embeddings, queries=60, seed=4)
    for example in examples.sample + examples.worst:
        assert len(example.answers) == 5
        assert (example.rank <= 5) == any(example.hits)
        if example.direction == "text_to_image":
            hits = [embeddings.image_product[n] == embeddings.text_product[example.query] for n in example.answers]
        else:
            hits = [embeddings.text_product[n] == embeddings.image_product[example.query] for n in example.answers]
        assert example.hits == hits
        asked = embeddings.text_product if example.direction == "text_to_image" else embeddings.image_product
        answered = embeddings.image_product if example.direction == "text_to_image" else embeddings.text_product
        assert answered[example.wanted] == asked[example.query]
        assert example.scores == sorted(example.scores, reverse=True)
    ranks = [example.rank for example in examples.worst if example.direction == "image_to_text"]
    assert ranks == sorted(ranks, reverse=True) and min(ranks) > 1


def test_a_query_without_a_hit_shows_what_it_should_have_found(page):
    articles = page.split("<article")[1:]
    assert all(('class="hit"' in article) != ("should be" in article) for article in articles)


def test_the_page_is_self_contained_and_escaped(page):
    assert "<script" not in page
    assert html.escape(NASTY) in page
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page)
    assert "url(" not in page
    assert "&lt;w&gt;" in page


def test_the_headline_has_intervals_and_the_comparison(page):
    assert "Recall@10" in page and "95 % interval" in page
    assert "better" in page and "compared with" in page
    assert "3 empty file" in page


def test_sixty_queries_stay_under_five_megabytes(page):
    assert len(page.encode()) < 5_000_000


def test_confused_categories_are_counted():
    embeddings = embedded_catalogue(products=60, views=2, noise=3.0)
    confusions = report.pick_examples(embeddings).confusions
    assert confusions
    assert all(asked != answered and 0 < share <= 1 for asked, answered, _, share in confusions)


def test_a_picture_that_is_gone_leaves_its_key():
    embeddings = embedded_catalogue(products=60, views=2)
    examples = report.pick_examples(embeddings)
    page = report.render(results_of(embeddings), embeddings, examples, {examples.images()[0]: None})
    assert '<span class="gone">000000' in page
    assert report.thumbnail(b"no picture") is None


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_the_pictures_and_the_marks(page, tmp_path):
    count = """<script>addEventListener("load", () => {
      const pictures = [...document.images], loaded = pictures.filter((p) => p.naturalWidth > 0)
      const marked = [...document.querySelectorAll("li.hit")].filter((e) => getComputedStyle(e).borderTopColor != "rgba(0, 0, 0, 0)")
      document.title = [pictures.length, loaded.length, marked.length, document.documentElement.scrollWidth].join(" ")
    })</script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", count + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--virtual-time-budget=5000"]
    command = [
        BROWSER,
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    pictures, loaded, marked, width = map(int, re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", shown).groups())
    assert pictures == loaded == page.count("<img ") > 60
    assert marked == page.count('<li class="hit">') > 10
    assert width <= 500  # nothing sticks out on a phone
