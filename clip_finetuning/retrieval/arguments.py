"""The flags of evaluate_clip.py, and which of them contradict each other."""

import argparse
import math

from clip_finetuning.retrieval.names import BETWEEN_IMAGES, KS, PROTOCOLS, QUERIES_OF, STANDARD
from clip_finetuning.runtime import command_line

RECALLS = (5, 10)  # always reported at the top level of the results


def parse(parser: command_line.Parser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments of evaluate_clip.py and its knobs, which the parser has; leaves with a line for what cannot be."""
    parser.add_argument("--use-checkpoint", action="store_true", help="evaluate EVAL_CHECKPOINT, not the base model")
    parser.add_argument("--checkpoint", metavar="PATH", help="evaluate this checkpoint")
    parser.add_argument("--dataset-path", metavar="PATTERN", help="shards to evaluate on [VALID_DATASET_PATTERN]")
    parser.add_argument("--test", action="store_true", help="evaluate on TEST_DATASET_PATTERN, for the last figure")
    parser.add_argument(
        "--output", metavar="FILE", help="the result file [evaluation_results[_test][_checkpoint|_interpolated].json]"
    )
    parser.add_argument("--max-samples", type=int, metavar="N", help="only the first N samples")
    choices = (*STANDARD, *BETWEEN_IMAGES, "all")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=choices,
        default=["product", "pair"],
        metavar="NAME",
        help=f"what is queried against what: {', '.join(choices)} (of these: {', '.join(STANDARD)}) [product pair]",
    )
    parser.add_argument(
        "--queries",
        nargs="+",
        choices=("long", "short", "category"),
        default=["long"],
        metavar="KIND",
        help="ask, beside the captions (long), keywords made of them (short), or the categories' names (category) [long]",
    )
    parser.add_argument(
        "--captions",
        choices=("first", "all"),
        default="first",
        help="ask, beside each product's first caption, all its wordings, and each language apart [first]",
    )
    parser.add_argument("--k", nargs="+", type=int, default=list(KS), metavar="K", help="Recall@k for these k [1 5 10]")
    parser.add_argument(
        "--candidates", metavar="FILE.npz", help="lists of sampled101: read if the file is there, else written"
    )
    parser.add_argument(
        "--save-embeddings", metavar="FILE.npz", help="write the embeddings; to FOLDER/ as one .npy file an array"
    )
    parser.add_argument(
        "--from-embeddings",
        metavar="FILE.npz",
        help="evaluate such a file or folder, with no model; a folder's stay there",
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="is B better than A? two result or embedding files"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        metavar="FILE",
        help="join the results of several seeds of one training into one line a number",
    )
    parser.add_argument("--baseline", metavar="FILE", help="results of the model before, to show the difference to")
    parser.add_argument("--report", metavar="FILE.html", help="write one page with numbers, pictures and failures")
    parser.add_argument(
        "--zero-shot", action="store_true", help="also classify images by the names of their categories"
    )
    parser.add_argument(
        "--retention", metavar="PATTERN", help="shards of other data: what does the model still know of them?"
    )
    parser.add_argument(
        "--interpolate",
        metavar="SHARE",
        type=_share,
        help="mix the checkpoint's weights, this share of them, with those that it began with (MODEL_PRETRAINED, if you set it); "
        "sweep: measure 0, 0.1 ... 1 and name the one that is better than both",
    )
    parser.add_argument("--save-checkpoint", metavar="FILE", help="write the mix as a checkpoint like any other")
    parser.add_argument(
        "--prompts", metavar="FILE", help="how a category is named when it is asked for: one prompt a line, with {}"
    )
    _add_truth_arguments(parser)
    args = parser.parse_args(argv)
    _check_together(parser, args)
    args.dataset_path = args.dataset_path or (args.test_dataset_pattern if args.test else args.valid_dataset_pattern)
    args.output = args.output or _default_output(args)
    if "all" in args.protocol:
        args.protocol += STANDARD
    kinds = {*args.queries, *(["wording"] if args.captions == "all" else [])}
    args.protocol += [protocol for protocol, kind in QUERIES_OF.items() if kind in kinds]
    args.protocol = sorted({*args.protocol} - {"all"}, key=PROTOCOLS.index)  # product, if asked for, is the headline
    args.k = sorted({*args.k, *RECALLS})
    return args


def _add_truth_arguments(parser):
    """The flags about what the catalogue leaves out."""
    group = parser.add_argument_group("incomplete truth")
    group.add_argument(
        "--truth",
        choices=("strict", "tolerant", "without", "all"),
        default="strict",
        help="look-alikes of other products: misses (strict, always the headline), hits too (tolerant), or left out [strict]",
    )
    group.add_argument(
        "--attributes",
        metavar="FIELD,...",
        type=command_line.names,
        default=(),
        help="fields of the samples' .json that make products alike [those under attributes]",
    )
    group.add_argument(
        "--disputed",
        metavar="FILE.csv",
        help="write pairs that are called wrong and may be right, and FILE.html to judge them",
    )
    group.add_argument(
        "--judgements",
        metavar="FILE.csv",
        nargs="+",
        action="extend",
        default=[],
        help="verdicts on such pairs: right ones are hits",
    )


def _share(text):
    """`sweep`, or a number from 0 to 1."""
    try:
        share = "sweep" if text == "sweep" else float(text)
    except ValueError:
        share = math.nan
    if share != "sweep" and not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: it takes a number from 0 to 1, or sweep")
    return share


def _check_together(parser, args):
    """Leave with a line for flags that contradict each other, or numbers that mean nothing."""
    if min(args.k) < 1:
        parser.error(f"--k {min(args.k)} is not allowed: it takes whole numbers >= 1")
    if args.max_samples is not None and args.max_samples < 1:
        parser.error(f"--max-samples {args.max_samples} is not allowed: it takes a whole number >= 1")
    if args.zero_shot and args.from_embeddings:
        parser.error("--zero-shot needs a model to embed the category names; leave out --from-embeddings")
    if args.retention and args.from_embeddings:
        parser.error("--retention needs a model to embed its shards; leave out --from-embeddings")
    if args.interpolate is not None and not (args.checkpoint or args.use_checkpoint):
        parser.error("--interpolate mixes a checkpoint with the weights that it began with; add --checkpoint PATH")
    if args.interpolate is not None and args.from_embeddings:
        parser.error("--interpolate needs models to mix; leave out --from-embeddings")
    if args.save_checkpoint and args.interpolate is None:
        parser.error("--save-checkpoint writes what --interpolate mixes; add --interpolate SHARE, or sweep")
    if args.prompts and not (args.zero_shot or "category" in args.queries):
        parser.error("--prompts says how --zero-shot asks; add --zero-shot, or --queries category")
    if args.report and not {"product", "all"} & set(args.protocol):
        parser.error("--report shows the product protocol; add it to --protocol")
    if args.disputed and not args.disputed.lower().endswith(".csv"):
        parser.error(f"--disputed {args.disputed} must end in .csv; the page to judge the pairs is written beside it")
    if args.test and args.dataset_path:
        parser.error("--test and --dataset-path both name shards; leave out one")


def _default_output(args: argparse.Namespace) -> str:
    """The result file that nobody named: that of the test shards, and that of a checkpoint, are files of their own."""
    is_checkpoint = args.checkpoint or args.use_checkpoint
    of_model = "_interpolated" if args.interpolate is not None else "_checkpoint" if is_checkpoint else ""
    return f"evaluation_results{'_test' if args.test else ''}{of_model}.json"
