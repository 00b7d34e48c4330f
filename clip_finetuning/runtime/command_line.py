"""The command line of a page of knobs such as settings.py: flags, environment variables and help are made of the page.

Strength: the page < what Python code assigned to its module < the environment < flags.
"""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NoReturn

from clip_finetuning.runtime.knobs import Page, PageRefused, ValueRefused, as_text

ALWAYS = ("ON_COLAB", "DEBUG")  # knobs of every script: the page's paths follow the one, `console.run` asks the other


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

    def error(self, message: str) -> NoReturn:
        self.errors([message])

    def errors(self, messages: Iterable[str]) -> NoReturn:
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


def names(text: str) -> tuple[str, ...]:
    """The type of a flag that takes names with commas between them, each once."""
    found = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; it takes names such as colour,material")
    return found


def debug_is_on(module: ModuleType) -> bool:
    """Whether this process's command line, its environment or the page asks for tracebacks."""
    parser = Parser(module, "")
    arguments, _ = parser.parse_known_args()
    return parser.resolved(arguments).debug
