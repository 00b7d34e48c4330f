"""Text of unknown origin on a terminal: every character shows, none is obeyed, wherever it comes from."""

import settings
from clip_finetuning.catalogue import audit_summary
from clip_finetuning.catalogue.summary import skipped_lines
from clip_finetuning.runtime import console
from clip_finetuning.runtime.text import printable

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\nb\u202e\ud800"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07\r\nb\u202e\ud800"


def test_what_does_not_print_is_spelled_out():
    assert printable(EVIL) == SHOWN
    assert printable("Ärmel, größer → 裙子 👗") == "Ärmel, größer → 裙子 👗"
    assert printable(None) == "None"


def test_skipped_names_and_findings_do_not_reach_the_terminal_as_they_are():
    assert SHOWN in skipped_lines({"missing picture": [EVIL]})[0]
    line = audit_summary.line("tiny", {"count": 1, "listed": [{"image": "x\x1b[2Jy"}]}, "image")
    assert line.isprintable()
    categories = {"T\x1b[2JOPS": {"a.json": {"images": 1, "products": 1}}}
    assert all(map(str.isprintable, audit_summary.category_lines(categories, 1)))


def test_an_error_that_quotes_a_file_is_one_printable_line(capsys, monkeypatch):
    monkeypatch.delenv("CLIP_DEBUG", raising=False)

    def main():
        raise ValueError(f"theirs.pt: {EVIL}")

    try:
        console.run(main, settings)
    except SystemExit as end:
        assert end.code == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()
