"""A page of knobs as a command line: page < assigned in Python < environment < flag, one clear line for each mistake."""

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

from clip_finetuning.runtime import command_line, knobs

PAGE = '''
from typing import Annotated, Final, Literal
import os

AtLeast1 = Annotated[int, ">= 1"]

DRIVE: Final = "/drive"

ON_COLAB: bool = False
"""keep it on the drive"""

ROOT: Final = f"{DRIVE}/" if ON_COLAB else ""

RUN: str = ROOT + "run"
"""a folder"""

LAST: str = f"{RUN}/last.pt"
"""a file of it"""

SIZE: AtLeast1 = 256
"""samples, 100% of them"""

STEPS: AtLeast1 | None = None
"""steps"""

CUT: Annotated[int, ">= 1", "<= 100"] = 95
"""both ends count"""

DECAY: Annotated[float, "> 0", "< 1"] | None = None
"""no end counts"""

RATE: Annotated[float, ">= 0"] = 0.5
"""a number"""

KIND: Literal["auto", "fast"] = "auto"
"""one of two"""

NAME: str = ""
"""may be empty"""

CACHE: str | None = None
"""a folder or none"""

RESUME: Annotated[str, "flag alone: auto"] = "none"
"""where to go on"""

DEBUG: bool = False
"""tracebacks"""
'''
KNOBS = ["RUN", "LAST", "SIZE", "STEPS", "CUT", "DECAY", "RATE", "KIND", "NAME", "CACHE", "RESUME"]
numbers = itertools.count()


@pytest.fixture
def import_page(tmp_path):
    """import_page(text): a module of it, as `import settings` would make one."""

    def load(text=PAGE):
        name = f"page_{next(numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def page(import_page):
    return import_page()


def parse(page, *args):
    return command_line.Parser(page, "A test.", KNOBS).parse_args(list(args))


def refusal(capsys, function, *args):
    """The lines of standard error that a call ends with, and exit code 2."""
    with pytest.raises(SystemExit) as end:
        function(*args)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


# ------------------------------------------------------------------------------------------------ strength


def test_a_flag_beats_the_environment_that_an_assignment_and_that_the_page(page, monkeypatch):
    assert parse(page).size == 256
    page.SIZE = 64
    assert parse(page).size == 64
    monkeypatch.setenv("CLIP_SIZE", "7")
    assert parse(page).size == 7
    assert parse(page, "--size", "9").size == 9
    assert parse(page, "--size", "9", "--size", "10").size == 10


def test_given_are_the_knobs_that_were_set_in_any_way_and_no_other(import_page, monkeypatch):
    page = import_page(PAGE.replace('RATE: Annotated[float, ">= 0"] = 0.5', 'RATE: Annotated[float, ">= 0"] = 0.25'))
    assert parse(page).given == set()
    page.KIND = "fast"
    monkeypatch.setenv("CLIP_STEPS", "none")
    values = parse(page, "--size", "256")
    assert values.given == {"KIND", "STEPS", "SIZE"}
    assert (values.rate, values.steps) == (0.25, None)


def test_an_assignment_of_the_value_that_stands_there_is_none(page):
    page.SIZE = 256
    assert "SIZE" not in parse(page).given


def test_what_was_assigned_is_told(page, capsys):
    parse(page)
    assert capsys.readouterr().err == ""
    page.SIZE, page.RUN = 64, "mine"
    parse(page)
    assert capsys.readouterr().err.endswith(": assigned in Python: RUN='mine', SIZE=64\n")


def test_a_reloaded_page_has_nothing_assigned(page):
    page.SIZE = 64
    page.__spec__.loader.exec_module(page)
    assert parse(page).size == 256


# ----------------------------------------------------------------------------------- values that follow others


@pytest.mark.parametrize("way", ["flag", "environment", "assigned"])
def test_what_is_worked_out_from_a_knob_follows_it_however_it_is_set(page, monkeypatch, way):
    if way == "environment":
        monkeypatch.setenv("CLIP_RUN", "mine")
    if way == "assigned":
        page.RUN = "mine"
    values = parse(page, *(["--run", "mine"] if way == "flag" else []))
    assert (values.run, values.last) == ("mine", "mine/last.pt")
    assert "LAST" not in values.given


@pytest.mark.parametrize("way", ["flag", "environment", "assigned"])
def test_what_is_set_itself_follows_nothing(page, monkeypatch, way):
    if way == "environment":
        monkeypatch.setenv("CLIP_LAST", "x.pt")
    if way == "assigned":
        page.LAST = "x.pt"
    assert parse(page, "--run", "mine", *(["--last", "x.pt"] if way == "flag" else [])).last == "x.pt"


def test_what_was_set_stays_where_it_is_and_the_rest_moves_to_the_drive(page):
    values = parse(page, "--on-colab", "true")
    assert (values.run, values.last) == ("/drive/run", "/drive/run/last.pt")
    values = parse(page, "--on-colab", "true", "--run", "mine")
    assert (values.run, values.last) == ("mine", "mine/last.pt")
    page.ON_COLAB = True
    assert parse(page).last == "/drive/run/last.pt"
    assert parse(page, "--on-colab", "false").last == "run/last.pt"
    page.DRIVE = "/elsewhere"
    assert parse(page).last == "/elsewhere/run/last.pt"


def test_a_value_without_a_parser_follows_assignments_and_no_environment(page, monkeypatch):
    monkeypatch.setenv("CLIP_RUN", "no")
    assert knobs.value(page, "LAST") == "run/last.pt"
    page.RUN = Path("mine")
    assert (knobs.value(page, "RUN"), knobs.value(page, "LAST")) == ("mine", "mine/last.pt")
    page.SIZE = 0
    with pytest.raises(ValueError, match="SIZE=0 is not allowed: it takes a whole number >= 1"):
        knobs.value(page, "SIZE")


def test_a_page_that_fails_with_the_values_given_is_one_line_with_its_place(import_page, capsys):
    page = import_page(PAGE + '\nPART: int = 100 // (SIZE - 1)\n"""a part"""\n')
    line = page.__file__ and len(PAGE.splitlines()) + 2
    (told,) = refusal(capsys, parse, page, "--size", "1")
    assert f"{page.__name__}.py, line {line}: ZeroDivisionError" in told


# --------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SIZE", "1", 1),
        ("CUT", "1", 1),
        ("CUT", "100", 100),
        ("DECAY", "0.001", 0.001),
        ("DECAY", "0.999", 0.999),
        ("DECAY", "none", None),
        ("RATE", "0", 0.0),
        ("RATE", "1e-5", 1e-5),
        ("STEPS", "None", None),
        ("STEPS", "", None),
        ("STEPS", "3", 3),
        ("KIND", "fast", "fast"),
        ("NAME", "", ""),
        ("NAME", "none", "none"),
        ("NAME", "$RUN {RUN} %s", "$RUN {RUN} %s"),
        ("CACHE", "none", None),
        ("CACHE", "there", "there"),
        ("ON_COLAB", "TRUE", True),
        ("DEBUG", "false", False),
    ],
)
@pytest.mark.parametrize("way", ["flag", "environment", "assigned"])
def test_a_text_is_read_as_the_knobs_type(page, monkeypatch, name, text, value, way):
    flag = f"--{name.lower().replace('_', '-')}"
    if way == "environment":
        monkeypatch.setenv(f"CLIP_{name}", text)
    if way == "assigned":
        setattr(page, name, text)
    read = getattr(parse(page, *([flag, text] if way == "flag" else [])), name.lower())
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("SIZE", "0", "a whole number >= 1 ("),
        ("SIZE", "many", "a whole number >= 1 ("),
        ("SIZE", "1.5", "a whole number >= 1 ("),
        ("SIZE", "none", "a whole number >= 1 ("),
        ("SIZE", "", "a whole number >= 1 ("),
        ("STEPS", "-3", "a whole number >= 1 or none ("),
        ("CUT", "0", "a whole number >= 1 and <= 100 ("),
        ("CUT", "101", "a whole number >= 1 and <= 100 ("),
        ("DECAY", "0", "a number > 0 and < 1 or none ("),
        ("DECAY", "1", "a number > 0 and < 1 or none ("),
        ("DECAY", "-1e-5", "a number > 0 and < 1 or none ("),
        ("RATE", "-1e-5", "a number >= 0 ("),
        ("RATE", "-.5", "a number >= 0 ("),
        ("RATE", "-inf", "a number >= 0 ("),
        ("RATE", "inf", "a number >= 0 ("),
        ("RATE", "nan", "a number >= 0 ("),
        ("KIND", "fp64", "one of auto, fast ("),
        ("KIND", "none", "one of auto, fast ("),
        ("ON_COLAB", "maybe", "true or false ("),
        ("DEBUG", "1", "true or false ("),
    ],
)
@pytest.mark.parametrize("way", ["flag", "environment", "assigned"])
def test_a_wrong_value_is_one_line_with_knob_value_rule_and_ways(page, monkeypatch, capsys, name, text, allowed, way):
    flag = f"--{name.lower().replace('_', '-')}"
    if way == "environment":
        monkeypatch.setenv(f"CLIP_{name}", text)
    if way == "assigned":
        setattr(page, name, text)
    told = refusal(capsys, parse, page, *([flag, text] if way == "flag" else []))
    ways = f"set by {flag}, CLIP_{name} or settings.py)"
    assert told[-1].endswith(f": error: {name}={text!r} is not allowed: it takes {allowed}{ways}")
    assert len(told) == 1 + (way == "assigned")  # which also says what was assigned


@pytest.mark.parametrize(
    ("name", "value"),
    [("SIZE", True), ("SIZE", 2.0), ("SIZE", None), ("RATE", False), ("RATE", [1]), ("NAME", None), ("NAME", ["a"]),
     ("NAME", 3), ("RUN", b"run"), ("KIND", None), ("DEBUG", 1), ("RESUME", None)],
)  # fmt: skip
def test_python_code_that_assigns_another_type_is_refused(page, capsys, name, value):
    setattr(page, name, value)
    assert f"error: {name}={value!r} is not allowed" in refusal(capsys, parse, page)[-1]


def test_numbers_of_numpy_are_numbers(page):
    import numpy as np

    page.SIZE, page.RATE = np.int64(64), np.float64(0.125)
    values = parse(page)
    assert (values.size, type(values.size), values.rate, type(values.rate)) == (64, int, 0.125, float)
    page.SIZE = np.array([1, 2])
    with pytest.raises(SystemExit):
        parse(page)


def test_all_wrong_values_of_a_call_are_told_at_once(import_page, monkeypatch, capsys):
    page = import_page(PAGE.replace('= "auto"', '= "slow"'))  # a default that was edited badly
    page.CUT = 0
    monkeypatch.setenv("CLIP_SIZE", "0")
    told = refusal(capsys, parse, page, "--rate", "x", "--on-colab", "maybe")[1:]
    assert [line.split("error: ")[1].split("=")[0] for line in told] == ["CUT", "ON_COLAB", "SIZE", "RATE", "KIND"]


def test_a_wrong_value_that_a_stronger_one_replaces_is_none(page, monkeypatch):
    monkeypatch.setenv("CLIP_SIZE", "0")
    assert parse(page, "--size", "3").size == 3


def test_a_knob_of_another_script_is_no_flag_and_its_variable_is_not_read(page, monkeypatch):
    monkeypatch.setenv("CLIP_SIZE", "0")
    parser = command_line.Parser(page, "A test.", ["RUN"])
    assert vars(parser.parse_args([])).keys() == {"run", "on_colab", "debug", "given"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--size", "3"])


def test_a_flag_alone_means_true_or_what_the_page_says(page):
    values = parse(page, "--debug", "--resume")
    assert (values.debug, values.resume) == (True, "auto")
    assert parse(page, "--resume", "a.pt").resume == "a.pt"
    assert parse(page, "--debug", "false").debug is False


def test_a_flag_without_its_value_and_an_abbreviated_one_are_refused(page, capsys):
    assert "--size" in refusal(capsys, parse, page, "--size")[0]
    assert "--siz 3" in refusal(capsys, parse, page, "--siz", "3")[0]


# ------------------------------------------------------------------------------------------- misspelt names


def test_a_misspelt_variable_is_pointed_out(page, monkeypatch, capsys):
    monkeypatch.setenv("CLIP_STEP", "3")
    monkeypatch.setenv("CLIP_OF_ANOTHER_PROGRAM", "3")
    parse(page)
    assert capsys.readouterr().err.endswith("warning: CLIP_STEP sets nothing; did you mean CLIP_STEPS?\n")


@pytest.mark.parametrize("name", ["STEP", "steps", "Steps"])
def test_a_misspelt_assignment_is_refused_with_the_near_name(page, capsys, name):
    setattr(page, name, 3)
    (told,) = refusal(capsys, parse, page)
    assert told.endswith(f"error: {page.__name__}.{name} sets nothing: did you mean {page.__name__}.STEPS?")


def test_an_assignment_to_no_knob_is_refused(page, capsys):
    page.COLOUR = "blue"
    assert refusal(capsys, parse, page)[0].endswith(f"{page.__name__}.COLOUR sets nothing: no such knob")


# --------------------------------------------------------------------------------------- a page edited badly

EXTRA = 'EXTRA: int = 3\n"""help"""\n'


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("EXTRA = 3\n\"\"\"help\"\"\"\n", "EXTRA has no annotation: write EXTRA: int = ..., and its help as a string below"),
        ("EXTRA: int = 3\n", "EXTRA has no help: write one line of it as a string below"),
        ("EXTRA: int = 3\n'''  '''\n", "EXTRA has no help"),
        ("EXTRA: int = 3\n12\n", "EXTRA has no help"),
        ("EXTRA: int\n'''help'''\n", "EXTRA has no value"),
        ("if True:\n    EXTRA = 3\n", "EXTRA has no annotation"),
        ("SIZE = 3\n", "SIZE is set for the second time: leave one of the two"),
        ("SIZE: AtLeast1 = 3\n'''help'''\n", "SIZE is set for the second time"),
        ("EXTRA: list = 3\n'''help'''\n", "EXTRA has an annotation that is not known here: it takes bool, int, float, str"),
        ("EXTRA: int | str = 3\n'''help'''\n", "EXTRA has an annotation that is not known here"),
        ("EXTRA: None = None\n'''help'''\n", "EXTRA has an annotation that is not known here"),
        ("EXTRA: Literal[1, 2] = 1\n'''help'''\n", "EXTRA has an annotation that is not known here"),
        ("EXTRA: Annotated[int, 'at least 1'] = 3\n'''help'''\n", "EXTRA has an annotation that is not known here"),
        ("EXTRA: Annotated[str, '>= 1'] = 'x'\n'''help'''\n", "EXTRA has an annotation that is not known here"),
        ("size = 3\n", "size is no knob; did you mean SIZE?"),
    ],
)  # fmt: skip
def test_a_knob_that_says_too_little_is_refused_in_one_line_with_its_place(import_page, capsys, extra, words):
    page = import_page(PAGE + extra)
    (told,) = refusal(capsys, parse, page)
    assert f"error: {page.__name__}.py" in told and words in told
    assert f"line {len(PAGE.splitlines()) + 1}: " in told or "if True" in extra


def test_all_faults_of_a_page_are_told_at_once(import_page, capsys):
    told = refusal(capsys, parse, import_page(PAGE + "ONE = 1\nTWO: int = 2\n"))
    assert ["ONE has no annotation" in told[0], "TWO has no help" in told[1], len(told)] == [True, True, 2]


def test_a_knob_that_a_script_needs_and_the_page_lacks_is_named(import_page, capsys):
    page = import_page(PAGE.replace("\nSIZE:", "\nSIZES:"))
    assert refusal(capsys, parse, page)[0].endswith(f"{page.__name__}.py has no SIZE, which this script needs")


def test_a_page_that_became_no_python_after_its_import_is_one_line(page, capsys):
    Path(page.__file__).write_text("SIZE: int = \n", encoding="utf-8")
    assert f"{page.__name__}.py, line 1: " in refusal(capsys, parse, page)[0]


def test_a_page_may_hold_python(import_page, monkeypatch):
    monkeypatch.setenv("CORES", "8")
    page = import_page(
        "from __future__ import annotations\n" + PAGE + "if ON_COLAB:\n    SIZE = 128\n\ndef half(n):\n    return n // 2\n\n"
        'HALF: AtLeast1 = half(SIZE) + int(os.environ["CORES"])\n"""half"""\n'
    )  # fmt: skip
    parser = command_line.Parser(page, "A test.", ["SIZE", "HALF"])
    assert parser.parse_args(["--size", "6"]).half == 11
    values = parser.parse_args(["--on-colab"])
    assert (values.size, values.half) == (128, 72)


# ------------------------------------------------------------------------------------------ help and tables


def test_help_shows_the_present_values_of_the_page(page, monkeypatch, capsys):
    page.RUN = "mine"
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        parse(page, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for words in (
        "--size INT samples, 100% of them [256]",
        "--steps INT steps [none]",
        "--kind auto|fast one of two [auto]",
        "--name STR may be empty [empty]",
        "--last STR a file of it [mine/last.pt]",
        "--resume [STR] where to go on [none]",
        "--debug [true|false] tracebacks [false]",
    ):
        assert words in text


def test_help_keeps_to_eighty_columns_but_for_command_lines(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = (
        "    python script.py --a-very-long-flag with a value             # and a comment that goes far to the right"
    )
    paragraph = (
        "Words that are wrapped because they go on for longer than the console is wide, which is eighty columns.\n"
    )
    text = command_line.Parser(page, f"First.\n\n{command}\n\n{paragraph}", KNOBS).format_help()
    assert command in text
    assert max(len(line) for line in text.splitlines() if line != command) <= 80
    assert "columns." in text and paragraph not in text


def test_rows_for_a_table_of_knobs(page):
    page.SIZE = 64  # a table is of the page
    table = {row.name: row for row in knobs.rows(page)}
    assert list(table) == ["ON_COLAB", *KNOBS, "DEBUG"]
    assert table["SIZE"] == ("SIZE", "256", "samples, 100% of them", "a whole number >= 1")
    assert table["STEPS"][1:] == ("none", "steps", "a whole number >= 1 or none")
    assert table["LAST"].default == "run/last.pt"


def test_a_help_of_several_lines_is_one(import_page):
    page = import_page(PAGE + 'EXTRA: int = 3\n"""first\n    and second"""\n')
    assert knobs.rows(page)[-1].help == "first and second"


# --------------------------------------------------------------------------------------------------- debug


@pytest.mark.parametrize(
    ("arguments", "variable", "assigned", "on"),
    [
        ([], None, None, False),
        (["--debug", "--size", "3"], None, None, True),
        (["--debug=true"], None, None, True),
        (["--debug", "false"], "true", None, False),
        ([], "TRUE", None, True),
        ([], None, True, True),
        (["--debug", "false"], None, True, False),
    ],
)
def test_tracebacks_are_asked_for_in_all_ways(page, monkeypatch, arguments, variable, assigned, on):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    if variable:
        monkeypatch.setenv("CLIP_DEBUG", variable)
    if assigned is not None:
        page.DEBUG = assigned
    assert command_line.debug_is_on(page) is on
