"""Rows that continue a product: Shopify writes title and category once, and further pictures of the product below."""

from collections import OrderedDict

from clip_finetuning.runtime.text import text_of

REMEMBERED = 100_000  # products whose first row is kept: those that continue one stand near it


class Continuation:
    """Fills what is blank in a row that continues a product with the values of the product's first row.

    A row continues a product if the first column of its caption is blank and the product's first row has it; a row of
    nothing but a picture continues the row above it.
    """

    def __init__(self, product: str | None, captions: list[str], others: list[str]) -> None:
        self.product, self.captions = product, captions
        self.fields = list(dict.fromkeys([*captions, *others]))
        self.inherited, self.alone = 0, 0  # rows that were filled; those of them that had no product id
        self._first: OrderedDict[str, dict] = OrderedDict()  # product -> the values of its first row
        self._above = ""  # product of the row above

    def filled(self, values: dict) -> tuple[dict, bool]:
        """(the values of a row, whether it continues a product)."""
        if self.product is None:
            return values, False
        product = text_of(values.get(self.product))
        alone = not product and not any(text_of(values.get(name)) for name in self.fields)
        product = product or (self._above if alone else "")
        self._above = product
        first = self._first.get(product)
        if first is None or text_of(values.get(self.captions[0])):
            if product and first is None:
                self._first[product] = {name: values.get(name) for name in self.fields}
                if len(self._first) > REMEMBERED:
                    self._first.popitem(last=False)
            return values, False
        blank = {name: first[name] for name in self.fields if not text_of(values.get(name)) and text_of(first[name])}
        if not blank:
            return values, False
        self.inherited += 1
        self.alone += alone
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
