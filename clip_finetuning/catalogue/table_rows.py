"""Rows of a catalogue, made of the records of a table: pictures, captions, products."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from clip_finetuning.catalogue.attributes import with_text
from clip_finetuning.catalogue.cells import Cells
from clip_finetuning.catalogue.columns import Columns
from clip_finetuning.catalogue.continued import Continuation
from clip_finetuning.catalogue.image_template import fill_image_template
from clip_finetuning.catalogue.languages import languages_of
from clip_finetuning.catalogue.picture_folder import Found, PictureFolder
from clip_finetuning.catalogue.rows import Row, RowError, Skipped, caption_id, make_row
from clip_finetuning.catalogue.stored_pictures import StoredPicture
from clip_finetuning.runtime.text import text_of

NO_NAME = "no image name"
CONTINUES = "no picture of its own, in a row that continues a product"


class Captions(NamedTuple):
    """The wordings of a row, and the language of each, or nothing."""

    texts: Sequence[str] = ()
    languages: Sequence[str] = ()


class TableRows:
    """Makes rows of records, and counts what was guessed on the way.

    Each record becomes a row or a skip. One that names several pictures becomes as many rows, or skips, as it names.
    """

    def __init__(
        self, columns: Columns, pictures: PictureFolder, cells: Cells, chosen: Callable[[str], bool] | None = None
    ) -> None:
        """`cells` reads texts; `chosen` says of a product's id whether it is wanted, None: all are."""
        self.columns, self.pictures, self.cells, self.chosen = columns, pictures, cells, chosen
        self.captions, self.images = columns.of_captions(), columns.of_images()
        fields = [name for name in (*self.captions, columns.category, columns.subcategory, *columns.attributes) if name]
        titles = self.captions[:1] if columns.template else self.captions
        self.continuation = Continuation(columns.product, titles, list(dict.fromkeys(fields)))
        self.languages = {} if columns.template else languages_of(columns.captions)
        self.several, self.more = 0, 0  # records that name several pictures, and how many these are beyond one each

    def of(self, records: Iterable[tuple[str, dict | str]]) -> Iterator[Row | Skipped]:
        """Yield the rows of (where, {column: value}) records, in order; a text instead of values says what is wrong."""
        for where, values in records:
            if isinstance(values, str):
                self.continuation.interrupted()
                if self.chosen is None or self.chosen(where):
                    yield Skipped(where, values)
                continue
            values, continues = self.continuation.filled(values)
            problem, captions, product_id = "", Captions(), ""
            try:
                product_id = self._product(where, values)
                captions = self._captions(where, values)
            except RowError as error:
                problem = str(error)
            product_id = product_id or caption_id(next(iter(captions.texts), ""))
            if self.chosen and not self.chosen(product_id or where):
                continue
            try:
                if problem:
                    raise RowError(problem)
                yield from self._views(where, values, captions, product_id)
            except RowError as error:
                yield Skipped(where, CONTINUES if continues and str(error) == NO_NAME else str(error))

    def remarks(self) -> list[str]:
        """What was guessed, a line each."""
        lines = [f"{self.several:,} rows name several pictures, {self.more:,} more than rows"] if self.several else []
        if self.languages:
            named = ", ".join(f"{name} {language}" for name, language in self.languages.items())
            lines.append(f"captions are in languages, by the names of their columns: {named}")
        return [*lines, *self.continuation.remarks(), *self.pictures.remarks()]

    def _captions(self, where: str, values: dict) -> Captions:
        """The wordings of a row. Raises RowError for what is no text."""
        found = self.cells.captions(where, values, self.columns.captions, self.columns.template or "")
        languages = [self.languages[name] for name, _ in found] if self.languages else []
        return Captions([text for _, text in found], languages)

    def _views(self, where: str, values: dict, captions: Captions, product_id: str) -> list[Row | Skipped]:
        """A row for each picture. Raises RowError if there is none that can be used."""
        found = self._pictures(values)
        usable = [picture for picture in found if isinstance(picture, tuple)]
        if not usable:
            raise next((error for error in found if isinstance(error, RowError)), RowError(NO_NAME))
        category = self.cells.label(where, "category", values.get(self.columns.category))
        subcategory = self.cells.label(where, "subcategory", values.get(self.columns.subcategory))
        attributes = with_text(
            (name, self.cells.attribute(where, name, values.get(name))) for name in self.columns.attributes
        )
        rows: list[Row | Skipped] = [
            make_row(*picture, captions.texts, category, subcategory, product_id, attributes, captions.languages)
            if isinstance(picture, tuple)
            else Skipped(where, str(picture))
            for picture in found
        ]
        self.several += len(rows) > 1
        self.more += len(rows) - 1
        return rows

    def _pictures(self, values: dict) -> list[Found | RowError]:
        cells: list[Any] = [values.get(name) for name in self.columns.more_images]
        if self.columns.image_template:
            texts = {name: text_of(values.get(name)) for name in self.images}
            cells.insert(0, fill_image_template(self.columns.image_template, texts))
        else:
            cells.insert(0, values.get(self.columns.image))
        found = [picture for cell in cells for picture in self._in_cell(cell)]
        return list(dict.fromkeys(found))

    def _in_cell(self, cell: object) -> list[Found | RowError]:
        """The pictures of a cell: those stored in the table itself, and those that it names."""
        if isinstance(cell, list) and any(isinstance(item, StoredPicture) for item in cell):
            return [picture for item in cell for picture in self._in_cell(item)]
        return [(cell.path, cell.name)] if isinstance(cell, StoredPicture) else self.pictures.find_all(cell)

    def _product(self, where: str, values: dict) -> str:
        """The first id that is not blank. Raises RowError for what is no id."""
        names = [name for name in (self.columns.product, *self.columns.other_products) if name]
        return next((text for name in names if (text := self.cells.product_id(where, values.get(name)))), "")
