"""Disputed pairs: which they are, and the page in a real Chromium, from a tick to the file that --judgements takes."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.retrieval import disputed, judgements, protocols, ranking, truth
from clip_finetuning.retrieval.embeddings import texts
from tests.helpers import embedded_catalogue, parsed_page

NASTY = '=cmd|\'</script><img src=x onerror="document.title=\'owned\'">", "b'


def catalogue():
    """Four products of one view; 0 to 2 have the same attributes, 0 and 1 look much alike, 2 does not."""
    captions = [NASTY, "caption 1", "caption 2", "caption 3"]
    mine = embedded_catalogue(products=4, views=1, captions=captions)
    mine.category[:] = "TOPS"
    mine.attributes = texts([{"colour": "red"}] * 3 + [{"colour": "blue"}])
    mine.looks = np.zeros((4, 200), np.uint8)
    mine.looks[1, 0], mine.looks[2, :8], mine.looks[1, 8:] = 0b111, 255, 6
    return mine


def picture(number):
    buffer = io.BytesIO()
    Image.effect_noise((200, 300), 60 + number).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def page_of(mine, pairs, name="d.csv"):
    return disputed.page(mine, pairs, {number: picture(number) for number in range(3)}, name)


def test_what_looks_alike_and_has_equal_attributes_is_disputed_unless_it_was_judged():
    mine = catalogue()
    pairs = disputed.find(mine, truth.truth_of(mine))
    assert [(pair.text, pair.image, pair.own, pair.bits, pair.levels) for pair in pairs] == [
        (0, 1, 0, 3, 6),
        (1, 0, 1, 3, 6),
    ]
    assert all(set(pair.ranks) == {"text_to_image", "image_to_text"} for pair in pairs)
    kept = {}
    protocols.evaluate(mine, "product", (1,), kept=kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "rank_positives", lambda *_, **__: pytest.fail("ranked again"))
        assert disputed.find(mine, truth.truth_of(mine), kept) == pairs
    verdicts = judgements.Judgements(*((np.array([n]), np.array([1 - n])) for n in (0, 1)), 0, 0, "f")
    assert disputed.find(mine, truth.truth_of(mine, judged=verdicts)) == []


def test_the_page_escapes_and_stays_small(monkeypatch):
    mine = catalogue()
    pairs = disputed.find(mine, truth.truth_of(mine))
    root = parsed_page(page_of(mine, pairs))
    assert root.find("p", "caption")[0].text == " ".join(NASTY.split()) and not root.find("img", "x")
    assert "1 more pairs are in d.csv alone" not in root.text
    monkeypatch.setattr(disputed, "PAGE_BYTES", len(disputed.data_url(picture(0), disputed.THUMBNAIL)) * 3)
    root = parsed_page(page_of(mine, pairs))
    assert len(root.find("fieldset")) == 1 and "1 more pairs are in d.csv alone" in root.text
    assert "There are none." in parsed_page(page_of(mine, [])).text
    without = parsed_page(disputed.page(mine, pairs, {1: b"damaged"}, "d.csv"))
    assert [one.text for one in without.find("span", "gone")] == ["no picture"] * 4


def test_verdicts_are_ticked_by_keyboard_and_come_back(browser, tmp_path):
    mine = catalogue()
    pairs = disputed.find(mine, truth.truth_of(mine))
    (tmp_path / "d.html").write_text(page_of(mine, pairs), encoding="utf-8")
    faults = []
    for width in (400, 1200):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((tmp_path / "d.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.title() == "Disputed pairs"
        assert all(page.evaluate("[...document.images].map((image) => image.naturalWidth > 0)"))
        page.focus("fieldset >> nth=0 >> input:checked")
        page.keyboard.press("ArrowRight")  # from undecided round to the first: right
        page.check("fieldset >> nth=1 >> input[value=wrong]")
        assert page.inner_text("#judged") == "2"
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "d.csv")
        assert download.value.suggested_filename == "d.csv"
        page.close()
    assert faults == []
    found = judgements.read([tmp_path / "d.csv"], mine)
    assert [column.tolist() for column in (*found.right, *found.wrong)] == [[0], [1], [1], [0]]
    lines = (tmp_path / "d.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and lines[1].startswith("right,\"'=cmd")
