"""What a raw sample says, whoever wrote it."""

import json

import pytest

from clip_finetuning.loading.sample import (
    NO_CAPTION,
    NO_PICTURE,
    NO_UTF8,
    SampleError,
    is_text,
    parse_sample,
    product_hash,
    split_name,
)


def parsed(**files):
    """`txt`, `json` ... as text or plain data; a picture is there unless `jpg` is given as None."""
    raw = {"__key__": "k", "__url__": "a.tar", "jpg": b"picture"}
    for suffix, content in files.items():
        raw[suffix] = content if content is None or isinstance(content, bytes) else content.encode()
    return parse_sample({suffix: data for suffix, data in raw.items() if data is not None})


def record(**fields):
    return json.dumps(fields)


RUSSIAN = ("Шапка", "Платье", "Юбка", "Туфли")


@pytest.mark.parametrize("encoding", ["cp1251", "gbk", "koi8_r", "latin-1", "cp1254"])
def test_captions_in_another_encoding_are_told_and_stay_apart(encoding):
    texts = RUSSIAN if encoding in ("cp1251", "koi8_r", "gbk") else ("café", "cafe", "cafè", "cafë")
    samples = [parsed(txt=text.encode(encoding)) for text in texts]
    assert len({sample.product_id for sample in samples}) == len({sample.captions[0] for sample in samples}) == 4
    assert [sample.guess for sample in samples] == [NO_UTF8 if not text.isascii() else None for text in texts]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "utf-8-sig"])
def test_captions_in_unicode_are_read_as_such(encoding):
    sample = parsed(txt="Schuhe für Männer".encode(encoding))
    assert (sample.captions, sample.guess) == (["Schuhe für Männer"], None)


def test_our_own_sample():
    fields = {"product_id": "P1", "category": "TOPS", "subcategory": "KNITS", "image_name": "P1_1.png"}
    sample = parsed(txt="Ribbed cotton sweater", json=record(**fields, captions=["Sweater", "Knit"]))
    assert sample.key == "k" and sample.picture == b"picture"
    assert sample.captions == ["Ribbed cotton sweater", "Sweater", "Knit"]
    assert {name: getattr(sample, name) for name in fields} == fields


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp"])
def test_pictures_by_suffix(suffix):
    assert parse_sample({"__key__": "k", suffix: b"x", "txt": b"a"}).picture == b"x"


@pytest.mark.parametrize(
    ("files", "captions"),
    [
        ({"txt": "one"}, ["one"]),
        ({"text": "one"}, ["one"]),
        ({"caption": "one"}, ["one"]),
        ({"txt10": "ten", "txt2": "two", "txt0": "none"}, ["none", "two", "ten"]),
        ({"txt1.txt": "second", "txt0.txt": "first"}, ["first", "second"]),
        ({"txt0": "numbered", "txt": "plain"}, ["plain", "numbered"]),
        ({"json": record(caption="from json")}, ["from json"]),
        ({"txt": "file", "json": record(caption="from json")}, ["file"]),
        ({"txt": " \n", "json": record(caption="from json")}, ["from json"]),
        ({"json": record(captions=["a", "b"])}, ["a", "b"]),
        ({"txt": "a", "json": record(captions=["a", "", None, "b", {"c": 1}])}, ["a", "b"]),
        ({"txt": "a", "json": record(captions="a string")}, ["a"]),
        ({"txt": "two\nlines\tand  blanks\r\n"}, ["two lines and blanks"]),
        ({"txt": b"caf\xe9"}, ["café"]),
        ({"txt": "x" * 100_000}, ["x" * 100_000]),
    ],
)
def test_captions(files, captions):
    assert parsed(**files).captions == captions


@pytest.mark.parametrize(
    "damaged", ["", "{", "null", "[1, 2]", '"text"', b"\xff\xfe", pytest.param("[" * 100_000, id="nested")]
)
def test_a_damaged_json_is_worth_no_more_than_none(damaged):
    sample = parsed(txt="caption", json=damaged)
    assert (sample.product_id, sample.category, sample.captions) == ("caption", "", ["caption"])


def test_fields_that_are_no_strings():
    sample = parsed(txt="a", json=record(product_id=1234, category=None, subcategory=["x"], image_name=True))
    assert (sample.product_id, sample.category, sample.subcategory, sample.image_name) == ("1234", "", "", "")


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"nan"', '"None"', '" "'])
def test_a_missing_field_is_blank_however_pandas_wrote_it(missing):
    """24 unrelated samples without an id would be the one product "nan"."""
    fields = ("product_id", "category", "subcategory", "image_name")
    text = ", ".join(f'"{field}": {missing}' for field in fields)
    sample = parsed(txt="a shoe", json=f'{{{text}, "captions": [{missing}, "a boot"]}}')
    assert sample.captions == ["a shoe", "a boot"]
    assert (sample.product_id, sample.category, sample.subcategory, sample.image_name) == ("a shoe", "", "", "")
    for files in ({"json": f'{{"caption": {missing}}}'}, {"txt": missing.strip('"') if missing[0] == '"' else " "}):
        with pytest.raises(SampleError) as error:
            parsed(**files)
        assert error.value.reason == NO_CAPTION


def test_an_id_is_the_same_with_and_without_a_point():
    samples = [parsed(txt="a", json=f'{{"product_id": {written}}}') for written in ("15970", "15970.0", '"15970"')]
    assert {sample.product_id for sample in samples} == {"15970"}


def test_without_a_product_equal_captions_are_one():
    assert parsed(txt="same \n words").product_id == parsed(txt="same words").product_id == "same words"
    assert parsed(txt="same words", json=record(product_id="")).product_id == "same words"


def test_what_cannot_be_used_says_why():
    with pytest.raises(SampleError) as error:
        parsed(jpg=None, txt="a")
    assert error.value.reason == NO_PICTURE
    for files in ({}, {"txt": ""}, {"json": record(caption=["a"])}, {"cls": "3"}, {"txtx": "a"}):
        with pytest.raises(SampleError) as error:
            parsed(**files)
        assert error.value.reason == NO_CAPTION


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("000000001.jpg", "000000001", "jpg"),
        ("a.b/c.JPG", "a.b/c", "jpg"),
        ("x.txt0.txt", "x", "txt0.txt"),
        ("../up.png", "../up", "png"),
        ("/etc/passwd", "/etc/passwd", ""),
        ("folder/.hidden", "folder/", "hidden"),
    ],
)
def test_names_split_at_the_first_dot_of_the_file(name, key, suffix):
    assert split_name(name) == (key, suffix)


def test_text_suffixes():
    assert all(is_text(suffix) for suffix in ("json", "txt", "txt0", "txt12.txt", "text", "caption"))
    assert not any(is_text(suffix) for suffix in ("jpg", "cls", "txtx", "jsonl", ""))


def test_product_numbers_are_the_same_everywhere():
    assert product_hash("P1") == 3094033440673219996
    assert product_hash("P1") != product_hash("P2")
    assert product_hash("lone surrogate \udcff") == product_hash("lone surrogate \udcff")
    assert all(-(2**63) <= product_hash(str(number)) < 2**63 for number in range(100))
