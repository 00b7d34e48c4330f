"""Search a catalogue by words and pictures with a model of this suite, and look for what is wrong in it.

    python search_clip.py index "webdataset_shards/clip_dataset_valid.{000000..000006}.tar" --output index
    python search_clip.py index pictures/ --output index --checkpoint checkpoints/best_checkpoint.pt
    python search_clip.py query index "red leather ankle boots" --top 10 --sheet page.html
    python search_clip.py query index "in blue" --image photo.jpg --category SHOES --json
    python search_clip.py mine index --output mine
    python search_clip.py serve index --compare index_base --port 8000

`index` takes a shard pattern, a folder of pictures or a mapping JSON. The next time it embeds only pictures that are new
or changed; one that was stopped goes on. Runs under torchrun too.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import settings
from clip_finetuning import catalogue, loading, model, pictures, runtime, search, shards
from clip_finetuning.runtime import command_line, console
from clip_finetuning.runtime.accounting import Skipped
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import printable

if (
    TYPE_CHECKING
):  # at run time a folder's modules are imported when they are first named, so that --help loads no torch
    from clip_finetuning.loading.source import Options
    from clip_finetuning.model.clip_model import ClipModel
    from clip_finetuning.search.index import Hit, Index
    from clip_finetuning.search.query import Encoder
    from clip_finetuning.search.source import Opened

KNOBS = [
    "MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR", "IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE",
    "IMAGE_INTERPOLATION", "DATA_DIR", "CAPTION_KEY", "PRODUCT_KEY", "BATCH_SIZE", "NUM_WORKERS", "DEVICE", "PRECISION", "SEED",
]  # fmt: skip
# What each command takes beside --checkpoint and the knobs.
TAKES = {
    "index": ("output", "export", "allow_outside"),
    "query": ("text", "image", "category", "top", "all_views", "exact", "json", "sheet"),
    "mine": ("output", "top", "similarity"),
    "serve": ("compare", "host", "port"),
}
DEFAULTS = {"top": 10, "host": "127.0.0.1", "port": 8000, "similarity": 0.95}
COMMAND_DEFAULTS = {"mine": {"top": 100}}


def main(argv: list[str] | None = None) -> None:
    """One of four commands."""
    args = parse_arguments(argv)
    {"index": make_index, "query": query, "mine": mine, "serve": serve}[args.command](args)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The script's own arguments and its knobs."""
    parser = command_line.Parser(settings, __doc__, KNOBS)
    parser.add_argument("command", choices=TAKES, help="index, query, mine or serve")
    parser.add_argument("place", metavar="SOURCE|DIR", help="index: the pictures; else the folder of an index")
    parser.add_argument("text", nargs="?", help="query: what to look for, in words")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="the model [index: the base model; else that of the index]"
    )
    parser.add_argument("--output", metavar="DIR", help="index: its folder; mine: DIR.html and DIR.csv [mine]")
    parser.add_argument("--export", choices=["parquet"], help="index: also write its vectors to DIR/vectors.parquet")
    parser.add_argument("--allow-outside", action="store_true", help="index: take pictures outside --data-dir too")
    parser.add_argument("--image", metavar="FILE", help="query: what to look for, as a picture")
    parser.add_argument("--category", help="query: only products of this category")
    parser.add_argument(
        "--top", type=int, metavar="N", help="query: how many products [10]; mine: findings of a kind [100]"
    )
    parser.add_argument("--all-views", action="store_true", help="query: every picture, not each product once")
    parser.add_argument("--exact", action="store_true", help="query: the evaluator's own ranking, every picture scored")
    parser.add_argument("--json", action="store_true", help="query: print a JSON list")
    parser.add_argument("--sheet", metavar="FILE.html", help="query: write a page with the pictures")
    parser.add_argument(
        "--similarity", type=float, metavar="X", help="mine: cosine of near-duplicates, at least [0.95]"
    )
    parser.add_argument("--compare", metavar="DIR", help="serve: a second index beside it, such as the base model's")
    parser.add_argument("--host", help="serve: the address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, help="serve: the port [8000]")
    args = parser.parse_args(argv)
    _check_together(parser, args)
    args.data_dir = args.data_dir if "DATA_DIR" in args.given else None
    for name, value in {**DEFAULTS, **COMMAND_DEFAULTS.get(args.command, {})}.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    return args


def _check_together(parser: command_line.Parser, args: argparse.Namespace) -> None:
    """Leave with a line for a flag that the command does not take, and for one that it needs."""
    flags = {name for names in TAKES.values() for name in names}
    for name in sorted(flags - {*TAKES[args.command]}):
        if getattr(args, name) not in (None, False):
            what = "a text" if name == "text" else f"--{name.replace('_', '-')}"
            takers = " and ".join(command for command, names in TAKES.items() if name in names)
            parser.error(f"{args.command} takes no {what}; it belongs to {takers}")
    if args.command == "index" and not args.output:
        parser.error("--output is missing: the folder of the index")
    if args.command == "query" and args.text is None and not args.image:
        parser.error("query needs words, or --image FILE, or both")
    if args.top is not None and args.top < 1:
        parser.error(f"--top {args.top} is not allowed: it takes a whole number >= 1")
    if args.similarity is not None and not 0 < args.similarity <= 1:
        parser.error(f"--similarity {args.similarity} is not allowed: it takes a cosine, > 0 and <= 1")
    if args.port is not None and not 0 <= args.port <= 65535:
        parser.error(f"--port {args.port} is not allowed: it takes a whole number from 0 to 65535")


# ------------------------------------------------------------------------------------------------------- index


def make_index(args: argparse.Namespace) -> None:
    """Embed what is new, write the index, say what became of every picture."""
    ranks = runtime.distributed.start(args.device)
    device = runtime.device.pick_device(args.device, ranks.local_rank)
    runtime.device.make_current(device)
    clip_model, named = load_model(args, device)
    precision = search.build.precision_of(args.output) if args.precision == "auto" else args.precision
    precision = runtime.distributed.agree(precision or runtime.device.pick_precision("auto", device))
    how = search.build.Settings(args.batch_size, args.num_workers, precision, ranks)
    fields = loading.sample.Fields(args.caption_key, args.product_key)
    opened = open_source(args, dataclasses.replace(how.options, fields=fields))
    about = search.build.build(opened, args.output, clip_model, named, how)
    if about is None:
        return
    for line in [*opened.remarks, *search.report.lines(about, args.output)]:
        print(line)
    if args.export:
        path = Path(args.output, "vectors.parquet")
        search.export.write_parquet(search.index.Index.open(args.output), path)
        print(f"vectors written to {path}")


def load_model(args: argparse.Namespace, device: Any) -> tuple["ClipModel", dict[str, Any]]:
    """(the base model or that of --checkpoint, what the index says of how it is had again)."""
    image = model.image_recipe.image_settings(args)
    if args.checkpoint:
        name = args.model_name if "MODEL_NAME" in args.given else None
        clip_model = model.building.load_model(
            args.checkpoint, device, args.model_cache_dir, name, args.model_name, image=image
        )
        named = {"name": name or clip_model.name, "checkpoint": os.path.abspath(args.checkpoint)}
    else:
        pretrained = args.model_pretrained
        clip_model = model.building.create_model(
            args.model_name, pretrained, args.model_cache_dir, device, args.seed, image
        )
        named = {"name": args.model_name, "pretrained": _absolute(pretrained), "seed": args.seed}
    return clip_model, {**named, "name": _absolute(named["name"]), "image": image}


def _absolute(name: str) -> str:
    """The path of a file from anywhere; what is no file's stays as it is."""
    return os.path.abspath(name) if os.path.isfile(name) else name


def open_source(args: argparse.Namespace, options: "Options") -> "Opened":
    """What SOURCE names: a folder of pictures, a mapping JSON, or shards."""
    if os.path.isdir(args.place):
        return search.source.of_folder(args.place, options, args.output)
    if not args.place.endswith(".json"):
        return search.source.of_shards(args.place, options)
    mapping = catalogue.mapping.read_mapping(args.place)
    entries = [
        search.source.of_entry(entry.image_path, shards.plan.located(entry.image_path, args.data_dir), entry)
        for entry in mapping.entries
    ]
    skipped = [Skipped(1, entry.reason, entry.name, ("entry", entry.number)) for entry in mapping.skipped]
    inside = None if args.allow_outside else args.data_dir
    remarks = mapping.remarks()
    if options.fields != loading.sample.USUAL:
        remarks.append(
            "CAPTION_KEY and PRODUCT_KEY are of .json files beside pictures; a mapping's own fields are used"
        )
    return search.source.of_pictures(entries, options, skipped, inside, remarks)


# ------------------------------------------------------------------------------------------------------- query


def query(args: argparse.Namespace) -> None:
    """Answer words, a picture or both."""
    index = search.index.Index.open(args.place)
    with contextlib.redirect_stdout(sys.stderr):  # what is said of the model is no part of the answer
        encoder = open_encoder(index, args, args.checkpoint)
    [hits] = index.search(query_vector(encoder, args), args.top, args.category, args.exact, args.all_views)
    if args.sheet:
        with atomic_write(args.sheet) as temporary:
            temporary.write_text(sheet(index, hits, args), encoding="utf-8", errors="replace")
    if args.json:
        print(json.dumps([hit._asdict() for hit in hits], ensure_ascii=False, indent=1))
    else:
        for place, hit in enumerate(hits, 1):
            texts = (hit.product_id, hit.category, hit.caption, hit.image_key)
            print(f"{place:4}  {hit.score:.4f}  " + "  ".join(printable(text) for text in texts if text))
    if args.sheet:
        print(f"page written to {args.sheet}", file=sys.stderr if args.json else sys.stdout)


def open_encoder(index: "Index", args: argparse.Namespace, checkpoint: str | None) -> "Encoder":
    """The encoder of an index's own model; `checkpoint` is where that is now, if it is not where the index says."""
    device = runtime.device.pick_device(args.device)
    named = args.model_name if "MODEL_NAME" in args.given else None
    return search.query.open_encoder(index.about, device, args.model_cache_dir, checkpoint, named)


def query_vector(encoder: "Encoder", args: argparse.Namespace) -> Any:
    """(1, D): the direction of the words, of the picture, or in the middle of both."""
    queries = [] if args.text is None else [encoder.texts([args.text])]
    if args.text is not None and encoder.is_cut(args.text):
        console.warn(search.query.CUT)
    if args.image:
        try:
            queries.append(encoder.pictures([pictures.decode.read_source(args.image)]))
        except pictures.decode.PictureError as error:
            raise ValueError(f"--image {args.image}: {error.reason}") from None
    return search.query.mixed(*queries)


def sheet(index: "Index", hits: list["Hit"], args: argparse.Namespace) -> str:
    """The contact sheet of an answer."""
    asked = " and ".join(filter(None, [args.text, args.image and f"the picture {Path(args.image).name}"]))
    return search.report.sheet(index, hits, asked, args.category)


# ------------------------------------------------------------------------------------------------ mine, serve


def mine(args: argparse.Namespace) -> None:
    """Near-duplicates across products, and pictures that contradict their caption or category."""
    index = search.index.Index.open(args.place)
    findings = search.mine.find(index, args.similarity, args.top)
    output = args.output or "mine"
    for path, text in (
        (f"{output}.csv", search.report.csv(findings)),
        (f"{output}.html", search.report.page(index, findings)),
    ):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace", newline="")
    for line in findings.lines():
        print(line)
    print(f"written to {output}.html and {output}.csv")


def serve(args: argparse.Namespace) -> None:
    """The page for people, and the JSON API beside it."""
    sides = []
    for place, checkpoint in ((args.compare, None), (args.place, args.checkpoint)):
        if place:
            index = search.index.Index.open(place)
            name = os.path.basename(os.path.abspath(place))
            sides.append(search.server.Side(name, index, open_encoder(index, args, checkpoint)))
    search.server.serve(sides, args.host, args.port)


if __name__ == "__main__":
    console.run(main, settings)
