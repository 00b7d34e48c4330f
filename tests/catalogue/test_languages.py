"""Captions that carry a language: from columns named by it to the mapping, the shards and the batches of an evaluation."""

import json

import pytest

import clip_prep
from clip_finetuning.catalogue.columns import Columns
from clip_finetuning.catalogue.languages import languages_of
from clip_finetuning.catalogue.mapping import check_entries, read_mapping
from tests.helpers import (
    catalogue_sample,
    encoded_picture,
    evaluation,
    read_records,
    read_table,
    shards_in,
    write_shard,
    write_shards,
)

COLUMNS = Columns("photo", ("title_en", "title_de"), product="id")


@pytest.mark.parametrize(
    ("columns", "languages"),
    [
        (["title_en", "title_de"], ["en", "de"]),
        (["titles.en", "titles.fr", "titles.zh-CN"], ["en", "fr", "zh"]),
        (["Name DE", "Text-IT"], ["de", "it"]),
        (["description_pt_BR", "description_ES"], ["pt", "es"]),
        (["title_en", "text_en", "title_ar"], ["en", "en", "ar"]),
        (["title_en"], []),  # one alone: nothing to tell apart
        (["title_en", "text_en"], []),
        (["title_en", "title"], []),
        (["title", "text"], []),
        (["title_xx", "title_qq"], []),  # no languages
        (["open", "chosen"], []),  # words that end in a code
        ([], []),
    ],
)
def test_the_ends_of_columns_names_say_their_language(columns, languages):
    assert list(languages_of(columns).values()) == languages


def test_a_row_has_the_language_of_each_wording(tmp_path):
    table = (
        "photo,title_en,title_de,id\n1.jpg,Red dress,Rotes Kleid,A\n1.jpg,,Nur deutsch,B\n1.jpg,Sneaker,Sneaker,C\n"
        "1.jpg,Only English,,D\n"
    )
    rows, _, remarks = read_table(tmp_path, "t.csv", table, COLUMNS)
    assert [(row.captions, row.languages) for row in rows] == [
        (("Red dress", "Rotes Kleid"), ("en", "de")),
        (("Nur deutsch",), ("de",)),
        (("Sneaker",), ("en de",)),
        (("Only English",), ("en",)),
    ]
    assert "captions are in languages, by the names of their columns: title_en en, title_de de" in remarks


def test_columns_that_name_no_language_leave_no_trace(tmp_path, capsys):
    (tmp_path / "1.jpg").write_bytes(encoded_picture(1))
    (tmp_path / "t.csv").write_text("photo,title,text,id\n1.jpg,Red dress,A dress,A\n")
    output = tmp_path / "m.json"
    table = ["--table", str(tmp_path / "t.csv"), "--image-column=photo", "--product-column=id"]
    clip_prep.main([*table, "--caption-column", "title", "text", f"--output={output}"])
    assert "languages" not in output.read_text() and "languages" not in capsys.readouterr().out
    write_shards(output, tmp_path / "shards")
    assert "languages" not in read_records(*shards_in(tmp_path / "shards"))[0]


def test_languages_go_from_the_table_to_the_batches_of_an_evaluation(tmp_path, capsys):
    (tmp_path / "1.jpg").write_bytes(encoded_picture(1))
    (tmp_path / "t.csv").write_text(
        "photo,title_en,title_de,id\n1.jpg,Red dress,Rotes Kleid,A\n1.jpg,,Nur deutsch,B\n", encoding="utf-8"
    )
    output = tmp_path / "m.json"
    table = ["--table", str(tmp_path / "t.csv"), "--image-column=photo", "--product-column=id"]
    clip_prep.main([*table, "--caption-column", "title_en", "title_de", f"--output={output}"])
    assert "title_en en, title_de de" in capsys.readouterr().out
    assert [entry.get("languages") for entry in json.loads(output.read_text())] == [["en", "de"], ["de"]]
    assert [entry.languages for entry in read_mapping(output).entries] == [("en", "de"), ("de",)]
    write_shards(output, tmp_path / "shards")
    (shard,) = shards_in(tmp_path / "shards")
    (batch,) = evaluation(str(shard), wordings=True)
    assert sorted(batch.wordings) == [[("Nur deutsch", "de")], [("Red dress", "en"), ("Rotes Kleid", "de")]]
    (plain,) = evaluation(str(shard))
    assert plain.wordings == [] and plain.captions == batch.captions


@pytest.mark.parametrize(
    ("fields", "languages", "fits"),
    [
        ({"captions": ["Hut", "", "Hat"], "languages": ["de", "fr", "en"]}, ("de", "en"), True),
        ({"captions": ["Hut", "Hat"], "languages": ["de", ""]}, ("de", ""), True),
        ({"languages": ["en"]}, ("en",), True),
        ({"captions": ["Hut", "Hat"], "languages": ["de"]}, (), False),
        ({"captions": ["Hut", "Hat"], "languages": "de"}, (), False),
        ({"captions": ["Hut"], "languages": [{"code": "de"}]}, (), False),
        ({"languages": []}, (), True),
        ({"languages": None}, (), True),
    ],
)
def test_languages_of_an_entry_are_those_of_its_captions_or_none(fields, languages, fits):
    mapping = check_entries([{"image_path": "a.png", "caption": "Hat"} | fields])
    assert mapping.entries[0].languages == languages
    said = "languages are not those of the captions, one each, in 1 entries, which counts as none"
    assert (said in mapping.remarks()) is not fits


def test_shards_of_others_may_name_languages_too(tmp_path):
    """Beside the text file; those that are not as many as the captions count as none, and are counted."""
    fitting = {"captions": ["Hut", "Hat"], "languages": ["de", "en"]}
    samples = [catalogue_sample(0, 0, **fitting), catalogue_sample(1, 1, captions=["Hut", "Hat"], languages=["de"])]
    write_shard(tmp_path / "a.tar", samples)
    loader = evaluation(str(tmp_path / "a.tar"), wordings=True)
    (batch,) = loader
    assert batch.wordings == [
        [("Caption of product 0", ""), ("Hut", "de"), ("Hat", "en")],
        [("Caption of product 1", ""), ("Hut", ""), ("Hat", "")],
    ]
    assert [*loader.guessed] == ["languages that are not those of the captions, one each, which count as none"]


def test_a_field_that_caption_key_names_may_have_languages(tmp_path):
    samples = [catalogue_sample(0, 0, titles=["Hut", "Hat"], languages=["de", "en"])]
    write_shard(tmp_path / "a.tar", samples)
    (batch,) = evaluation(str(tmp_path / "a.tar"), wordings=True, caption_key="titles")
    assert batch.wordings == [[("Hut", "de"), ("Hat", "en")]]
