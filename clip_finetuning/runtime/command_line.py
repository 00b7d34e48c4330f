"""The command line of a page of knobs such as settings.py: types, limits, help, flags and variables are read from it.

A knob is an annotated assignment in capitals with its help as the string below it, `BATCH_SIZE: AtLeast1 = 256`. Its
type is bool, int, float, str or a Literal of texts, each also `| None`; Annotated adds what a number is held to
(`Annotated[int, ">= 1", "<= 100"]`) or what the flag means without a value (`Annotated[str, "flag alone: auto"]`).
What is no knob is Final. A page that says less is refused.

Strength: the page < what Python code assigned to its module < the environment < flags. Whatever the page works out from
a knob follows that knob's value, unless it is set itself.
"""

import argparse
import ast
import contextlib
import difflib
import math
import operator
import os
import re
import sys
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ALWAYS = ("ON_COLAB", "DEBUG")  # knobs of every script: the page's paths follow the one, `console.run` asks the other
OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
FLAG_ALONE = "flag alone: "
KNOWN_TYPES = (
    "bool, int, float, str or a Literal of texts, numbers also Annotated with limits ('>= 1'), all also | None"
)


class ValueRefused(ValueError):
    """A knob was given a value that it does not take."""


class PageRefused(ValueError):
    """A page that the command line cannot be read from; `complaints` holds a line for each fault."""

    def __init__(self, complaints: Sequence[str]):
        super().__init__("; ".join(complaints))
        self.complaints = list(complaints)


# ----------------------------------------------------------------------------------------------- one knob


@dataclass(frozen=True)
class Knob:
    """A knob as the page describes it."""

    name: str
    kind: type
    optional: bool
    choices: tuple[str, ...]
    limits: tuple[str, ...]
    alone: str | None  # what the flag without a value means, where it may stand so
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.lower().replace("_", "-")

    @property
    def variable(self) -> str:
        return "CLIP_" + self.name

    @property
    def allowed(self) -> str:
        """The values that it takes, in words."""
        words = "one of " + ", ".join(self.choices) if self.choices else WORDS[self.kind]
        return " ".join([words, " and ".join(self.limits)]).strip() + (" or none" if self.optional else "")

    def value(self, given: object) -> object:
        """What a text, or a value that Python code assigned, stands for; ValueRefused if the knob does not take it."""
        with contextlib.suppress(ValueError, KeyError):
            value = self._read(given)
            if value is None or self._fits(value):
                return value
        ways = f"{self.flag}, {self.variable} or settings.py"
        raise ValueRefused(f"{self.name}={given!r} is not allowed: it takes {self.allowed} (set by {ways})")

    def _read(self, given):
        if given is None and not self.optional:
            raise ValueError
        if self.kind is str and not isinstance(given, str | os.PathLike | None):
            raise ValueError
        text = as_text(given)
        if self.optional and text.lower() in ("none", ""):
            return None
        return {"true": True, "false": False}[text.lower()] if self.kind is bool else self.kind(text)

    def _fits(self, value):
        if self.choices:
            return value in self.choices
        if self.kind is float and not math.isfinite(value):
            return False
        return all(OPERATORS[sign](value, float(bound)) for sign, bound in map(str.split, self.limits))


def as_text(value: object) -> str:
    """A value as one writes it on the command line."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _knob(name, annotation, help):
    """The Knob of an annotation; ValueError for one that has no meaning here."""
    annotation, notes = _without_notes(annotation)
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    optional = types.NoneType in options
    (kind,) = (option for option in options if option is not types.NoneType)  # ValueError for several
    kind, inner_notes = _without_notes(kind)
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    kind = str if choices and all(isinstance(choice, str) for choice in choices) else kind
    alone, limits = ("true" if kind is bool else None), []
    for note in (*notes, *inner_notes):
        if kind is str and str(note).startswith(FLAG_ALONE):
            alone = str(note).removeprefix(FLAG_ALONE)
        elif kind in (int, float) and re.fullmatch(r"(>=?|<=?) -?[\d.]+(e-?\d+)?", str(note)):
            limits.append(note)
        else:
            raise ValueError
    if kind not in WORDS:
        raise ValueError
    return Knob(name, kind, optional, choices, tuple(limits), alone, help)


def _without_notes(annotation):
    """(type, notes) of an Annotated, (type, ()) of another."""
    notes = getattr(annotation, "__metadata__", ())
    return (typing.get_args(annotation)[0] if notes else annotation), notes


def _is_final(annotation):
    return annotation is typing.Final or typing.get_origin(annotation) is typing.Final


def _is_union(annotation):
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


# ----------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Statement:
    """A statement of the page, ready to be run."""

    line: int
    names: tuple[str, ...]  # that it assigns to
    annotation: CodeType | None
    help: str  # the string below it
    code: CodeType


class Page:
    """A module of knobs: what they are, and what they are worth under whatever sets them.

    Raises PageRefused for a page with a knob that lacks its annotation, its help or its value.
    """

    def __init__(self, module: ModuleType):
        self.module, self.file = module, Path(str(module.__file__))
        self._statements = self._read()
        self._written = self._run({})  # what the file says, whatever was assigned since
        self.knobs: dict[str, Knob] = {}
        complaints = [*self._describe_knobs(), *self._strangers()]
        if complaints:
            raise PageRefused(complaints)

    @property
    def assigned(self) -> dict[str, object]:
        """What Python code assigned since the import, as a notebook's `settings.BATCH_SIZE = 64`."""
        now = vars(self.module)
        written = {name: value for name, value in self._written.items() if name.isupper() and name in now}
        return {name: now[name] for name, value in written.items() if _differ(now[name], value)}

    def values(self, given: dict[str, object]) -> dict[str, object]:
        """Every knob's value: those given, and what the page says and works out from them."""
        values = self._run(given)
        return {name: values[name] for name in self.knobs}

    def _read(self):
        try:
            body = ast.parse(self.file.read_text(encoding="utf-8")).body
        except SyntaxError as error:  # the file was edited after its import
            raise PageRefused([f"{self.file.name}, line {error.lineno}: {error.msg}"]) from None
        return [
            Statement(
                node.lineno,
                tuple(target.id for target in _targets(node) if isinstance(target, ast.Name)),
                compile(ast.Expression(node.annotation), "", "eval") if isinstance(node, ast.AnnAssign) else None,
                " ".join(_string(below).split()),
                compile(ast.Module([node], []), str(self.file), "exec"),
            )
            for node, below in zip(body, [*body[1:], None])
        ]

    def _run(self, given):
        """The page from top to bottom, each value that is given in its place, so that what is worked out below follows."""
        values = {"__name__": self.module.__name__, "__file__": str(self.file)}
        for statement in self._statements:
            try:
                exec(statement.code, values)
            except Exception as error:  # the page is Python: anything may fail, such as a division by a knob
                raise PageRefused([f"{self._where(statement)}: {type(error).__name__}: {error}"]) from None
            values.update((name, value) for name, value in given.items() if name in values)
        return values

    def _where(self, statement):
        return f"{self.file.name}, line {statement.line}"

    def _describe_knobs(self):
        """Fill `knobs` -> what the page lacks, a line each."""
        statements = {name: statement for statement in self._statements for name in statement.names}
        times = Counter(name for statement in self._statements for name in statement.names)
        for name in [name for name in {**statements, **self._written} if name.isupper()]:
            statement = statements.get(name)
            where = f"{self._where(statement) if statement else self.file.name}: {name}"
            if name not in self._written:
                yield f"{where} has no value"
            elif times[name] > 1:
                yield f"{where} is set for the second time: leave one of the two"
            elif statement is None or statement.annotation is None:
                kind = type(self._written[name]).__name__
                yield f"{where} has no annotation: write {name}: {kind} = ..., and its help as a string below"
            else:
                try:
                    annotation = eval(statement.annotation, self._written)
                    knob = None if _is_final(annotation) else _knob(name, annotation, statement.help)
                except Exception:  # of whatever Python the annotation is
                    yield f"{where} has an annotation that is not known here: it takes {KNOWN_TYPES}"
                    continue
                if knob and not knob.help:
                    yield f"{where} has no help: write one line of it as a string below"
                elif knob:
                    self.knobs[name] = knob

    def _strangers(self):
        """Names that look like knobs and set nothing: misspelt on the page, or assigned to its module."""
        for statement in self._statements:
            for name in statement.names:
                near = None if name.isupper() else self.near(name)
                if near:
                    yield f"{self._where(statement)}: {name} is no knob; did you mean {near}? (if not, rename it)"
        module = self.module.__name__
        for name in sorted(set(vars(self.module)) - set(self._written)):
            if not name.startswith("_"):
                near = self.near(name)
                yield f"{module}.{name} sets nothing: " + (f"did you mean {module}.{near}?" if near else "no such knob")

    def near(self, name: str) -> str | None:
        """The knob that a misspelt name may mean."""
        return next(iter(difflib.get_close_matches(name.upper(), self.knobs, 1, 0.8)), None)


def _targets(node):
    return node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []


def _string(node):
    """The text of a string that stands alone, or nothing."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _differ(value, other):
    return type(value) is not type(other) or value != other  # in this order: an array's != is no bool


# ---------------------------------------------------------------------------------------- without a parser


def value(module: ModuleType, name: str) -> object:
    """The value of a knob for a function that was called without one: the page's, or what was assigned since."""
    page = Page(module)
    return page.knobs[name].value(page.values(page.assigned)[name])


class Row(typing.NamedTuple):
    """A knob for a table of them."""

    name: str
    default: str
    help: str
    allowed: str


def rows(module: ModuleType) -> list[Row]:
    """The knobs of a page in its order, for documentation."""
    page = Page(module)
    defaults = page.values({})
    return [Row(name, as_text(defaults[name]), knob.help, knob.allowed) for name, knob in page.knobs.items()]


def debug_is_on(module: ModuleType) -> bool:
    """Whether this process's command line, its environment or the page asks for tracebacks."""
    parser = Parser(module, "")
    arguments, _ = parser.parse_known_args()
    return parser.resolved(arguments).debug


# ---------------------------------------------------------------------------------------------- the parser


class Parser(argparse.ArgumentParser):
    """An argparse parser of a page's knobs and a script's own arguments; a mistake ends in one line and exit code 2."""

    def __init__(self, module: ModuleType, description: str | None, knobs: Iterable[str] = ()):
        super().__init__(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
        self.names = [ALWAYS[0], *knobs, *ALWAYS[1:]]
        try:
            self.page = Page(module)
            defaults = self.page.values(self.page.assigned)
        except PageRefused as refusal:
            self.errors(refusal.complaints)
        if missing := [name for name in self.names if name not in self.page.knobs]:
            self.errors(f"{self.page.file.name} has no {name}, which this script needs" for name in missing)
        ways = f"each also by the environment variable CLIP_<NAME>, or by editing {self.page.file.name}"
        group = self.add_argument_group("knobs", ways)
        for knob in map(self.page.knobs.__getitem__, self.names):
            group.add_argument(
                knob.flag,
                nargs=None if knob.alone is None else "?",
                const=knob.alone,
                default=argparse.SUPPRESS,
                metavar="true|false" if knob.kind is bool else "|".join(knob.choices) or knob.kind.__name__.upper(),
                help=f"{knob.help} [{as_text(defaults[knob.name]) or 'empty'}]".replace("%", "%%"),
            )

    def error(self, message: str) -> typing.NoReturn:
        self.errors([message])

    def errors(self, messages: Iterable[str]) -> typing.NoReturn:
        """Leave with a line for each mistake."""
        self.exit(2, "".join(f"{self.prog}: error: {' '.join(message.split())}\n" for message in messages))

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        """The script's own arguments, its knobs as lower-case attributes, and `given`, the knobs that were set.

        Set is what a flag, the environment or Python code gave a value; a default that was edited on the page is none.
        """
        self._tell_what_is_easily_overlooked()
        args = sys.argv[1:] if args is None else list(args)
        return self.resolved(super().parse_args(self._with_negative_values(args), namespace))

    def resolved(self, arguments: argparse.Namespace) -> argparse.Namespace:
        """The arguments with every knob of this parser: texts become values, what was not given is filled in."""
        knobs, texts = self.page.knobs, self._texts(arguments)
        given, complaints = {}, []
        for name, raw in {**self.page.assigned, **texts}.items():
            try:
                given[name] = knobs[name].value(raw) if name in knobs else raw
            except ValueRefused as refusal:
                complaints.append(str(refusal))
        try:
            values = self.page.values(given)
        except PageRefused as refusal:
            self.errors([*complaints, *refusal.complaints])
        refused = {**self.page.assigned, **texts}.keys() - given.keys()
        for name in self.names:
            try:  # a default that was edited on the page obeys the same rule
                setattr(arguments, name.lower(), knobs[name].value(values[name]))
            except ValueRefused as refusal:
                complaints += [] if name in refused else [str(refusal)]
        if complaints:
            self.errors(complaints)
        arguments.given = set(given) & set(self.names)
        return arguments

    def _with_negative_values(self, args):
        """`--eps -1e-8` as `--eps=-1e-8`: argparse takes such a number for a flag, and would not say what is allowed."""
        flags = {self.page.knobs[name].flag for name in self.names}
        joined: list[str] = []
        for arg in args:
            if joined and joined[-1] in flags and re.match(r"-(\d|\.\d|inf|nan)", arg):
                joined[-1] += f"={arg}"
            else:
                joined.append(arg)
        return joined

    def _texts(self, arguments):
        """{knob: text} of the environment and, stronger, of the flags."""
        texts = {}
        for knob in map(self.page.knobs.__getitem__, self.names):
            if knob.variable in os.environ:
                texts[knob.name] = os.environ[knob.variable]
            if hasattr(arguments, knob.name.lower()):
                texts[knob.name] = getattr(arguments, knob.name.lower())
        return texts

    def _tell_what_is_easily_overlooked(self):
        variables = {knob.variable for knob in self.page.knobs.values()}
        for name in sorted(name for name in os.environ if name.startswith("CLIP_") and name not in variables):
            if near := self.page.near(name.removeprefix("CLIP_")):
                print(f"{self.prog}: warning: {name} sets nothing; did you mean CLIP_{near}?", file=sys.stderr)
        if self.page.assigned:
            listed = ", ".join(f"{name}={value!r}" for name, value in self.page.assigned.items())
            print(f"{self.prog}: assigned in Python: {listed}", file=sys.stderr)


class _HelpFormatter(argparse.HelpFormatter):
    """Help with paragraphs that are wrapped, and command lines that stand as they are."""

    def __init__(self, prog, **options):
        super().__init__(prog, max_help_position=18, **options)  # so narrow that a pattern is not broken

    def _fill_text(self, text, width, indent):
        paragraphs = [
            paragraph if "\n    " in f"\n{paragraph}" else textwrap.fill(" ".join(paragraph.split()), width)
            for paragraph in text.strip().split("\n\n")
        ]
        return textwrap.indent("\n\n".join(paragraphs), indent)
