"""Rows that continue a product: Shopify writes title and category once, and further pictures of the product below."""

from collections import OrderedDict

from clip_finetuning.catalogue.cells import text_and_kind
from clip_finetuning.runtime.text import text_of

REMEMBERED = 100_000  # products whose first row is kept: those that continue one stand near it


class Continuation:
    """Fills what is blank in a row that continues a product with the values of the product's first row.

    A row continues a product if its `titles` are blank and one of them is not in the product's first row; a row of nothing
    but a picture continues the row above it.
    """

    def __init__(self, product: str | None, titles: list[str], fields: list[str]) -> None:
        """`fields` are the columns that are inherited."""
        self.product, self.titles, self.fields = product, titles, fields
        self.inherited, self.alone = 0, 0  # rows that were filled; those of them that had no product id
        self._first: OrderedDict[str, dict] = OrderedDict()  # product -> the values of its first row
        self._above = ""  # product of the row above

    def filled(self, values: dict) -> tuple[dict, bool]:
        """(the values of a row, whether it continues a product)."""
        if self.product is None:
            return values, False
        product, kind = text_and_kind(values.get(self.product))
        alone = not product and not kind and _all_blank(values, self.fields)
        product = product or (self._above if alone else "")
        self._above = product
        first = self._first.get(product)
        if first is None or not _all_blank(values, self.titles) or _all_blank(first, self.titles):
            if product and first is None:
                self._first[product] = {name: values.get(name) for name in self.fields}
                if len(self._first) > REMEMBERED:
                    self._first.popitem(last=False)
            return values, False
        self.inherited += 1
        self.alone += alone
        blank = {name: first[name] for name in self.fields if _all_blank(values, [name])}
        return {**values, **blank, self.product: product}, True

    def interrupted(self) -> None:
        """The row above could not be read: a picture alone does not continue what stands before it."""
        self._above = ""

    def remarks(self) -> list[str]:
        """How many rows were filled."""
        lines = [f"{self.inherited:,} rows inherit what is blank from the first row of their product"]
        if self.alone:
            lines.append(f"{self.alone:,} of them are a picture alone and taken for a view of the row above")
        return lines if self.inherited else []


def _all_blank(values: dict, names: list[str]) -> bool:
    cells = (values.get(name) for name in names)
    return not any(cell if isinstance(cell, list) else text_of(cell) for cell in cells)
