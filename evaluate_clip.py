"""Measure text->image and image->text retrieval of a model on shards, exactly, and say what was measured.

    python evaluate_clip.py                                        # the base model, on the validation shards
    python evaluate_clip.py --use-checkpoint                       # settings.EVAL_CHECKPOINT
    python evaluate_clip.py --checkpoint checkpoints/best_checkpoint.pt --protocol all
    python evaluate_clip.py --dataset-path "webdataset_shards/clip_dataset_valid.{000007..000032}.tar"
    python evaluate_clip.py --use-checkpoint --baseline evaluation_results.json --report report.html
    python evaluate_clip.py --compare evaluation_results.json evaluation_results_checkpoint.json
    python evaluate_clip.py --use-checkpoint --retention "general.{000000..000003}.tar"
    python evaluate_clip.py --use-checkpoint --interpolate sweep --retention "general.{000000..000003}.tar" --save-checkpoint mix.pt
    python evaluate_clip.py --seeds seed_1.json seed_2.json seed_3.json
    python evaluate_clip.py --from-embeddings anybodys.npz        # or a folder of .npy files, larger than memory

Writes evaluation_results.json, or evaluation_results_checkpoint.json for a checkpoint; with --test
evaluation_results_test.json and evaluation_results_test_checkpoint.json, with --interpolate ..._interpolated.json. Runs under
torchrun too.
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import settings
from clip_finetuning import loading, model, retrieval, runtime
from clip_finetuning.runtime import command_line, console
from clip_finetuning.runtime.atomic_write import atomic_write

if TYPE_CHECKING:  # at run time a room's modules are imported when they are first named, so that --help loads no torch
    import torch

    from clip_finetuning.loading.loader import Loader
    from clip_finetuning.model.clip_model import ClipModel
    from clip_finetuning.retrieval.disputed import Pair
    from clip_finetuning.retrieval.embeddings import Embeddings
    from clip_finetuning.retrieval.examples import Examples
    from clip_finetuning.retrieval.query_texts import QueryTexts
    from clip_finetuning.retrieval.retention import Start
    from clip_finetuning.retrieval.truth import Truth
    from clip_finetuning.runtime.distributed import Ranks

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
    if args.seeds:
        print(retrieval.seeds.join([retrieval.result_file.read(path) for path in args.seeds]))
        return
    ranks = runtime.distributed.start(args.device)
    retrieval.judgements.check(args.judgements)
    if not args.from_embeddings:
        if args.disputed or args.truth != "strict":
            retrieval.looks.check()
        loading.first_look.check_shards(args.dataset_path)
        if args.disputed and not args.attributes and not loading.named_fields.have_attributes(args.dataset_path):
            raise ValueError(retrieval.disputed.NO_ATTRIBUTES)
    args.prompts = retrieval.zero_shot.read_prompts(args.prompts) if args.prompts else None
    baseline = load_baseline(args) if args.baseline and ranks.rank == 0 else None
    if args.from_embeddings:
        clip_model, (embeddings, queries) = None, load_embeddings(args.from_embeddings, args.protocol)
        embeddings.keep_attributes(args.attributes)
        about = {"embeddings": args.from_embeddings, "data": {"fingerprint": embeddings.fingerprint()}}
    else:
        checkpoint = read_checkpoint(args)
        if args.retention:
            check_retention(args, checkpoint)
        clip_model = load_model(args, ranks, checkpoint)
        args.precision = runtime.distributed.agree(runtime.device.pick_precision(args.precision, clip_model.device))
        start = functools.cache(lambda: load_start(clip_model, checkpoint, args))
        mixed = interpolate(clip_model, checkpoint, start(), args, ranks) if args.interpolate is not None else {}
        embeddings, queries, about = embed_shards(clip_model, args, ranks)
        about |= mixed
        if args.retention:
            measured = functools.partial(measure_others, args=args, ranks=ranks)
            about["retention"] = retrieval.retention.measure(clip_model, measured, start, baseline)
    if args.disputed:
        retrieval.disputed.check(embeddings)
    device = clip_model.device if clip_model else runtime.device.pick_device(args.device, ranks.local_rank)
    truth = truth_of(embeddings, args, args.truth)
    kept: dict[str, retrieval.ranking.Ranks] = {}
    results = evaluate(embeddings, queries, args, truth, device, kept) | about
    if ranks.rank == 0:
        if "product" in args.protocol:
            results["examples"] = retrieval.examples.record(embeddings, truth)
        if clip_model is not None and args.zero_shot:
            precision = results["model"]["precision"]
            results["zero_shot"] = retrieval.zero_shot.classify(clip_model, embeddings, precision, args.prompts)
        if baseline:
            results["statistics"]["baseline"] = retrieval.comparison.effects(baseline, results | {"name": args.output})
        examples = retrieval.examples.pick(embeddings, truth, kept=kept) if args.report else None
        write_outputs(args, embeddings, queries, examples, results, baseline)
        if args.disputed:
            write_disputed(args, embeddings, retrieval.disputed.find(embeddings, truth, kept))
    if args.save_checkpoint:
        retrieval.mixing.check_saved(args.save_checkpoint, about["interpolation"])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The script's own arguments and its knobs."""
    return retrieval.arguments.parse(command_line.Parser(settings, __doc__, KNOBS), argv)


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


def read_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint that the flags name; empty for the base model."""
    path = args.checkpoint or (args.eval_checkpoint if args.use_checkpoint else None)
    return {"path": path, **model.weights.read_checkpoint(path, mapped=True)} if path else {}


def load_model(args: argparse.Namespace, ranks: "Ranks", checkpoint: dict[str, Any]) -> "ClipModel":
    """The base model, or that of the checkpoint, whose weights are taken out of it."""
    device = runtime.device.pick_device(args.device, ranks.local_rank)
    runtime.device.make_current(device)
    image = model.image_recipe.image_settings(args)
    if not checkpoint:
        return model.building.create_model(
            args.model_name, args.model_pretrained, args.model_cache_dir, device, args.seed, image
        )
    named = args.model_name if "MODEL_NAME" in args.given else None
    loaded = model.building.load_model(
        checkpoint["path"], device, args.model_cache_dir, named, args.model_name, checkpoint, image
    )
    del checkpoint["state_dict"]
    return loaded


def open_loader(
    pattern: str, clip_model: "ClipModel", args: argparse.Namespace, ranks: "Ranks", **more: Any
) -> "Loader":
    """A loader of the samples of some shards, of which all processes see the same."""
    loader = loading.loader.eval_loader(
        pattern,
        model.clip_model.image_transform(clip_model, train=False),
        clip_model.tokenizer,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_samples=args.max_samples,
        caption_key=args.caption_key,
        product_key=args.product_key,
        **more,
    )
    seen = runtime.distributed.gather_objects(loader.num_samples)
    if len(set(seen)) > 1:
        raise ValueError(f"the processes see {seen} samples in {pattern}: all machines need the same shards")
    return loader


def embed_shards(
    clip_model: "ClipModel", args: argparse.Namespace, ranks: "Ranks"
) -> tuple["Embeddings", dict[str, "QueryTexts"], dict[str, Any]]:
    """(Embeddings of the shards, texts that ask besides the captions, what the results say about model and data)."""
    compares_pictures = bool(args.disputed) or args.truth != "strict"
    loader = open_loader(
        args.dataset_path,
        clip_model,
        args,
        ranks,
        attributes=args.attributes,
        look=retrieval.looks.look_of if compares_pictures else None,
        wordings=args.captions == "all",
    )
    precision = args.precision
    start = time.perf_counter()
    wordings = retrieval.query_making.Wordings(loader) if args.captions == "all" else None
    embeddings, counts = retrieval.embed.embed(clip_model, wordings or loader, precision, progress=ranks.rank == 0)
    loader.close()
    queries = retrieval.query_making.make(clip_model, embeddings, args.queries, precision, wordings, args.prompts)
    about = {
        "model": {"name": clip_model.name, "weights": clip_model.pretrained or "random", "precision": precision},
        "data": {"pattern": args.dataset_path, "fingerprint": embeddings.fingerprint(), **counts},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return embeddings, queries, about


def load_embeddings(path: str, protocols: Sequence[str]) -> tuple["Embeddings", dict[str, "QueryTexts"]]:
    """Those of a file, and the texts in it that ask besides the captions. Raises ValueError if protocols lack theirs."""
    embeddings = retrieval.embeddings.load(path)
    return embeddings, retrieval.query_texts.load(path, embeddings.text_embeddings.shape[1], protocols)


def check_retention(args: argparse.Namespace, checkpoint: dict[str, Any]) -> None:
    """ValueError if the shards of --retention hold what is evaluated, or what the checkpoint was trained on."""
    called, given = f"--retention {args.retention}", checkpoint.get("settings")
    fields = loading.sample.Fields(args.caption_key, args.product_key)
    trained = given.get("TRAIN_DATASET_PATTERN") if isinstance(given, dict) else None
    if isinstance(trained, str):  # a file's word, so these shards are not looked into
        loading.overlap.check_names(called, args.retention, "trained on", trained)
    for remark in loading.overlap.check(called, args.retention, {"evaluated on": args.dataset_path}, fields):
        console.warn(remark)


def load_start(clip_model: "ClipModel", checkpoint: dict[str, Any], args: argparse.Namespace) -> "Start":
    """What the model began as: the weights that MODEL_PRETRAINED names if it was set for this call, else its checkpoint's."""
    if not checkpoint:
        return retrieval.retention.Start(None, "this model is the one before")
    base, missing = None, ""
    named = args.model_pretrained if "MODEL_PRETRAINED" in args.given else None
    try:
        image = model.image_recipe.image_settings(args)
        kept = None if named else model.building.kept_start(clip_model, checkpoint, args.model_cache_dir, image)
        base = kept or model.building.create_start(clip_model, checkpoint, args.model_cache_dir, image, named)
    except (ValueError, FileNotFoundError) as error:
        missing = str(error)
    missing = next(filter(None, runtime.distributed.gather_objects(missing)), "")
    return retrieval.retention.Start(None if missing else base, missing)


def interpolate(
    clip_model: "ClipModel", checkpoint: dict[str, Any], start: "Start", args: argparse.Namespace, ranks: "Ranks"
) -> dict[str, Any]:
    """Give the model the weights of the mix that --interpolate asks for, write it if that is wished -> what results say of it."""
    if start.clip_model is None:
        raise ValueError(
            f"--interpolate: {start.missing}; name the weights to mix with: --model-pretrained TAG_OR_FILE"
        )
    mixing = retrieval.mixing.Mixing(start.clip_model, clip_model, checkpoint, args.save_checkpoint)
    if args.interpolate != "sweep":
        return mixing.at(args.interpolate)
    patterns = {"gain": args.dataset_path, **({"retention": args.retention} if args.retention else {})}
    loaders = {axis: open_loader(pattern, clip_model, args, ranks) for axis, pattern in patterns.items()}
    found = mixing.sweep(loaders, args.precision, args.seed, Path(args.output).with_suffix(".png"))
    for loader in loaders.values():
        loader.close()
    return found


def measure_others(clip_model: "ClipModel", args: argparse.Namespace, ranks: "Ranks") -> dict[str, Any]:
    """The results of a model on the shards of --retention, on rank 0."""
    others = argparse.Namespace(**{**vars(args), "dataset_path": args.retention})
    embeddings, queries, about = embed_shards(clip_model, others, ranks)
    if ranks.rank > 0:
        return {}
    measured = retrieval.results.measure_embeddings(embeddings, args.protocol, args.k, args.seed, queries=queries)
    return {"pattern": args.retention, **measured, **about}


def truth_of(embeddings: "Embeddings", args: argparse.Namespace, choice: str = "strict") -> "Truth":
    """What counts as right, as the flags say; `choice` is that of --truth."""
    judged = retrieval.judgements.read(args.judgements, embeddings) if args.judgements else None
    return retrieval.truth.truth_of(embeddings, choice, judged)


def evaluate(
    embeddings: "Embeddings",
    queries: dict[str, "QueryTexts"],
    args: argparse.Namespace,
    truth: "Truth",
    device: "torch.device",
    kept: dict[str, "retrieval.ranking.Ranks"],
) -> dict[str, Any]:
    """The numbers of the protocols that the flags name, on rank 0; all processes take part. `kept` is filled."""
    candidates = None
    if "sampled101" in args.protocol:
        if runtime.distributed.rank() == 0:
            candidates = retrieval.sampled101.read_or_draw(args.candidates, embeddings, args.seed)
        candidates = runtime.distributed.agree(candidates)
    return retrieval.results.measure_embeddings(
        embeddings, args.protocol, args.k, args.seed, candidates, truth, queries, kept=kept, device=device, shared=True
    )


def is_embeddings(path: str) -> bool:
    """Whether a path names embeddings, not results."""
    return path.endswith(".npz") or retrieval.embeddings.is_folder(path)


def load_results(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """A result file, or an embeddings file measured on the spot."""
    if not is_embeddings(path):
        return retrieval.result_file.read(path)
    embeddings, queries = load_embeddings(path, ())  # a comparison names the protocols that it lacks
    device, truth = runtime.device.pick_device(args.device), truth_of(embeddings, args)
    results = retrieval.results.measure_embeddings(
        embeddings, args.protocol, args.k, args.seed, truth=truth, queries=queries, device=device
    )
    return results | {"data": {"fingerprint": embeddings.fingerprint()}, "name": path}


def write_outputs(
    args: argparse.Namespace,
    embeddings: "Embeddings",
    queries: dict[str, "QueryTexts"],
    examples: "Examples | None",
    results: dict[str, Any],
    baseline: dict[str, Any] | None,
) -> None:
    """The result file and whatever else the flags ask for, then the tables."""
    retrieval.result_file.write(args.output, results)
    print(retrieval.table.render(results))
    if baseline:
        print("\n" + retrieval.comparison.compare(baseline, results | {"name": args.output}) + "\n")
    print(f"written to {args.output}")
    if args.candidates and "sampled101" in args.protocol:
        print(f"the lists of sampled101 are in {args.candidates}")
    if args.save_embeddings:
        retrieval.embeddings.save(args.save_embeddings, embeddings, retrieval.query_texts.arrays(queries))
        print(f"embeddings written to {args.save_embeddings}")
    if examples:
        write_report(args, embeddings, examples, results, baseline)
        print(f"report written to {args.report}")


def write_disputed(args: argparse.Namespace, embeddings: "Embeddings", pairs: "list[Pair]") -> None:
    """The table of disputed pairs, and the page beside it on which they are judged."""
    page = str(Path(args.disputed).with_suffix(".html"))
    pictures = read_pictures(args, embeddings.keys_of(retrieval.disputed.images_of(pairs)), page)
    written = {
        args.disputed: retrieval.disputed.csv(embeddings, pairs),
        page: retrieval.disputed.page(embeddings, pairs, pictures, Path(args.disputed).name),
    }
    for path, text in written.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace", newline="")
    print(f"{len(pairs):,} disputed pairs written to {args.disputed}; {page} takes the verdicts for --judgements")


def read_pictures(args: argparse.Namespace, key_of: dict[int, str], page: str) -> dict[int, bytes]:
    """{image: encoded picture} of images by their samples' keys; where the shards are out of reach, `page` says so."""
    try:
        found = loading.lookup.read_pictures(args.dataset_path, key_of.values(), args.caption_key)
    except FileNotFoundError as error:
        print(f"{page} has no pictures: {error}", file=sys.stderr)
        return {}
    return {image: found[key] for image, key in key_of.items() if key in found}


def write_report(
    args: argparse.Namespace,
    embeddings: "Embeddings",
    examples: "Examples",
    results: dict[str, Any],
    baseline: dict[str, Any] | None,
) -> None:
    """The page, with pictures from the shards; where they are out of reach, their keys stand instead."""
    if retrieval.report.before_of(baseline, results, "product"):
        examples.before = answers_before(args, baseline or {}, examples, embeddings)
    pictures = read_pictures(args, examples.keys(embeddings), "the report")
    page = retrieval.report.render(results, embeddings, examples, pictures, baseline)
    with atomic_write(args.report) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # half a character, as JSON can escape one


def answers_before(
    args: argparse.Namespace, baseline: dict[str, Any], examples: "Examples", embeddings: "Embeddings"
) -> dict[str, Any]:
    """What the baseline answered to the queries of the page: its embeddings know that of each, its results of a sample."""
    if not is_embeddings(args.baseline):
        return baseline.get("examples", {})
    before, _ = load_embeddings(args.baseline, ())
    return retrieval.examples.before(before, truth_of(before, args), examples, embeddings)


if __name__ == "__main__":
    console.run(main, settings)
