"""A page of knobs such as settings.py: what each knob takes, and what all are worth under whatever sets them.

A knob is an annotated assignment in capitals with its help as the string below it, `BATCH_SIZE: AtLeast1 = 256`. Its
type is bool, int, float, str or a Literal of texts, each also `| None`; Annotated adds what a number is held to
(`Annotated[int, ">= 1", "<= 100"]`) or what the flag means without a value (`Annotated[str, "flag alone: auto"]`).
What is no knob is Final. A page that says less is refused. Whatever the page works out from a knob follows that knob's
value, unless it is set itself.
"""

import ast
import contextlib
import difflib
import math
import operator
import os
import re
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

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

    def value(self, given: object) -> Any:
        """What a text, or a value that Python code assigned, stands for; ValueRefused if the knob does not take it."""
        with contextlib.suppress(ValueError, KeyError):
            value = self._read(given)
            if value is None or self._fits(value):
                return value
        ways = f"{self.flag}, {self.variable} or settings.py"
        raise ValueRefused(f"{self.name}={given!r} is not allowed: it takes {self.allowed} (set by {ways})")

    def _read(self, given: object) -> Any:
        if given is None and not self.optional:
            raise ValueError
        if self.kind is str and not isinstance(given, str | os.PathLike | None):
            raise ValueError
        text = as_text(given)
        if self.optional and text.lower() in ("none", ""):
            return None
        return {"true": True, "false": False}[text.lower()] if self.kind is bool else self.kind(text)

    def _fits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind is float and not math.isfinite(value):
            return False
        return all(OPERATORS[sign](value, float(bound)) for sign, bound in map(str.split, self.limits))


def as_text(value: object) -> str:
    """A value as one writes it on the command line."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _knob(name: str, annotation: Any, help: str) -> Knob:
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


def _without_notes(annotation: Any) -> tuple[Any, tuple]:
    """(type, notes) of an Annotated, (type, ()) of another."""
    notes = getattr(annotation, "__metadata__", ())
    return (typing.get_args(annotation)[0] if notes else annotation), notes


def _is_final(annotation: object) -> bool:
    return annotation is typing.Final or typing.get_origin(annotation) is typing.Final


def _is_union(annotation: object) -> bool:
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

    def _read(self) -> list[Statement]:
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

    def _run(self, given: Mapping[str, object]) -> dict[str, Any]:
        """The page from top to bottom, each value that is given in its place, so that what is worked out below follows."""
        values: dict[str, Any] = {"__name__": self.module.__name__, "__file__": str(self.file)}
        for statement in self._statements:
            try:
                exec(statement.code, values)
            except Exception as error:  # the page is Python: anything may fail, such as a division by a knob
                raise PageRefused([f"{self._where(statement)}: {type(error).__name__}: {error}"]) from None
            values.update((name, value) for name, value in given.items() if name in values)
        return values

    def _where(self, statement: Statement) -> str:
        return f"{self.file.name}, line {statement.line}"

    def _describe_knobs(self) -> Iterator[str]:
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

    def _strangers(self) -> Iterator[str]:
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


def _targets(node: ast.stmt) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []


def _string(node: ast.stmt | None) -> str:
    """The text of a string that stands alone, or nothing."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _differ(value: object, other: object) -> bool:
    return type(value) is not type(other) or value != other  # in this order: an array's != is no bool


# ---------------------------------------------------------------------------------------- without a command line


def value(module: ModuleType, name: str) -> Any:
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
