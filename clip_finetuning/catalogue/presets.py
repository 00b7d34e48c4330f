"""The columns of exports that many have: `clip_prep.py --table products_export.csv --preset shopify`."""

from collections.abc import Sequence
from pathlib import Path

from clip_finetuning.catalogue.columns import Columns

# The forms of each export, the first that fits counts. Of the columns, pictures and captions must be there.
PRESETS: dict[str, tuple[Columns, ...]] = {
    # Products > Export; the second is what Shopify's newer template calls the same. A variant's picture is one of these.
    "shopify": (
        Columns(
            image="Image Src",
            template="{Title}. {Body (HTML)}",
            product="Handle",
            category="Product Category",
            subcategory="Type",
        ),
        Columns(
            image="Product image URL",
            template="{Title}. {Description}",
            product="URL handle",
            category="Product category",
            subcategory="Type",
        ),
    ),
    # Products > Export. A variation is a row of its own, with a name of its own.
    "woocommerce": (
        Columns(
            image="Images",
            template="{Name}. {Short description} {Description}",
            product="ID",
            category="Categories",
            other_products=("SKU",),
        ),
    ),
    # A product feed, with underscores or with spaces; sizes and colours of one product share its group.
    "google-merchant": (
        Columns(
            image="image_link",
            template="{title}. {description}",
            product="item_group_id",
            category="google_product_category",
            subcategory="product_type",
            more_images=("additional_image_link",),
            other_products=("id",),
        ),
        Columns(
            image="image link",
            template="{title}. {description}",
            product="item group id",
            category="google product category",
            subcategory="product type",
            more_images=("additional image link",),
            other_products=("id",),
        ),
    ),
    # styles.csv of paramaggarwal/fashion-product-images-dataset (and -small): images/15970.jpg.
    "kaggle-fashion": (
        Columns(
            image=None,
            image_template="{id}.jpg",
            captions=("productDisplayName",),
            product="id",
            category="masterCategory",
            subcategory="articleType",
        ),
    ),
    # articles.csv of H&M Personalized Fashion Recommendations: images/010/0108775015.jpg; an article is a product's colour.
    "h-and-m": (
        Columns(
            image=None,
            image_template="{article_id:0>10|:3}/{article_id:0>10}.jpg",
            template="{prod_name}. {colour_group_name} {product_type_name}. {detail_desc}",
            product="product_code",
            category="product_group_name",
            subcategory="product_type_name",
        ),
    ),
    # Parquet with pictures inside; the last two are an image folder's metadata.csv or metadata.jsonl.
    "huggingface": (
        Columns(image="image", captions=("text",), product="item_ID", category="category1", subcategory="category2"),
        Columns(image="image", captions=("caption",), product="product_id", category="category"),
        Columns(
            image="image",
            captions=("productDisplayName",),
            product="id",
            category="masterCategory",
            subcategory="articleType",
        ),
        Columns(image="file_name", captions=("text",), product="product_id", category="category"),
        Columns(image="file_name", captions=("caption",), product="product_id", category="category"),
    ),
}
TEMPLATES = ("template", "image_template")
IMAGE_FOLDERS = {"kaggle-fashion": "images", "h-and-m": "images"}  # beside the table, where they are there


def with_preset(given: Columns, preset: str, names: Sequence[str]) -> tuple[Columns, list[str]]:
    """(the columns of a preset, overruled by those given, what is to be said of it).

    Raises ValueError if none of the preset's forms fits a table of these columns.
    """
    forms = [_overruled(form, given) for form in PRESETS[preset]]
    form = next((form for form in forms if not _lacking(form, names)), None)
    if form is None:
        lacking = ", ".join(min((_lacking(form, names) for form in forms), key=len))
        other = fitting(names)
        advice = f"its columns fit --preset {other}" if other else f"it has {', '.join(names) or 'none'}"
        raise ValueError(f"--preset {preset} needs the columns {lacking}, which the table has not; {advice}")
    known = set(names).union(given.named())
    absent = [name for name in form.named() if name not in known]
    said = [f"--preset {preset} is used without {', '.join(absent)}, which the table has not"] if absent else []
    fields = {
        name: tuple(column for column in value if column in known)
        if isinstance(value, tuple)
        else value
        if name in TEMPLATES or value in known
        else None
        for name, value in form._asdict().items()
    }
    return form._replace(**fields), said


def image_folder(folder: Path, preset: str | None) -> Path:
    """Where the pictures of a table in a folder are: beside it, or where the preset has them."""
    inner = folder / IMAGE_FOLDERS.get(preset or "", ".")
    return inner if inner.is_dir() else folder


def fitting(names: Sequence[str]) -> str | None:
    """The preset whose pictures, captions and products a table has columns for, or None."""
    for preset, forms in PRESETS.items():
        for form in forms:
            if not _lacking(form, names) and {form.product, *form.other_products} & set(names):
                return preset
    return None


def _lacking(form: Columns, names: Sequence[str]) -> list[str]:
    """The columns that the pictures and the captions need and that are not there."""
    needed = [*form._replace(more_images=()).of_images(), *form.of_captions()]
    return [name for name in dict.fromkeys(needed) if name not in names]


def _overruled(form: Columns, given: Columns) -> Columns:
    """What is given instead of the preset's: pictures by one of the two ways, captions likewise, and each other field."""
    if given.image or given.image_template:
        form = form._replace(image=None, image_template=None, more_images=())
    if given.captions or given.template:
        form = form._replace(captions=(), template=None)
    if given.product:
        form = form._replace(other_products=())
    return form._replace(**{name: value for name, value in given._asdict().items() if value})
