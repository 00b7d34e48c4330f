"""Measure text->image and image->text retrieval of a model on shards, exactly, and say what was measured.

    python evaluate_clip.py                                        # the base model, on the validation shards
    python evaluate_clip.py --use-checkpoint                       # settings.EVAL_CHECKPOINT
    python evaluate_clip.py --checkpoint checkpoints/best_checkpoint.pt --protocol all
    python evaluate_clip.py --dataset-path "webdataset_shards/clip_dataset_valid.{000007..000032}.tar"
    python evaluate_clip.py --use-checkpoint --baseline evaluation_results.json --report report.html
    python evaluate_clip.py --compare evaluation_results.json evaluation_results_checkpoint.json
    python evaluate_clip.py --from-embeddings anybodys.npz

Writes evaluation_results.json, or evaluation_results_checkpoint.json for a checkpoint. Runs under torchrun too.
"""

import functools
import json
import logging
import sys
import textwrap
import time
from pathlib import Path

import dBManagement
import numpy as np
import openClipManagement as clip
from tqdm import tqdm

import settings
from clip_finetuning.loading.lookup import read_pictures
from clip_finetuning.loading.sample import majority_warning
from clip_finetuning.retrieval import comparison, protocols, report, result_file, zero_shot
from clip_finetuning.retrieval import embeddings as embeddings_file
from clip_finetuning.retrieval.embeddings import Embeddings
from clip_finetuning.retrieval.embed import embed_rows
from clip_finetuning.runtime import command_line, console, distributed
from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.runtime.text import caption_numbers

RECALLS = (5, 10)  # always reported at the top level of the results
NO_IMAGE_EMBEDDING, NO_CAPTION_EMBEDDING = "picture without a finite embedding", "caption without a finite embedding"
NAMED = 5  # samples that are named in a warning
log = logging.getLogger(__name__)
KNOBS = [
    "MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR", "VALID_DATASET_PATTERN", "TEST_DATASET_PATTERN",
    "IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION", "CHECKPOINT_DIR", "EVAL_CHECKPOINT", "BATCH_SIZE", "NUM_WORKERS", "DEVICE", "PRECISION", "SEED",
]  # fmt: skip


def main(argv=None):
    """Settings, embeddings, numbers, files."""
    args = parse_arguments(argv)
    if args.compare:
        print(comparison.compare(*(load_results(path, args) for path in args.compare)))
        return
    ranks = distributed.start(args.device)
    if args.from_embeddings:
        embeddings = embeddings_file.load(args.from_embeddings)
        about = {"embeddings": args.from_embeddings, "data": {"fingerprint": embeddings.fingerprint()}}
        clip_model = None
    else:
        clip_model = load_model(args, ranks)
        embeddings, about = embed_shards(clip_model, args, ranks)
    if ranks.rank == 0:
        baseline = load_results(args.baseline, args) if args.baseline else None
        results = measure_embeddings(embeddings, args.protocol, args.k, args.seed, candidate_lists(embeddings, args))
        results.update(about)
        if args.zero_shot:
            results["zero_shot"] = zero_shot.classify(clip_model, embeddings, results["model"]["precision"])
        write_outputs(args, embeddings, results, baseline)
    distributed.stop()


def parse_arguments(argv):
    """The script's own arguments and its knobs."""
    parser = command_line.Parser(settings, __doc__, KNOBS)
    parser.add_argument("--use-checkpoint", action="store_true", help="evaluate EVAL_CHECKPOINT, not the base model")
    parser.add_argument("--checkpoint", metavar="PATH", help="evaluate this checkpoint")
    parser.add_argument("--dataset-path", metavar="PATTERN", help="shards to evaluate on [VALID_DATASET_PATTERN]")
    parser.add_argument("--test", action="store_true", help="evaluate on TEST_DATASET_PATTERN, for the last figure")
    parser.add_argument("--output", metavar="FILE", help="the result file [evaluation_results[_checkpoint].json]")
    parser.add_argument("--max-samples", type=int, metavar="N", help="only the first N samples")
    choices = (*protocols.PROTOCOLS, "all")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=choices,
        default=["product", "pair"],
        metavar="NAME",
        help=f"what is queried against what: {', '.join(choices)} [product pair]",
    )
    parser.add_argument(
        "--k", nargs="+", type=int, default=[1, 5, 10], metavar="K", help="Recall@k for these k [1 5 10]"
    )
    parser.add_argument(
        "--candidates", metavar="FILE.npz", help="lists of sampled101: read if the file is there, else written"
    )
    parser.add_argument("--save-embeddings", metavar="FILE.npz", help="write the embeddings")
    parser.add_argument("--from-embeddings", metavar="FILE.npz", help="evaluate such a file, with no model")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="is B better than A? two result or embedding files"
    )
    parser.add_argument("--baseline", metavar="FILE", help="results of the model before, to show the difference to")
    parser.add_argument("--report", metavar="FILE.html", help="write one page with numbers, pictures and failures")
    parser.add_argument(
        "--zero-shot", action="store_true", help="also classify images by the names of their categories"
    )
    args = parser.parse_args(argv)
    if min(args.k) < 1:
        parser.error(f"--k {min(args.k)} is not allowed: it takes whole numbers >= 1")
    if args.max_samples is not None and args.max_samples < 1:
        parser.error(f"--max-samples {args.max_samples} is not allowed: it takes a whole number >= 1")
    if args.zero_shot and args.from_embeddings:
        parser.error("--zero-shot needs a model to embed the category names; leave out --from-embeddings")
    if args.report and not {"product", "all"} & set(args.protocol):
        parser.error("--report shows the product protocol; add it to --protocol")
    if args.test and args.dataset_path:
        parser.error("--test and --dataset-path both name shards; leave out one")
    args.dataset_path = args.dataset_path or (args.test_dataset_pattern if args.test else args.valid_dataset_pattern)
    if "all" in args.protocol:
        args.protocol = list(protocols.PROTOCOLS)
    args.protocol = sorted(set(args.protocol), key=protocols.PROTOCOLS.index)  # product, if asked for, is the headline
    args.k = sorted({*args.k, *RECALLS})
    return args


def load_model(args, ranks):
    """The base model, or that of the checkpoint which the flags name."""
    device = clip.pick_device(args.device, ranks.local_rank)
    devices.make_current(device)
    path = args.checkpoint or (args.eval_checkpoint if args.use_checkpoint else None)
    image = clip.image_settings(args)
    if path is None:
        return clip.create_model(args.model_name, args.model_pretrained, args.model_cache_dir, device, args.seed, image)
    named = args.model_name if "MODEL_NAME" in args.given else None
    return clip.load_model(path, device, args.model_cache_dir, named, args.model_name, image=image)


def embed_shards(clip_model, args, ranks):
    """(Embeddings of the shards, what the results say about model and data)."""
    loader = dBManagement.eval_loader(
        args.dataset_path,
        clip.image_transform(clip_model, train=False),
        clip_model.tokenizer,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        rank=ranks.rank,
        world_size=ranks.world_size,
        max_samples=args.max_samples,
    )
    seen = distributed.gather_objects(loader.num_samples)
    if len(set(seen)) > 1:
        raise ValueError(f"the processes see {seen} samples in {args.dataset_path}: all machines need the same shards")
    precision = distributed.agree(clip.pick_precision(args.precision, clip_model.device))
    start = time.perf_counter()
    embeddings, counts = embed(clip_model, loader, precision, progress=ranks.rank == 0)
    about = {
        "model": {"name": clip_model.name, "weights": clip_model.pretrained or "random", "precision": precision},
        "data": {"pattern": args.dataset_path, "fingerprint": embeddings.fingerprint(), **counts},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return embeddings, about


# ---------------------------------------------------------------------------------------------- embedding


class NothingFinite(ValueError):
    """There are samples, but the model gives none of them an embedding; `counts` are those of `embed`."""

    def __init__(self, message, counts):
        super().__init__(message)
        self.counts = counts


def embed(clip_model, loader, precision, progress=False, wished=None):
    """Embed every sample of a loader, each distinct caption once -> (Embeddings of all ranks, counts).

    The counts say what became of the other samples, once over all ranks: `skipped` {reason: samples}, `again_in_fp32`
    {"images", "captions"}: what overflowed in half precision. Raises ValueError if nothing can be embedded, distributed.Stopped if `wished`, a
    function that all ranks ask between two batches, wants an end.
    """
    clip_model.model.eval()
    part = _Part()
    bar = tqdm(total=loader.num_samples, unit=" samples", desc="embedding", disable=None if progress else True)
    with bar:
        for batch in distributed.until(wished, loader) if wished else loader:
            part.add(clip_model, batch, precision)
            bar.update(len(batch.keys))
    part.lost |= loader.lost
    parts = distributed.gather_objects(part)
    # What breaks an index is on every rank's list, what a rank could not decode on its own alone.
    skipped = dBManagement.count_lost(part.lost for part in parts)
    again = {"images": sum(part.images_again for part in parts)}
    again["captions"] = len(set().union(*(part.captions_again for part in parts)))
    counts = {"skipped": dict(skipped), "again_in_fp32": again}
    rows = [row for part in parts for row in part.rows]
    if not rows:
        message = f"no sample could be embedded: {dict(skipped) or 'the shards are empty'}"
        if {NO_IMAGE_EMBEDDING, NO_CAPTION_EMBEDDING} & set(skipped):
            raise NothingFinite(message, counts)
        raise ValueError(message)
    texts = {caption: row for part in reversed(parts) for caption, row in part.texts.items()}
    images = np.concatenate([block for part in parts for block in part.images])
    return _assemble(images, texts, rows), counts


class _Part:
    """What one rank has embedded."""

    def __init__(self):
        self.images, self.texts, self.rows = [], {}, []  # blocks (n, D), {caption: (D,)}, one row a sample
        self.lost = {}  # as in Loader.lost
        self.met, self.images_again, self.captions_again = 0, 0, set()

    def add(self, clip_model, batch, precision):
        """Embed a batch; samples whose picture or caption has no embedding are left out by name."""
        images = embed_rows(clip_model, clip.encode_images, batch.images, precision)
        self._add_captions(clip_model, batch, precision)
        self.images_again += len(images.again)
        _tell(
            f"pictures overflowed in {precision} and are embedded again in fp32", [batch.keys[i] for i in images.again]
        )
        broken = dict.fromkeys(images.broken.tolist(), NO_IMAGE_EMBEDDING)
        for i, caption in enumerate(batch.captions):
            if self.texts[caption] is None:
                broken.setdefault(i, NO_CAPTION_EMBEDDING)
        for i, reason in broken.items():  # other shards may have the same keys
            self.lost[f"{batch.keys[i]}, sample {self.met + i} of rank {distributed.rank()}"] = (1, reason)
        _tell(
            "samples are left out, since picture or caption has no finite embedding even in fp32",
            [batch.keys[i] for i in broken],
        )
        kept = [i for i in range(len(batch.keys)) if i not in broken]
        self.met += len(batch.keys)
        self.images.append(images.embeddings[kept])
        rows = list(zip(batch.keys, batch.product_ids, batch.categories, batch.subcategories, batch.captions))
        self.rows += [rows[i] for i in kept]

    def _add_captions(self, clip_model, batch, precision):
        """Embed the captions that were not met before; None for one that has no embedding."""
        new = {caption: number for number, caption in enumerate(batch.captions) if caption not in self.texts}
        if not new:
            return
        names = list(new)
        texts = embed_rows(clip_model, clip.encode_texts, batch.tokens[list(new.values())], precision)
        again = [names[i] for i in texts.again]
        self.captions_again.update(again)
        _tell(f"captions overflowed in {precision} and are embedded again in fp32", again)
        self.texts.update(zip(names, texts.embeddings))
        self.texts.update((names[i], None) for i in texts.broken)


def _tell(what, names):
    """Warn of a batch's samples, the first few by name."""
    if names:
        listed = ", ".join(name[:60] for name in names[:NAMED])
        log.warning("%d %s: %s%s", len(names), what, listed, ", ..." if len(names) > NAMED else "")


def _assemble(images, texts, rows):
    """Arrays from per-sample rows; a text is a (product, caption) pair."""
    keys, products, categories, subcategories, captions = zip(*rows)
    numbers = {}
    image_text = np.array([numbers.setdefault(pair, len(numbers)) for pair in zip(products, captions)])
    return Embeddings(
        image_embeddings=images.astype(np.float32),
        text_embeddings=np.stack([texts[caption] for _, caption in numbers]).astype(np.float32),
        image_product=products,
        text_product=[product for product, _ in numbers],
        image_key=keys,
        captions=[caption for _, caption in numbers],
        category=categories,
        subcategory=subcategories,
        image_text=image_text,
    )


# ------------------------------------------------------------------------------------------------ measuring


def measure(clip_model, loader, precision, seed=0, wished=None):
    """The headline numbers of a model on a loader's samples, as in the result file; the trainer calls this.

    Rank 0 measures and all have its numbers: what follows from a score, such as an end of the training, is one decision.
    A model that gives no sample a finite embedding finds nothing: it scores 0 and ends no training.
    """
    ks = (1, 5, 10)
    try:
        embeddings, counts = embed(clip_model, loader, precision, wished=wished)
    except NothingFinite as error:  # on every rank alike
        log.warning("every recall counts as 0: %s", error)
        nothing = dict.fromkeys(protocols.DIRECTIONS, 0.0)
        return {"num_samples": 0, **{f"recall@{k}": dict(nothing) for k in ks}, **error.counts}
    mine = measure_embeddings(embeddings, ["product"], ks, seed) if distributed.rank() == 0 else None
    results = distributed.agree(mine) | counts
    for warning in results["warnings"]:
        _warn_once(warning)
    return results


@functools.cache
def _warn_once(warning):
    log.warning("%s", warning)


def measure_embeddings(embeddings, names, ks, seed=0, candidates=None):
    """Results of the protocols; the first one's recalls stand at the top level too."""
    evaluated = {name: protocols.evaluate(embeddings, name, ks, seed, candidates) for name in names}
    headline = evaluated[names[0]]
    results = {"num_samples": len(embeddings.image_key)}
    for k in ks:
        results[f"recall@{k}"] = {way: headline[way][f"recall@{k}"] for way in protocols.DIRECTIONS}
    return results | {
        "protocol": names[0],
        "num_products": len(np.unique(embeddings.image_product)),
        "num_captions": len(caption_numbers(embeddings.captions)[1]),
        "rules": comparison.RULES,
        "ties": "a positive that ties with negatives counts after them; in pair, samples with the same caption share "
        "their expected rank",
        "warnings": warnings_of(embeddings),
        "protocols": evaluated,
    }


def warnings_of(embeddings):
    """What makes the numbers mean something else than one thinks, a sentence each."""
    found = [majority_warning(embeddings.image_product)]
    unnamed = int((embeddings.image_product == embeddings.captions[embeddings.image_text]).sum())
    if unnamed:
        found.append(f"{unnamed:,} samples name no product: those with equal captions are one product")
    unlike = embeddings_file.unlike_captions(embeddings)
    if unlike:
        found.append(
            f"{unlike:,} texts are embedded otherwise than the same caption before them, which stands for both"
        )
    return [warning for warning in found if warning]


def candidate_lists(embeddings, args):
    """The lists of sampled101: read from --candidates if that file exists, else drawn, and written there."""
    if "sampled101" not in args.protocol:
        return None
    path, fingerprint = args.candidates, embeddings.fingerprint()
    if path and Path(path).exists():
        return _read_candidates(path, fingerprint, len(embeddings.image_key))
    lists, topped_up = protocols.draw_candidates(embeddings, args.seed)
    keys = embeddings_file.packed(embeddings.image_key)
    with atomic_write(path or "sampled101_candidates.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, fingerprint=fingerprint, topped_up=topped_up, image_key=keys, **lists)
    return lists, topped_up


def _read_candidates(path, fingerprint, images):
    """The lists of a file. Raises ValueError if they are damaged, or not of this data."""
    try:
        with np.load(path) as file:
            lists = {name: file[name] for name in (*protocols.DIRECTIONS, "fingerprint", "topped_up")}
    except Exception as error:  # zip and npy errors have no common class
        raise ValueError(f"{path} holds no candidate lists; name another file to draw new ones") from error
    if str(lists["fingerprint"]) != fingerprint:
        raise ValueError(f"{path} holds candidate lists of other data; name another file to draw new ones")
    try:
        result_file.check_candidates(lists, images)
    except ValueError as error:
        raise ValueError(f"{path} holds damaged candidate lists: {error}; name another file to draw new ones") from None
    return {way: lists[way] for way in protocols.DIRECTIONS}, int(lists["topped_up"])


# ---------------------------------------------------------------------------------------------------- files


def load_results(path, args):
    """A result file, or an embeddings file evaluated on the spot."""
    if str(path).endswith(".npz"):
        embeddings = embeddings_file.load(path)
        about = {"data": {"fingerprint": embeddings.fingerprint()}, "name": path}
        return measure_embeddings(embeddings, args.protocol, args.k, args.seed) | about
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        result_file.check_results(results)
        return results | {"name": str(path)}
    except FileNotFoundError:
        raise FileNotFoundError(f"result file {path} does not exist; evaluate_clip.py writes it") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no result file of evaluate_clip.py: {error}") from error


def write_outputs(args, embeddings, results, baseline):
    """The result file and whatever else the flags ask for, then the tables."""
    default = (
        "evaluation_results_checkpoint.json" if args.checkpoint or args.use_checkpoint else "evaluation_results.json"
    )
    output = args.output or default
    with atomic_write(output) as temporary:
        temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(table(results))
    if baseline:
        print("\n" + comparison.compare(baseline, results | {"name": output}) + "\n")
    print(f"written to {output}")
    if args.save_embeddings:
        embeddings_file.save(args.save_embeddings, embeddings)
        print(f"embeddings written to {args.save_embeddings}")
    if args.report:
        write_report(args, embeddings, results, baseline)
        print(f"report written to {args.report}")


def write_report(args, embeddings, results, baseline):
    """The page of `report`, with pictures from the shards; where they are out of reach, their keys stand instead."""
    examples = report.pick_examples(embeddings, seed=args.seed)
    unique, counts = np.unique(embeddings.image_key, return_counts=True)
    single = set(unique[counts == 1].tolist())  # a key that stands for two pictures finds neither
    keys = {key: image for image in examples.images() if (key := str(embeddings.image_key[image])) in single}
    pictures = {}
    try:
        pictures = read_pictures(args.dataset_path, keys)
    except FileNotFoundError as error:
        print(f"the report has no pictures: {error}", file=sys.stderr)
    thumbnails = {keys[key]: report.thumbnail(data) for key, data in pictures.items()}
    page = report.render(results, embeddings, examples, thumbnails, baseline)
    with atomic_write(args.report) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # half a character, as JSON can escape one


def table(results):
    """The results for the console, within 80 columns."""
    lines = []
    model = results.get("model")
    if model:
        lines.append(f"{model['name']} ({Path(model['weights']).name}), {model['precision']}"[:80])
    lines.append(
        f"{results['num_samples']:,} images, {results['num_products']:,} products, {results['num_captions']:,} distinct captions"
    )
    skipped = results.get("data", {}).get("skipped")
    if skipped:
        left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        lines += textwrap.wrap(f"left out: {left_out}", 80, subsequent_indent="  ")
    again = {what: count for what, count in results.get("data", {}).get("again_in_fp32", {}).items() if count}
    if again:
        lines.append(f"overflowed, embedded again in fp32: {', '.join(f'{n} {what}' for what, n in again.items())}")
    for warning in results["warnings"]:
        lines += textwrap.wrap(f"warning: {warning}", 80, subsequent_indent="  ")
    lines.append("each cell: value [95 % interval over products] (chance)")
    for name, protocol in results["protocols"].items():
        lines += ["", *textwrap.wrap(f"{name}: {protocol['protocol']}", 80, subsequent_indent="  ")]
        lines.append("text->image".rjust(48) + "image->text".rjust(30))
        recalls = [key for key in protocol["text_to_image"] if key.startswith("recall@")]
        for key in recalls:
            cells = [_cell(protocol[way], key) for way in protocols.DIRECTIONS]
            lines.append(f"  Recall{key[6:]}".ljust(16) + cells[0].rjust(32) + cells[1].rjust(30))
        for key, label in (("median_rank", "median rank"), ("mrr", "MRR"), ("map", "mAP")):
            cells = [f"{protocol[way][key]:.4g}" for way in protocols.DIRECTIONS]
            lines.append(f"  {label}".ljust(16) + cells[0].rjust(32) + cells[1].rjust(30))
    if "zero_shot" in results:
        lines += ["", zero_shot.line(results["zero_shot"])]
        broken = results["zero_shot"]["without_embedding"]
        if broken:
            lines += textwrap.wrap(f"left out, since the name's embedding is not finite: {', '.join(broken)}", 80)
    return "\n".join(lines)


def _cell(numbers, key):
    low, high = numbers["intervals"][key]
    return f"{numbers[key]:.4f} [{low:.3f}, {high:.3f}] ({numbers['chance'][key]:.3f})"


if __name__ == "__main__":
    console.run(main, settings)
