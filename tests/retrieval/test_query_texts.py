"""Texts that ask besides the captions: how they are made, what they find, and their arrays in an embeddings file."""

from pathlib import Path

import numpy as np
import pytest

from clip_finetuning.retrieval import comparison, protocols, query_making, query_texts, table
from clip_finetuning.retrieval import embeddings as embeddings_file
from clip_finetuning.retrieval.query_texts import QueryTexts, rows_of
from clip_finetuning.retrieval.results import measure_embeddings
from clip_finetuning.runtime.text import same_caption_key
from tests.helpers import embedded_catalogue


def asking(found, rows, note="by hand"):
    """QueryTexts of {(text, group): language}, with rows of a unit matrix for embeddings."""
    return rows_of(np.eye(16, dtype=np.float32)[rows], found, note)


@pytest.fixture
def catalogue():
    """Four products of two views, each on an axis of its own; SHOES are P0 and P2, TOPS P1 and P3."""
    embeddings = embedded_catalogue(products=4, views=2)
    embeddings.image_embeddings = np.eye(16, dtype=np.float32)[[0, 0, 1, 1, 2, 2, 3, 3]]
    return embeddings


# ------------------------------------------------------------------------------------------------- what is asked


def test_names_in_other_prompts_are_cited_otherwise_and_stay_so_in_a_file(catalogue, monkeypatch, tmp_path):
    monkeypatch.setattr(query_making.zero_shot, "embed_names", lambda *_: np.eye(16, dtype=np.float32)[:2])
    usual, same, other = (
        query_making.make(None, catalogue, ["category"], "fp32", prompts=prompts)
        for prompts in (None, query_making.zero_shot.PROMPTS, ["a {}", "{}"])
    )
    embeddings_file.save(tmp_path / "e.npz", catalogue, query_texts.arrays(other))
    again = query_texts.load(tmp_path / "e.npz", 16, ["category_to_product"])
    lines = [
        measure_embeddings(catalogue, ["category_to_product"], (1,), queries=made)["cite"]
        for made in (usual, same, other, again)
    ]
    assert lines[0] == lines[1] != lines[2] == lines[3]
    assert again["category"].note == other["category"].note


def test_a_keyword_caption_of_several_products_finds_all_their_images(catalogue):
    """`red` lies on P0 alone, yet P1's images are hits too; `blue`, P2's, lies on P3."""
    found = {("red", "P0"): "", ("red", "P1"): "", ("blue", "P2"): "", ("green", "P3"): ""}
    queries = {"short": asking(found, [0, 0, 3, 3])}
    result = protocols.evaluate(catalogue, "short_queries", (1, 2), queries=queries)
    forward, back = result["text_to_image"], result["image_to_text"]
    assert forward["queries"] == 3 and forward["gallery"] == 8
    assert forward["recall@1"] == pytest.approx(2 / 3)
    assert forward["chance"]["recall@1"] == pytest.approx((4 / 8 + 2 / 8 + 2 / 8) / 3)
    assert back["gallery"] == 3 and back["queries"] == 8
    # P0 finds red, P1 no text at all (all tie), P2 none of its own, P3 green and blue alike, so blue, a rival, is first.
    assert back["recall@1"] == pytest.approx(2 / 8)
    assert "each of 3 distinct keyword captions" in result["protocol"]
    assert "shared by several products: 1 (2 products), whose items are all hits" in result["protocol"]
    assert set(forward["by_product"]["product"]) <= {"P0", "P1", "P2", "P3"}


def test_the_name_of_a_category_finds_any_of_its_products(catalogue):
    catalogue.category = np.array(["SHOES", "SHOES", "TOPS", "TOPS", "SHOES", "SHOES", "", ""], dtype=object)
    queries = {"category": asking({("SHOES", "SHOES"): "", ("TOPS", "TOPS"): ""}, [2, 3])}
    result = protocols.evaluate(catalogue, "category_to_product", (1, 4), queries=queries)
    assert set(result) == {"protocol", "text_to_image"}
    numbers = result["text_to_image"]
    assert (numbers["queries"], numbers["gallery"]) == (2, 8)
    assert numbers["recall@1"] == 0.5  # TOPS lies on pictures that have no category
    assert numbers["by_product"]["product"] == numbers["by_product"]["category"] == ["SHOES", "TOPS"]
    assert (
        "each of 2 names of categories" in result["protocol"] and "intervals are over categories" in result["protocol"]
    )


def test_categories_that_ask_are_compared_as_such(catalogue):
    queries = {"category": asking({("SHOES", "SHOES"): "", ("TOPS", "TOPS"): ""}, [2, 3])}
    results = measure_embeddings(catalogue, ["category_to_product"], (1, 10), queries=queries)
    results |= {"name": "a.json", "data": {"fingerprint": "f"}}
    lines = comparison.compare(results, results).splitlines()
    place = lines.index("category_to_product, text->image")  # too long for the column of labels
    assert lines[place + 1].split() == ["A", "B", "B", "-", "A", "[95", "%]"]
    assert lines[place + 2].startswith("  Recall@1 ") and lines[place + 1].index(" A ") > 26
    assert len(lines) == place + 4  # no category is judged within itself
    assert max(map(len, lines)) <= 80


def test_results_that_ask_other_texts_are_not_compared(catalogue):
    def results(name, text):
        queries = {"short": asking({(text, "P0"): "", ("blue", "P1"): ""}, [0, 1])}
        measured = measure_embeddings(catalogue, ["product", "short_queries"], (1, 10), queries=queries)
        return measured | {"name": name, "data": {"fingerprint": "f"}}

    red, green = results("a.json", "red"), results("b.json", "green")
    assert red["protocols"]["short_queries"]["cite"] != green["protocols"]["short_queries"]["cite"]
    assert red["protocols"]["product"]["cite"] == green["protocols"]["product"]["cite"]
    text = " ".join(comparison.compare(red, green).split())
    assert "left out: short_queries: the two ask other texts" in text and "product, text->image" in text
    assert "short_queries, text->image" in comparison.compare(red, results("c.json", "red"))


def test_all_wordings_ask_and_each_language_against_its_own_texts(catalogue):
    found = {
        ("Shoe", "P0"): "en", ("Schuh", "P0"): "de", ("Top", "P1"): "en de", ("Boot", "P2"): "en", ("Rock", "P3"): "",
    }  # fmt: skip
    queries = {"wording": asking(found, [0, 5, 1, 2, 3])}
    result = protocols.evaluate(catalogue, "all_captions", (1, 5), queries=queries)
    assert result["text_to_image"]["queries"] == 5
    assert result["text_to_image"]["recall@1"] == pytest.approx(4 / 5)  # `Schuh` lies on no picture
    assert list(result["languages"]) == ["en", "de"]
    english, german = result["languages"]["en"], result["languages"]["de"]
    assert english["text_to_image"]["recall@1"] == 1 and english["text_to_image"]["queries"] == 3
    assert german["text_to_image"]["recall@1"] == 0.5 and german["image_to_text"]["gallery"] == 2
    assert german["image_to_text"]["without_positive"] == 4  # P2 and P3 say nothing in German


def test_all_captions_equal_is_one_query_that_finds_everything(catalogue):
    found = {("same", f"P{number}"): "" for number in range(4)}
    queries = {"short": asking(found, [0] * 4), "wording": asking(found, [0] * 4)}
    for protocol in ("short_queries", "all_captions"):
        result = protocols.evaluate(catalogue, protocol, (1,), queries=queries)
        assert result["text_to_image"]["queries"] == 1
        assert result["text_to_image"]["recall@1"] == result["image_to_text"]["recall@1"] == 1
        assert "languages" not in result


# ---------------------------------------------------------------------------------------------------- making


def made_of(captions, categories=None, **columns):
    embeddings = embedded_catalogue(products=len(captions), views=1, captions=captions)
    embeddings.subcategory = np.full(len(captions), "", dtype=object)
    if categories:
        embeddings.category = np.array(categories, dtype=object)
    for name, column in columns.items():
        setattr(embeddings, name, column)
    return query_making.short_captions(embeddings)


def test_keyword_captions_say_how_they_were_made():
    captions = ["A long red dress. With buttons.", "Long Red  dress", "of the and", "...", "Shoe"]
    found, note = made_of(captions, ["DRESSES", "DRESSES", "HATS & CAPS", "", "SHOES"])
    assert [*found] == [("long red dress", "P0"), ("Long Red dress", "P1"), ("hats caps", "P2"), ("Shoe", "P4")]
    assert len({same_caption_key(text) for text, _ in found}) == 3
    assert (
        "of 5 captions, with at most 8 words each: 3 by leaving out clauses and stop words, 1 by the category" in note
    )
    assert "1 not at all, and are left out" in note


def test_attributes_make_better_keywords_than_a_caption():
    said = np.array([{"colour": "Red", "material": "Cotton Jersey"}, {}], dtype=object)
    found, note = made_of(["Our new piece. Love it.", "Blue shoe"], ["DRESSES", "SHOES"], attributes=said)
    assert [text for text, _ in found] == ["red cotton jersey dresses", "Blue shoe"]
    assert "1 by attributes and category, 1 by leaving out" in note


def test_nobody_asks_for_true_or_false():
    said = np.array([{"waterproof": "true", "on_sale": "false", "colour": "Red"}, {"on_sale": "true"}], dtype=object)
    found, _ = made_of(["Our new piece.", "Blue shoe"], ["DRESSES", "SHOES"], attributes=said)
    assert [text for text, _ in found] == ["red dresses", "Blue shoe"]


def test_what_the_data_cannot_be_asked_is_left_out_and_said():
    """The rest is measured: nobody embeds a catalogue again for it."""
    embeddings = embedded_catalogue(products=2, views=1, captions=["of the", "..."])
    embeddings.category[:] = embeddings.subcategory[:] = ""
    queries = query_making.make(None, embeddings, ["short", "category"], "fp32")
    assert queries == {}
    asked = ["product", "image_to_image", "same_category", "short_queries", "category_to_product"]
    results = measure_embeddings(embeddings, asked, (1, 10), queries=queries)
    assert list(results["protocols"]) == ["product"]
    shown = " ".join(table.render(results).split())
    for protocol, why in {
        "image_to_image": "every product has one view",
        "same_category": "the data name none",
        "short_queries": "no caption has a word to ask for, all are stop words and marks",
        "category_to_product": "the data name no categories",
    }.items():
        assert why in results["not_measured"][protocol]
        assert f"not measured: {results['not_measured'][protocol]}" in shown
    assert max(map(len, table.render(results).splitlines())) <= 80
    with pytest.raises(query_texts.NothingToAsk, match="image_to_image: .*; same_category needs"):
        measure_embeddings(embeddings, ["image_to_image", "same_category"], (1, 10))
    results = measure_embeddings(embeddings, ["image_to_image", "pair"], (1, 10))
    assert results["protocol"] == "pair" and set(results["recall@10"]) == {"text_to_image", "image_to_text"}


def test_texts_without_a_finite_embedding_are_left_out_and_counted(monkeypatch):
    rows = np.eye(16, dtype=np.float32)[:6]
    rows[2] = np.nan
    monkeypatch.setattr(query_making, "embed_texts", lambda model, distinct, precision: rows[: len(distinct)])
    made = query_making.make(None, embedded_catalogue(), ["short"], "fp32")["short"]
    assert len(made.texts) == len(made.embeddings) == 5 and np.isfinite(made.embeddings).all()
    assert "1 have no finite embedding and are left out" in made.note
    rows[:] = np.nan
    with pytest.raises(ValueError, match="none of 6 query texts has a finite embedding"):
        query_making.make(None, embedded_catalogue(), ["short"], "fp32")


# -------------------------------------------------------------------------------------------------- the file


@pytest.fixture(params=["e.npz", "e/"])
def written(tmp_path, catalogue, request):
    queries = {"short": asking({("rot\ud83d", "P0"): "de en", ("blau", "P1"): ""}, [0, 1], "how they were made")}
    path = f"{tmp_path}/{request.param}"
    embeddings_file.save(path, catalogue, query_texts.arrays(queries))
    return path, queries["short"]


def test_a_file_holds_the_texts_too(written):
    path, short = written
    (kind, read), *more = query_texts.load(path, 16, ["product", "short_queries"]).items()
    assert (kind, more) == ("short", [])
    assert isinstance(read, QueryTexts) and read.note == short.note
    for name in ("texts", "groups", "languages"):
        assert getattr(read, name).tolist() == getattr(short, name).tolist()
    assert np.array_equal(read.embeddings, short.embeddings)
    assert embeddings_file.load(path).image_key.tolist() == [f"{number:09d}" for number in range(8)]


@pytest.mark.parametrize(
    ("protocol", "flag"), [("category_to_product", "--queries category"), ("all_captions", "--captions all")]
)
def test_a_file_without_the_texts_says_how_to_have_them(written, protocol, flag):
    with pytest.raises(ValueError, match=f"e(.npz|/) has no texts for {protocol}; .*{flag} --save-embeddings"):
        query_texts.load(written[0], 16, [protocol])


@pytest.mark.parametrize(
    ("array", "value"),
    [
        ("short_query_embeddings", np.eye(3)),
        ("short_query_embeddings", np.full((2, 16), np.nan)),
        ("short_query_embeddings", np.eye(16)[:1]),
        ("short_query_groups", np.frombuffer(b"[1", dtype=np.uint8)),
        ("short_query_languages", np.frombuffer(b"[]", dtype=np.uint8)),
        ("short_query_note", None),
    ],
)
def test_damaged_texts_are_refused_in_a_line(written, array, value):
    path, _ = written
    if path.endswith("/"):
        (Path(path) / f"{array}.npy").unlink()
        if value is not None:
            np.save(Path(path) / f"{array}.npy", value)
    else:
        with np.load(path) as file:
            arrays = dict(file) | {array: value}
        np.savez(path, **{name: held for name, held in arrays.items() if held is not None})
    with pytest.raises(ValueError, match="holds damaged query texts"):
        query_texts.load(path, 16, ["short_queries"])
