"""Turn a raw catalogue into the JSON mapping that create_webdataset.py reads.

    python clip_prep.py                                  # train: full_train_info_PAI/ + extracted_train_images/
    python clip_prep.py --split all --data-dir /data/fashiongen
    python clip_prep.py --hdf5 fashiongen_256_256_train.h5
    python clip_prep.py --table products.csv --images photos --image-column photo --product-column sku \\
        --category-column kind --caption-template "{title}. {colour} {material}." --valid-fraction 0.1
    python clip_prep.py --table products_export.csv --preset shopify --valid-fraction 0.1 --test-fraction 0.1
    python clip_prep.py --audit clip_dataset_train.json clip_dataset_valid.json --drop-leaks

Writes `clip_dataset_{split}.json`: a list of objects with image_path, image_name, caption, category and product_id, and
subcategory, captions and attributes (--attributes) where there are any. Where a table names pictures by URL, `--download DIR` fetches them. The same catalogue gives the same bytes on any machine. `--audit` checks
such files for what harms training or flatters evaluation, and writes `audit.json`; its exit code is 1 if products or
pictures are in more than one of them. With `--drop-leaks` these leave the training split: what is left is written to
`{name}_clean.json`, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import settings
from clip_finetuning import catalogue, runtime
from clip_finetuning.runtime import command_line, console

if TYPE_CHECKING:
    from clip_finetuning.catalogue.download import Downloads, OfUrl
    from clip_finetuning.catalogue.rows import Source
    from clip_finetuning.catalogue.summary import Summary

SPLITS = ("train", "valid", "test")
OUTPUT, AUDIT = "clip_dataset_{split}.json", "audit.json"
DOWNLOAD_RATE, DOWNLOAD_MEGABYTES = 20, 20
TABLE_OPTIONS = (
    *("preset", "images", "image_column", "image_template", "caption_column", "caption_template", "product_column"),
    *(
        "category_column",
        "subcategory_column",
        "valid_fraction",
        "test_fraction",
        "encoding",
        "keep_markup",
        "download",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Write the JSON mapping of each split that is asked for, or audit those there are."""
    args = parse_arguments(argv)
    if args.audit:
        return audit_mappings(args.audit, args.output, args.num_workers, args.drop_leaks)
    of_url = fetch_pictures(args).picture if args.download else None
    sources = open_sources(args, of_url)
    write({args.output.replace("{split}", split): source for split, source in sources.items()}, args.max_skipped)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The script's own arguments and its knobs."""
    parser = command_line.Parser(settings, __doc__, ["DATA_DIR", "NUM_WORKERS"])
    kind = parser.add_argument_group("what to read (default: PAI pickles)").add_mutually_exclusive_group()
    kind.add_argument("--hdf5", metavar="FILE", help="an official Fashion-Gen file (pip install h5py)")
    kind.add_argument("--table", metavar="FILE", help=".csv, .tsv, .json, .jsonl, .xlsx or .parquet")
    kind.add_argument(
        "--audit", metavar="JSON", nargs="+", help="check JSON mappings instead, such as those of train and valid"
    )

    parser.add_argument(
        "--split",
        choices=(*SPLITS, "all"),
        help="which split to write [train; --hdf5: as the file's name says; with a fraction: all]",
    )
    parser.add_argument("--output", help=f"the JSON file; {{split}} stands for the split [{OUTPUT}; --audit: {AUDIT}]")
    parser.add_argument(
        "--max-skipped", type=float, metavar="0.05", help="write nothing if more than this share of the rows is skipped"
    )
    parser.add_argument(
        "--drop-leaks", action="store_true", help="with --audit: write the files without what others hold as well"
    )
    parser.add_argument("--allow-outside", action="store_true", help="take pictures outside the image folder too")

    parser.add_argument(
        "--attributes",
        metavar="COLUMN,...",
        type=command_line.names,
        default=(),
        help="columns, fields or keys to keep beside the category, such as colour,material, for --truth of evaluate_clip.py",
    )

    hdf5 = parser.add_argument_group("with --hdf5")
    hdf5.add_argument("--caption-fields", metavar="FIELD,...", help="what makes the caption [description]")

    table = parser.add_argument_group("with --table")
    table.add_argument(
        "--preset",
        choices=tuple(catalogue.presets.PRESETS),
        metavar="NAME",
        help=f"columns of a known export, which flags overrule: {', '.join(catalogue.presets.PRESETS)}",
    )
    table.add_argument("--images", metavar="DIR", help="folder of the pictures [that of the table]")
    image = table.add_mutually_exclusive_group()
    image.add_argument("--image-column", metavar="NAME", nargs="+", help="the picture's path in it; several: views")
    image.add_argument("--image-template", metavar="TEXT", help="such as '{id:0>10|:3}/{id:0>10}.jpg'")
    caption = table.add_mutually_exclusive_group()
    caption.add_argument("--caption-column", metavar="NAME", nargs="+", help="several: wordings of the same")
    caption.add_argument("--caption-template", metavar="TEXT", help="such as '{title}. {colour} {material}.'")
    table.add_argument(
        "--product-column",
        metavar="NAME",
        nargs="+",
        help="several: the first that is not blank; without: equal captions are one product",
    )
    table.add_argument("--category-column", metavar="NAME")
    table.add_argument("--subcategory-column", metavar="NAME")
    table.add_argument(
        "--valid-fraction",
        type=float,
        metavar="0.1",
        help="share of the products, by a hash of their ids, to validate on",
    )
    table.add_argument("--test-fraction", type=float, metavar="0.1", help="share of them to test on, likewise")
    table.add_argument(
        "--encoding", metavar="NAME", help="of a text file, such as gbk [UTF-8, or a guess that is said]"
    )
    table.add_argument(
        "--keep-markup", action="store_true", default=None, help="leave HTML tags and entities in captions"
    )
    table.add_argument("--download", metavar="DIR", help="fetch pictures that are URLs into DIR, each once")
    table.add_argument(
        "--download-rate", type=positive, metavar="N", help=f"requests a second to one host [{DOWNLOAD_RATE}]"
    )
    table.add_argument(
        "--download-limit", type=positive, metavar="MB", help=f"the largest picture [{DOWNLOAD_MEGABYTES}]"
    )
    table.add_argument("--ray", metavar="ADDRESS", help="download on a Ray cluster: HOST:6379, auto or local")
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    return args


def check_arguments(parser: command_line.Parser, args: argparse.Namespace) -> None:
    """Refuse what does not go together; fill in the defaults that depend on the kind of catalogue."""
    for kind, names in {"hdf5": ["caption_fields"], "table": TABLE_OPTIONS}.items():
        for name in names:
            if getattr(args, name) is not None and not getattr(args, kind):
                parser.error(f"--{name.replace('_', '-')} belongs to --{kind}")
    for name in ("download_rate", "download_limit", "ray"):
        if getattr(args, name) is not None and not args.download:
            parser.error(f"--{name.replace('_', '-')} belongs to --download")
    check_shares(parser, args)
    if args.audit and args.attributes:
        parser.error("--attributes does not go with --audit: it is for the making of JSON files")
    if args.audit and args.split:
        parser.error("--split does not go with --audit: name the JSON files")
    if args.drop_leaks and len(args.audit or ()) < 2:
        parser.error("--drop-leaks belongs to --audit of two JSON files or more")
    if args.split == "test" and not args.table:
        parser.error("--split test is of a --table: Fashion-Gen has train and valid")
    if args.hdf5:
        args.split = args.split or catalogue.hdf5.split_of_file(args.hdf5)
        if args.split not in SPLITS:
            parser.error(f"--hdf5 {args.hdf5} is one split; say which with --split train or --split valid")
    if args.table and args.split == "all" and len(splits_of(args)) == 1:
        parser.error("--split all of a table needs --valid-fraction, the share of its products to validate on")
    if args.split in ("valid", "test") and len(splits_of(args)) > 1 and args.split not in splits_of(args):
        parser.error(f"--split {args.split} needs --{args.split}-fraction beside the other")
    args.split = args.split or ("all" if args.valid_fraction or args.test_fraction else "train")
    args.output = args.output or (AUDIT if args.audit else OUTPUT)
    if args.split == "all" and "{split}" not in args.output:
        parser.error(f"--output {args.output} would be written twice: with --split all it needs {{split}} in its name")
    if Path(args.output).is_dir():
        parser.error(f"--output {args.output} is a folder; name a file in it, such as {args.output}/dataset.json")


def check_shares(parser: command_line.Parser, args: argparse.Namespace) -> None:
    """Refuse shares that are none."""
    for name, least in (("valid_fraction", "above 0"), ("test_fraction", "above 0"), ("max_skipped", "from 0")):
        share = getattr(args, name)
        if share is not None and not (0 <= share < 1 and (share or least == "from 0")):
            what = "between 0 and 1" if least == "above 0" else "from 0 to below 1"
            parser.error(f"--{name.replace('_', '-')} {share} is not allowed: it takes a number {what}")
    if (args.valid_fraction or 0) + (args.test_fraction or 0) >= 1:
        parser.error("--valid-fraction and --test-fraction leave nothing to train on: together they must be below 1")


def splits_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The splits that the catalogue has: a table as many as there are fractions."""
    if not args.table:
        return ("train", "valid")
    return ("train", *(["valid"] if args.valid_fraction else []), *(["test"] if args.test_fraction else []))


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it takes a number above 0")
    return number


def fetch_pictures(args: argparse.Namespace) -> Downloads:
    """Read the table for its URLs and fetch their pictures into the folder --download, as far as they can be had."""
    wanted, downloads = catalogue.download.Wanted(), catalogue.download.Downloads(args.download)
    for source in open_sources(args, wanted.picture).values():
        wanted.read(source)
    rate, megabytes = args.download_rate or DOWNLOAD_RATE, args.download_limit or DOWNLOAD_MEGABYTES
    fetch_all = catalogue.fetch.fetch_all
    if args.ray:
        fetch_all = partial(catalogue.fetch_on_ray.fetch_on_ray, args.ray)
    print(downloads.fetch(wanted.urls, catalogue.fetch.Manners(rate, int(megabytes * 1e6)), fetch_all))
    return downloads


def open_sources(args: argparse.Namespace, of_url: OfUrl | None = None) -> dict[str, Source]:
    """The catalogue of each split that is asked for, {split: Source}; all are opened before the first is read.

    `of_url` gives the file of a picture that a table names by URL.
    """
    splits = splits_of(args) if args.split == "all" else (args.split,)
    if args.hdf5:
        fields = [field.strip() for field in (args.caption_fields or catalogue.hdf5.DESCRIPTION).split(",")]
        return {split: catalogue.hdf5.open_hdf5(args.hdf5, fields, args.attributes) for split in splits}
    if args.table:
        (image, *more_images), (product, *other_products) = args.image_column or [None], args.product_column or [None]
        columns = catalogue.columns.Columns(
            image=image,
            captions=tuple(args.caption_column or ()),
            template=args.caption_template,
            product=product,
            category=args.category_column,
            subcategory=args.subcategory_column,
            image_template=args.image_template,
            more_images=tuple(more_images),
            other_products=tuple(other_products),
            attributes=args.attributes,
        )
        read = partial(catalogue.table.open_table, args.table, columns, args.images, preset=args.preset, of_url=of_url)
        options = {
            "allow_outside": args.allow_outside,
            "encoding": args.encoding,
            "keep_markup": bool(args.keep_markup),
        }
        fractions = {"valid_fraction": args.valid_fraction, "test_fraction": args.test_fraction}
        return {split: read(split, **fractions, **options) for split in splits}
    options = {"allow_outside": args.allow_outside, "attributes": args.attributes}
    read = partial(catalogue.pai.open_pai, num_workers=args.num_workers, **options)
    return {split: read(args.data_dir, split) for split in splits}


def create_clip_dataset(split: str, output: str, data_dir: str | None = None, num_workers: int = 0) -> Summary:
    """Write the JSON mapping of one split of the PAI pickles and return its `Summary`.

    They are in `data_dir`, or settings.DATA_DIR. Raises FileNotFoundError for a missing folder and ValueError if no row
    can be used.
    """
    if data_dir is None:
        data_dir = runtime.knobs.value(settings, "DATA_DIR")
    return write({output: catalogue.pai.open_pai(data_dir, split, num_workers)})[output]


def write(sources: dict[str, Source], max_skipped: float | None = None) -> dict[str, Summary]:
    """Write the JSON mappings of catalogues, {file: Source}, all or none, and say what was written -> {file: Summary}."""
    summaries = catalogue.mapping.write_mappings(sources, max_skipped)
    for output, summary in summaries.items():
        print(f"{output}: {summary}")
    if warning := catalogue.skips.many_skipped(summaries.values()):
        print(warning)
    return summaries


def audit_mappings(paths: list[str], output: str, num_workers: int, drop_leaks: bool = False) -> int:
    """Check JSON mappings, print what was found and write it as JSON -> exit code, 1 for leakage that stays."""
    if Path(output).resolve() in [Path(path).resolve() for path in paths]:
        raise ValueError(f"--output {output} is one of the files to audit; name another")
    inspected = catalogue.audit.inspect(paths, num_workers)
    report = catalogue.audit.report(inspected)
    with runtime.atomic_write.atomic_write(output) as temporary:
        text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate's escape in JSON
    print(catalogue.audit_summary.summary(report))
    print(f"{output}: all of it")
    if drop_leaks:
        print(catalogue.leaks.drop_leaks(inspected))
    return int(catalogue.audit.leaks(report) and not drop_leaks)


if __name__ == "__main__":
    console.run(main, settings)
