"""Text files of any encoding: what is guessed or lost is said."""

import pytest

from clip_finetuning.catalogue.encodings import guess
from tests.helpers import read_table

TEXTS = {
    "fr": ["Écharpe d’été — 50 %", "Chemise à manches longues, coupe cintrée"],
    "de": ["Schöne Mütze für Männer", "Größe 42, grün"],
    "es": ["Camiseta de algodón para niño", "Pantalón corto, tamaño pequeño"],
    "pl": ["Sukienka letnia żółta", "Koszula męska, źdźbło"],
    "zh": ["男士衬衫 修身款", "女式连衣裙 夏季新款"],
    "tw": ["男士襯衫 修身款", "女式連衣裙 夏季新款"],
    "ja": ["メンズシャツ 表示ソ", "綿のシャツ"],
    "ko": ["남성 셔츠 블루", "여성 원피스 여름"],
    "ru": ["Мужская рубашка синяя", "Платье женское летнее"],
    "tr": ["Kapüşonlu kırmızı elbise", "Bağcıklı ayakkabı, şık gömlek"],
    "hu": ["Gyönyörű bőr cipő", "Hűvös őszi kabát"],
    "is": ["Þetta er rauður kjóll", "Ýmsar stærðir, þunnur"],
    "et": ["Kõrge õlg, kümme mütsi", "Öö jalatsid, sõrmus"],
    "el": ["Ανδρικό πουκάμισο μπλε", "Γυναικείο φόρεμα"],
}
NAMED = [
    *[("fr", "cp1252"), ("fr", "mac_roman"), ("de", "cp1252"), ("de", "mac_roman"), ("de", "cp850"), ("es", "cp1252")],
    *[("es", "mac_roman"), ("pl", "cp1250"), ("zh", "gbk"), ("zh", "gb18030"), ("tw", "big5"), ("ja", "shift_jis")],
    *[("ja", "cp932"), ("ja", "euc_jp"), ("ko", "euc_kr"), ("ko", "cp949"), ("ru", "cp1251"), ("ru", "koi8_r")],
    *[("el", "cp1253"), ("zh", "utf-16-le"), ("zh", "utf-16-be"), ("fr", "utf-16-le"), ("ja", "utf-32-le")],
    *[("ru", "utf-32-be"), ("tr", "cp1254"), ("tr", "iso8859_9"), ("hu", "cp1250"), ("is", "cp1252"), ("et", "cp1252")],
]


def table(texts, rows=40):
    lines = [f"P{number},Nike {texts[number % len(texts)].replace(',', ';')},1.jpg" for number in range(rows)]
    return "\n".join(["id,text,photo", *lines]) + "\n"


def captions(texts, rows=40):
    return ["Nike " + texts[number % len(texts)].replace(",", ";") for number in range(rows)]


@pytest.mark.parametrize(("language", "encoding"), NAMED)
@pytest.mark.parametrize("rows", [2, 40])
def test_an_encoding_is_guessed_and_said(tmp_path, language, encoding, rows):
    texts = TEXTS[language]
    read, skipped, remarks = read_table(tmp_path, "t.csv", table(texts, rows).encode(encoding))
    assert [row.captions[0] for row in read] == captions(texts, rows)
    assert not skipped
    (said,) = remarks
    assert said.startswith(f"{rows} rows are no UTF-8 and were read as ") and "--encoding NAME" in said
    assert captions(texts, 1)[0] in said  # an example cell


@pytest.mark.parametrize(("language", "encoding"), NAMED)
def test_a_given_encoding_is_no_guess(tmp_path, language, encoding):
    data = table(TEXTS[language]).encode(encoding)
    read, _, remarks = read_table(tmp_path, "t.csv", data, encoding=encoding)
    assert [row.captions[0] for row in read] == captions(TEXTS[language])
    assert remarks == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_or_utf8_is_no_guess(tmp_path, encoding):
    read, _, remarks = read_table(tmp_path, "t.csv", table(TEXTS["zh"] + TEXTS["fr"]).encode(encoding))
    assert [row.captions[0] for row in read] == captions(TEXTS["zh"] + TEXTS["fr"])
    assert remarks == []


def test_lines_of_another_encoding_among_utf8(tmp_path):
    data = table(TEXTS["fr"]).encode() + "P99,Crème brûlée,1.jpg\n".encode("cp1252") + table(TEXTS["fr"]).encode()
    read, _, remarks = read_table(tmp_path, "t.csv", data)
    assert read[40].captions == ("Crème brûlée",)
    assert read[41].captions == read[0].captions
    assert [remark for remark in remarks if remark.startswith("1 rows are no UTF-8 and were read as cp1252")]


def test_characters_that_are_lost_are_counted(tmp_path):
    data = b"id,text,photo\nP1,Hat \xff\xfe red,1.jpg\nP2,Hat,1.jpg\nP3,Cr\xef\xbf\xbdme,1.jpg\n"
    read, _, remarks = read_table(tmp_path, "t.csv", data, encoding="utf-8")
    assert ["\ufffd" in row.captions[0] for row in read] == [True, False, True]
    (said,) = remarks
    assert said.startswith("2 rows hold \ufffd, which stands for characters that were lost (t.csv:2")
    lines = b'{"id": 1, "text": "Cr\\ufffdme", "photo": "1.jpg"}\n'
    assert read_table(tmp_path, "t.jsonl", lines)[2][0].startswith("1 rows hold \ufffd")


@pytest.mark.parametrize("name", ["klingon", "hex", "rot13", "base64", "undefined"])
def test_a_name_that_is_no_encoding_is_one_error(tmp_path, name):
    with pytest.raises(ValueError, match=f"--encoding {name} is no text encoding"):
        read_table(tmp_path, "t.csv", table(TEXTS["fr"]), encoding=name)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_in_another_encoding(tmp_path, suffix):
    lines = [f'{{"id": {n}, "text": "{text}", "photo": "1.jpg"}}' for n, text in enumerate(TEXTS["zh"] * 9)]
    data = "\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]"
    read, _, remarks = read_table(tmp_path, f"t{suffix}", data.encode("gbk"))
    assert [row.captions[0] for row in read] == TEXTS["zh"] * 9
    assert "gb18030, a guess" in remarks[0]


def test_a_table_that_has_no_encoding_takes_none(tmp_path):
    with pytest.raises(ValueError, match="--encoding gbk does not go with"):
        read_table(tmp_path, "t.parquet", b"PAR1", encoding="gbk")


@pytest.mark.parametrize("sample", [b"\xff", b"\x80\x81", b"\xe9", b"\xa4" * 99, bytes(range(128, 256)), b"\x8e\n\x8f"])
def test_a_sample_that_is_no_text_is_some_encoding(sample):
    sample.decode(guess(sample), "replace")
