"""Markup in captions: what a browser would not show goes, what is text stays."""

import pytest

from clip_finetuning.catalogue.markup import without_markup
from clip_finetuning.catalogue.table import Columns
from clip_finetuning.runtime.text import text_of
from tests.helpers import read_table


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>Soft &amp; warm&nbsp;wool</p>", "Soft & warm wool"),
        ("so<b>ft</b> <STRONG class='x'>wool</STRONG>.", "soft wool."),
        ("One<br>Two<br/>Three<li>Four</li><li>Five", "One Two Three Four Five"),
        ('<a href="https://x.example/?a=1&b=2" title="a > b">Hat</a>', "Hat"),
        ("<div\n style='x'\n>Hat</div >", "Hat"),
        ("<!-- wp:paragraph --><p>Hat</p><!-- /wp:paragraph -->", "Hat"),
        ("<style>p { color: red }</style>Hat<script>if (a < b) {}</script>", "Hat"),
        ("<![CDATA[Hat &amp; cap]]>", "Hat & cap"),
        ("&lt;p&gt;Soft &amp;amp; warm&lt;/p&gt;", "Soft & warm"),
        ("Caf&eacute; &#233; &#xE9; &#146; &quot;x&quot; 5 &times; 5", 'Café é é ’ "x" 5 × 5'),
        ("super&shy;soft", "supersoft"),
        ("One\\nTwo\\r\\nThree", "One Two Three"),
        ("Soft&nbsp wool &amp more", "Soft wool & more"),
        ('Soft wool <a href="https://x.exa', "Soft wool"),
        ("<h1>Hat</h1><table><tr><td>a</td><td>b</td></tr></table>", "Hat a b"),
    ],
)
def test_markup_goes(markup, text):
    assert text_of(without_markup(markup)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a < b",
            "a<b and c>d",
            "<3 this",
            "size <40",
            "size <XL>",
            "R&B",
            "AT&T & H&M",
            "black&copper",
            "x & y;",
            "&&",
        ),
        *("<your name>", "5 > 4", "<-- new", "->", "A&P; more", "&notanentity;", "<", "&#", "&#x;", "1 <p", "<bold>"),
    ],
)
def test_text_stays(text):
    assert without_markup(text) == text


@pytest.mark.parametrize("text", ['<a "', "<a ", "<p <p ", "<!--", "<script>", "&amp ", "<a b='", "<p a=b "])
def test_hostile_markup_ends(text):
    without_markup(text * 5_000)


def test_rows_with_markup_are_counted(tmp_path):
    lines = ["1.jpg,<p>Soft &amp; warm</p>,Hats &amp; Caps", "1.jpg,R&B < 3,Hats", "1.jpg,<p> </p>,Hats"]
    data = "\n".join(["photo,text,kind", *lines]) + "\n"
    columns = Columns("photo", ("text",), category="kind")
    rows, skipped, remarks = read_table(tmp_path, "t.csv", data, columns)
    assert [(row.captions[0], row.category) for row in rows] == [("Soft & warm", "Hats & Caps"), ("R&B < 3", "Hats")]
    assert skipped == {"blank caption": ["t.csv:4"]}
    assert remarks == [
        "2 rows had markup: tags were removed, entities resolved (--keep-markup keeps them) (t.csv:2: <p>Soft &amp; warm</p>)"
    ]
    kept, _, remarks = read_table(tmp_path, "t.csv", data, columns, keep_markup=True)
    assert (kept[0].captions[0], kept[0].category, remarks) == ("<p>Soft &amp; warm</p>", "Hats &amp; Caps", [])


def test_markup_in_the_fields_of_a_template(tmp_path):
    data = "photo,title,more\n1.jpg,<b>Hat</b>,<p>&nbsp;</p>\n"
    rows, _, _ = read_table(tmp_path, "t.csv", data, Columns("photo", template="{title}, {more}."))
    assert rows[0].captions == ("Hat.",)
