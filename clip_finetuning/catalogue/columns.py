"""Which column of a table holds what."""

from typing import NamedTuple

from clip_finetuning.catalogue.caption_template import template_fields
from clip_finetuning.catalogue.image_template import image_template_fields


class Columns(NamedTuple):
    """Which column holds what. Several `captions` are wordings of the same; a `template` makes one of any columns.

    `attributes` are taken as they are. `more_images` hold further views, an `image_template` makes the picture's name of any columns instead. Where
    `product` is blank, the first of `other_products` that is not blank counts.
    """

    image: str | None
    captions: tuple[str, ...] = ()
    template: str | None = None
    product: str | None = None
    category: str | None = None
    subcategory: str | None = None
    image_template: str | None = None
    more_images: tuple[str, ...] = ()
    other_products: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def of_captions(self) -> list[str]:
        """The columns that the caption is made of. Raises ValueError for a template that cannot be filled."""
        return [*self.captions, *(template_fields(self.template) if self.template else [])]

    def of_images(self) -> list[str]:
        """The columns that name pictures. Raises ValueError for a template that cannot be filled."""
        if self.image_template:
            return [*image_template_fields(self.image_template), *self.more_images]
        return [*filter(None, [self.image]), *self.more_images]

    def named(self) -> list[str]:
        """The names of all columns that are needed. Raises ValueError for a template that cannot be filled."""
        others = (self.product, *self.other_products, self.category, self.subcategory, *self.attributes)
        return list(dict.fromkeys(filter(None, [*self.of_images(), *self.of_captions(), *others])))
