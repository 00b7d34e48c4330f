"""Measure text->image and image->text retrieval of a model on shards, exactly, and say what was measured.

    python evaluate_clip.py                                        # the base model, on the validation shards
    python evaluate_clip.py --use-checkpoint                       # settings.EVAL_CHECKPOINT
    python evaluate_clip.py --checkpoint checkpoints/best_checkpoint.pt --protocol all
    python evaluate_clip.py --dataset-path "webdataset_shards/clip_dataset_valid.{000007..000032}.tar"
    python evaluate_clip.py --use-checkpoint --baseline evaluation_results.json --report report.html
    python evaluate_clip.py --compare evaluation_results.json evaluation_results_checkpoint.json
    python evaluate_clip.py --from-embeddings anybodys.npz        # or a folder of .npy files, larger than memory

Writes evaluation_results.json, or evaluation_results_checkpoint.json for a checkpoint; with --test
evaluation_results_test.json and evaluation_results_test_checkpoint.json. Runs under torchrun too.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import settings
from clip_finetuning import loading, model, retrieval, runtime
from clip_finetuning.retrieval.names import KS, PROTOCOLS
from clip_finetuning.runtime import command_line, console
from clip_finetuning.runtime.atomic_write import atomic_write

if TYPE_CHECKING:  # at run time a room's modules are imported when they are first named, so that --help loads no torch
    import torch

    from clip_finetuning.model.clip_model import ClipModel
    from clip_finetuning.retrieval.embeddings import Embeddings
    from clip_finetuning.retrieval.truth import Truth
    from clip_finetuning.runtime.distributed import Ranks

RECALLS = (5, 10)  # always reported at the top level of the results
KNOBS = [
    "MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR", "VALID_DATASET_PATTERN", "TEST_DATASET_PATTERN",
    "IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION", "CHECKPOINT_DIR", "EVAL_CHECKPOINT",
    "CAPTION_KEY", "PRODUCT_KEY", "BATCH_SIZE", "NUM_WORKERS", "DEVICE", "PRECISION", "SEED",
]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Settings, embeddings, numbers, files."""
    args = parse_arguments(argv)
    if args.compare:
        print(retrieval.comparison.compare(*(load_results(path, args) for path in args.compare)))
        return
    ranks = runtime.distributed.start(args.device)
    if not args.from_embeddings:
        if args.disputed or args.truth != "strict":
            retrieval.looks.check()
        loading.first_look.check_shards(args.dataset_path)
    baseline = load_baseline(args) if args.baseline and ranks.rank == 0 else None
    if args.from_embeddings:
        clip_model, embeddings = None, retrieval.embeddings.load(args.from_embeddings)
        embeddings.keep_attributes(args.attributes)
        about = {"embeddings": args.from_embeddings, "data": {"fingerprint": embeddings.fingerprint()}}
    else:
        clip_model = load_model(args, ranks)
        embeddings, about = embed_shards(clip_model, args, ranks)
    device = clip_model.device if clip_model else runtime.device.pick_device(args.device, ranks.local_rank)
    truth = truth_of(embeddings, args, args.truth)
    results = evaluate(embeddings, args, device, truth) | about
    if ranks.rank == 0:
        if clip_model is not None and args.zero_shot:
            results["zero_shot"] = retrieval.zero_shot.classify(clip_model, embeddings, results["model"]["precision"])
        write_outputs(args, embeddings, results, baseline)
        if args.disputed:
            write_disputed(args, embeddings, truth)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The script's own arguments and its knobs."""
    parser = command_line.Parser(settings, __doc__, KNOBS)
    parser.add_argument("--use-checkpoint", action="store_true", help="evaluate EVAL_CHECKPOINT, not the base model")
    parser.add_argument("--checkpoint", metavar="PATH", help="evaluate this checkpoint")
    parser.add_argument("--dataset-path", metavar="PATTERN", help="shards to evaluate on [VALID_DATASET_PATTERN]")
    parser.add_argument("--test", action="store_true", help="evaluate on TEST_DATASET_PATTERN, for the last figure")
    parser.add_argument(
        "--output", metavar="FILE", help="the result file [evaluation_results[_test][_checkpoint].json]"
    )
    parser.add_argument("--max-samples", type=int, metavar="N", help="only the first N samples")
    choices = (*PROTOCOLS, "all")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=choices,
        default=["product", "pair"],
        metavar="NAME",
        help=f"what is queried against what: {', '.join(choices)} [product pair]",
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
    parser.add_argument("--baseline", metavar="FILE", help="results of the model before, to show the difference to")
    parser.add_argument("--report", metavar="FILE.html", help="write one page with numbers, pictures and failures")
    parser.add_argument(
        "--zero-shot", action="store_true", help="also classify images by the names of their categories"
    )
    _add_truth_arguments(parser)
    args = parser.parse_args(argv)
    _check_together(parser, args)
    args.dataset_path = args.dataset_path or (args.test_dataset_pattern if args.test else args.valid_dataset_pattern)
    args.output = args.output or default_output(args)
    if "all" in args.protocol:
        args.protocol = list(PROTOCOLS)
    args.protocol = sorted(set(args.protocol), key=PROTOCOLS.index)  # product, if asked for, is the headline
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
        "--judgements", metavar="FILE.csv", nargs="+", default=[], help="verdicts on such pairs: right ones are hits"
    )


def _check_together(parser, args):
    """Leave with a line for flags that contradict each other, or numbers that mean nothing."""
    if min(args.k) < 1:
        parser.error(f"--k {min(args.k)} is not allowed: it takes whole numbers >= 1")
    if args.max_samples is not None and args.max_samples < 1:
        parser.error(f"--max-samples {args.max_samples} is not allowed: it takes a whole number >= 1")
    if args.zero_shot and args.from_embeddings:
        parser.error("--zero-shot needs a model to embed the category names; leave out --from-embeddings")
    if args.report and not {"product", "all"} & set(args.protocol):
        parser.error("--report shows the product protocol; add it to --protocol")
    if args.disputed and not args.disputed.lower().endswith(".csv"):
        parser.error(f"--disputed {args.disputed} must end in .csv; the page to judge the pairs is written beside it")
    if args.test and args.dataset_path:
        parser.error("--test and --dataset-path both name shards; leave out one")


def default_output(args: argparse.Namespace) -> str:
    """The result file that nobody named: that of the test shards, and that of a checkpoint, are files of their own."""
    is_checkpoint = args.checkpoint or args.use_checkpoint
    return f"evaluation_results{'_test' if args.test else ''}{'_checkpoint' if is_checkpoint else ''}.json"


def load_baseline(args: argparse.Namespace) -> dict[str, Any]:
    """The results to compare with. Raises ValueError, before a model runs, if they do not fit what is to be measured."""
    baseline = load_results(args.baseline, args)
    samples = None
    if not args.from_embeddings:
        fields = loading.sample.Fields(args.caption_key, args.product_key)
        samples = loading.first_look.listed(args.dataset_path, args.max_samples, fields)
    judged = bool(args.judgements)
    retrieval.baseline.check(baseline, args.output, args.protocol, *(samples or (None,)), judged=judged)
    return baseline


def load_model(args: argparse.Namespace, ranks: "Ranks") -> "ClipModel":
    """The base model, or that of the checkpoint which the flags name."""
    device = runtime.device.pick_device(args.device, ranks.local_rank)
    runtime.device.make_current(device)
    path = args.checkpoint or (args.eval_checkpoint if args.use_checkpoint else None)
    image = model.image_recipe.image_settings(args)
    if path is None:
        return model.building.create_model(
            args.model_name, args.model_pretrained, args.model_cache_dir, device, args.seed, image
        )
    named = args.model_name if "MODEL_NAME" in args.given else None
    return model.building.load_model(path, device, args.model_cache_dir, named, args.model_name, image=image)


def embed_shards(
    clip_model: "ClipModel", args: argparse.Namespace, ranks: "Ranks"
) -> tuple["Embeddings", dict[str, Any]]:
    """(Embeddings of the shards, what the results say about model and data)."""
    compares_pictures = bool(args.disputed) or args.truth != "strict"
    loader = loading.loader.eval_loader(
        args.dataset_path,
        model.clip_model.image_transform(clip_model, train=False),
        clip_model.tokenizer,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_samples=args.max_samples,
        caption_key=args.caption_key,
        product_key=args.product_key,
        attributes=args.attributes,
        look=retrieval.looks.look_of if compares_pictures else None,
    )
    seen = runtime.distributed.gather_objects(loader.num_samples)
    if len(set(seen)) > 1:
        raise ValueError(f"the processes see {seen} samples in {args.dataset_path}: all machines need the same shards")
    precision = runtime.distributed.agree(runtime.device.pick_precision(args.precision, clip_model.device))
    start = time.perf_counter()
    embeddings, counts = retrieval.embed.embed(clip_model, loader, precision, progress=ranks.rank == 0)
    loader.close()
    about = {
        "model": {"name": clip_model.name, "weights": clip_model.pretrained or "random", "precision": precision},
        "data": {"pattern": args.dataset_path, "fingerprint": embeddings.fingerprint(), **counts},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return embeddings, about


def truth_of(embeddings: "Embeddings", args: argparse.Namespace, choice: str = "strict") -> "Truth":
    """What counts as right, as the flags say; `choice` is that of --truth."""
    judged = retrieval.judgements.read(args.judgements, embeddings) if args.judgements else None
    return retrieval.truth.truth_of(embeddings, choice, judged)


def evaluate(
    embeddings: "Embeddings", args: argparse.Namespace, device: "torch.device", truth: "Truth"
) -> dict[str, Any]:
    """The numbers of the protocols that the flags name, on rank 0; all processes take part."""
    candidates = None
    if "sampled101" in args.protocol:
        if runtime.distributed.rank() == 0:
            candidates = retrieval.sampled101.read_or_draw(args.candidates, embeddings, args.seed)
        candidates = runtime.distributed.agree(candidates)
    measure = retrieval.results.measure_embeddings
    return measure(embeddings, args.protocol, args.k, args.seed, candidates, device, shared=True, truth=truth)


def load_results(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """A result file, or an embeddings file measured on the spot."""
    if not (path.endswith(".npz") or retrieval.embeddings.is_folder(path)):
        return retrieval.result_file.read(path)
    embeddings = retrieval.embeddings.load(path)
    device, truth = runtime.device.pick_device(args.device), truth_of(embeddings, args)
    measure = retrieval.results.measure_embeddings
    results = measure(embeddings, args.protocol, args.k, args.seed, device=device, truth=truth)
    return results | {"data": {"fingerprint": embeddings.fingerprint()}, "name": path}


def write_outputs(
    args: argparse.Namespace, embeddings: "Embeddings", results: dict[str, Any], baseline: dict[str, Any] | None
) -> None:
    """The result file and whatever else the flags ask for, then the tables."""
    retrieval.result_file.write(args.output, results)
    print(retrieval.table.render(results))
    if baseline:
        print("\n" + retrieval.comparison.compare(baseline, results | {"name": args.output}) + "\n")
    print(f"written to {args.output}")
    if args.save_embeddings:
        retrieval.embeddings.save(args.save_embeddings, embeddings)
        print(f"embeddings written to {args.save_embeddings}")
    if args.report:
        write_report(args, embeddings, results, baseline)
        print(f"report written to {args.report}")


def write_disputed(args: argparse.Namespace, embeddings: "Embeddings", truth: "Truth") -> None:
    """The table of disputed pairs, and the page beside it on which they are judged."""
    pairs = retrieval.disputed.find(embeddings, truth)
    page = str(Path(args.disputed).with_suffix(".html"))
    key_of = embeddings.keys_of(retrieval.disputed.images_of(pairs))
    try:
        found = loading.lookup.read_pictures(args.dataset_path, key_of.values(), args.caption_key)
    except FileNotFoundError as error:
        print(f"{page} has no pictures: {error}", file=sys.stderr)
        found = {}
    pictures = {image: found[key] for image, key in key_of.items() if key in found}
    written = {
        args.disputed: retrieval.disputed.csv(embeddings, pairs),
        page: retrieval.disputed.page(embeddings, pairs, pictures, Path(args.disputed).name),
    }
    for path, text in written.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace", newline="")
    print(f"{len(pairs):,} disputed pairs written to {args.disputed}; {page} takes the verdicts for --judgements")


def write_report(
    args: argparse.Namespace, embeddings: "Embeddings", results: dict[str, Any], baseline: dict[str, Any] | None
) -> None:
    """The page, with pictures from the shards; where they are out of reach, their keys stand instead."""
    examples = retrieval.report.pick_examples(embeddings, seed=args.seed)
    keys, found = examples.keys(embeddings), {}
    try:
        found = loading.lookup.read_pictures(args.dataset_path, keys.values(), args.caption_key)
    except FileNotFoundError as error:
        print(f"the report has no pictures: {error}", file=sys.stderr)
    pictures = {image: found[key] for image, key in keys.items() if key in found}
    page = retrieval.report.render(results, embeddings, examples, pictures, baseline)
    with atomic_write(args.report) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # half a character, as JSON can escape one


if __name__ == "__main__":
    console.run(main, settings)
