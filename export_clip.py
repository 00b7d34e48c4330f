"""Bring a model into the form that its user needs: one folder, proved equal to the model on real pictures.

    python export_clip.py --checkpoint checkpoints/best_checkpoint.pt --form open_clip --output shop-clip
    python export_clip.py --checkpoint checkpoints/best_checkpoint.pt --form transformers --output shop-clip-hf --dtype fp16
    python export_clip.py --checkpoint checkpoints/best_checkpoint.pt --form onnx --output shop-clip-onnx --normalize --int8
    python export_clip.py --checkpoint checkpoints/final_lora.pt --form peft --output shop-lora
    python export_clip.py --form sentence-transformers --output base-clip --pictures "webdataset_shards/clip_dataset_valid.*.tar"

Without --checkpoint it is the model of MODEL_NAME and MODEL_PRETRAINED. The folder is there whole and checked, or not at all:
the check runs on pictures of the catalogue, and of each it makes a transparent, a grey, a CMYK and an EXIF-turned one.
"""

import argparse
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import settings
from clip_finetuning import export, loading, model, runtime
from clip_finetuning.export.names import DTYPES, FORMS, INT8_COSINE, LIMITS
from clip_finetuning.runtime import command_line, console

if TYPE_CHECKING:
    from clip_finetuning.export.check import Original, Report
    from clip_finetuning.export.form import Facts, Form, Options
    from clip_finetuning.model.clip_model import ClipModel

PEFT = "peft"
FORM_HELP = f"one of {', '.join(FORMS)}, or of a LoRA checkpoint {PEFT}"
KNOBS = [
    "MODEL_NAME", "MODEL_PRETRAINED", "MODEL_CACHE_DIR", "VALID_DATASET_PATTERN", "CAPTION_KEY", "PRODUCT_KEY",
    "IMAGE_MEAN", "IMAGE_STD", "IMAGE_RESIZE_MODE", "IMAGE_INTERPOLATION", "SEED",
]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The model, its folder, the check, README.md."""
    args = parse_arguments(argv)
    export.folder.check_free(args.output)
    if args.form == PEFT:
        write_adapter(args)
        return
    form, options = choose_form(args)
    clip_model, checkpoint = load_model(args)
    form.refuse(clip_model)
    past = export.facts.gather(clip_model, args.checkpoint, checkpoint, args.results)
    original = read_pictures(clip_model, args)
    with export.folder.whole_folder(args.output) as folder:
        facts = write(form, clip_model, folder, options, args)
        report, eight_bit = check(form, original, folder, options, args)
        name = Path(args.output).resolve().name
        usage = form.usage(name, options)
        page = export.card.render(
            name, args.form, options, usage, past, facts, report, eight_bit, args.license,
            Path(args.pictures).name, versions(args.form),
        )  # fmt: skip
        (folder / "README.md").write_text(page, encoding="utf-8", errors="replace")
    tell(args, report, eight_bit, facts, past)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The script's own arguments and its knobs."""
    parser = command_line.Parser(settings, __doc__, KNOBS)
    parser.add_argument("--checkpoint", metavar="PATH", help="the checkpoint to export [the base model]")
    parser.add_argument("--form", required=True, choices=[*FORMS, PEFT], metavar="FORM", help=FORM_HELP)
    parser.add_argument("--output", required=True, metavar="DIR", help="the new folder")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", metavar="TYPE", help="of the weights: fp32 or fp16 [fp32]"
    )
    parser.add_argument("--pictures", metavar="SHARDS", help="shards to check it on [VALID_DATASET_PATTERN]")
    parser.add_argument("--max-samples", type=int, default=64, metavar="N", help="how many of their pictures [64]")
    parser.add_argument("--normalize", action="store_true", help="onnx: embeddings leave the towers with unit length")
    parser.add_argument("--int8", action="store_true", help="onnx: also write both towers in eight bits")
    parser.add_argument("--license", metavar="ID", help="the license that README.md names, such as mit [none]")
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="FILE",
        help="results of this model, and of its base, for README.md [those of evaluation_results*.json that fit]",
    )
    args = parser.parse_args(argv)
    if args.max_samples < 1:
        parser.error(f"--max-samples {args.max_samples} is not allowed: it takes a whole number >= 1")
    for flag in ("normalize", "int8"):
        if getattr(args, flag) and args.form != "onnx":
            parser.error(f"--{flag} is of --form onnx; leave it out for {args.form}")
    if args.license is not None and not args.license.isprintable():
        parser.error("--license holds characters that do not print")
    args.pictures = args.pictures or args.valid_dataset_pattern
    return args


def write_adapter(args: argparse.Namespace) -> None:
    """The additions of a LoRA checkpoint, in the files of PEFT; there is no model to check."""
    if args.checkpoint is None:
        raise ValueError(f"--form {PEFT} needs the --checkpoint of a run with TUNE=lora, such as final_lora.pt")
    checkpoint = model.weights.read_checkpoint(args.checkpoint, mapped=True)
    for line in export.peft_form.write(checkpoint, args.checkpoint, args.output):
        print(line)
    print(f"{PEFT} adapter written to {args.output}")


def choose_form(args: argparse.Namespace) -> "tuple[Form, Options]":
    """(the module that writes the form, how), once its packages are there."""
    forms: dict[str, Any] = {
        "open_clip": lambda: export.open_clip_form,
        "transformers": lambda: export.transformers_form,
        "onnx": lambda: export.onnx_form,
        "sentence-transformers": lambda: export.sentence_transformers_form,
    }
    form, options = forms[args.form](), export.form.Options(args.dtype, args.normalize, args.int8)
    form.require(options)
    return form, options


def load_model(args: argparse.Namespace) -> "tuple[ClipModel, dict[str, Any]]":
    """(the model on the CPU, what its checkpoint says)."""
    image = model.image_recipe.image_settings(args)
    if args.checkpoint is None:
        base = model.building.create_model(
            args.model_name, args.model_pretrained, args.model_cache_dir, "cpu", args.seed, image
        )
        base.model.eval()
        return base, {}
    checkpoint = model.weights.read_checkpoint(args.checkpoint, mapped=True)
    named = args.model_name if "MODEL_NAME" in args.given else None
    loaded = model.building.load_model(
        args.checkpoint, "cpu", args.model_cache_dir, named, args.model_name, checkpoint, image
    )
    loaded.model.eval()
    return loaded, {key: value for key, value in checkpoint.items() if key != "state_dict"}


def read_pictures(clip_model: "ClipModel", args: argparse.Namespace) -> "Original":
    """The model's own embeddings of the pictures that the folder is to be checked on."""
    fields = loading.sample.Fields(args.caption_key, args.product_key)
    found = export.pictures.read(args.pictures, args.max_samples, fields)
    of = f" of {found.total:,}" if found.total else ""
    rest = "".join(f"; {count} skipped: {reason}" for reason, count in found.skipped.items())
    rest += "".join(f"; {count} guessed: {what}" for what, count in found.guessed.items())
    print(f"checking on {len(found.samples)}{of} pictures of {args.pictures}{rest}", flush=True)
    return export.check.Original(clip_model, found.samples)


def write(form: "Form", clip_model: "ClipModel", folder: Path, options: "Options", args: argparse.Namespace) -> "Facts":
    """The form's files and preprocess.py."""
    facts = form.write(clip_model, folder, options)
    cleaner = None if args.form == "open_clip" else export.tokenizer_files.cleaner(clip_model)
    length = export.tokenizer_files.context_length(clip_model)
    text = export.preprocess_file.render(clip_model.preprocess, cleaner, args.form == "onnx", length)
    (folder / export.preprocess_file.FILE).write_text(text, encoding="utf-8")
    return facts


def check(
    form: "Form", original: "Original", folder: Path, options: "Options", args: argparse.Namespace
) -> "tuple[Report, Report | None]":
    """(what was measured of the folder, the same of its towers in eight bits); raises CheckFailed."""
    preprocess = export.check.read_preprocess(folder / export.preprocess_file.FILE)
    loaded = export.check.loaded(form, folder, args.form)
    report = export.check.check(original, loaded, preprocess, LIMITS[args.dtype])
    if not options.int8:
        return report, None
    eight_bit = export.check.loaded(form, folder, args.form, "_int8")
    return report, export.check.check(original, eight_bit, preprocess, None, INT8_COSINE)


def versions(form: str) -> str:
    """The package that loads a form, with its version: another one may see pictures otherwise."""
    package = {"open_clip": "open_clip_torch", "onnx": "onnxruntime"}.get(form, form)
    return f"{package} {importlib.metadata.version(package)}"


def tell(args: argparse.Namespace, report: "Report", eight_bit: "Report | None", facts: "Facts", past: Any) -> None:
    """What was measured, and what one should know."""
    print(
        f"largest difference of embeddings: {report.pictures:.2g} of equal pixels, {report.captions:.2g} of equal texts"
    )
    if args.form != "onnx":
        print(f"\nwith the own preprocessing of {versions(args.form)}, and with preprocess.py:\n{report.made}\n")
        print(export.card.kinds_table(report) + "\n")
        if report.skewed:
            print(f"preprocess.py is needed for pictures that are {', '.join(report.skewed)}: README.md shows it")
    if report.misread:
        print(f"preprocess.py cleans captions too; the tokenizer alone misreads: {', '.join(report.misread)}")
    if eight_bit is not None:
        was, now = eight_bit.recall
        print(
            f"in eight bits: Recall@10 {now:.3f}, it was {was:.3f} ({now - was:+.3f}); lowest cosine {eight_bit.least:.4f}"
        )
    for note in facts.notes:
        print(note)
    if args.license is None:
        print("not in README.md: a license, which depends on the weights it began with; --license ID names one")
    for line in past.left_out:
        print(f"not in README.md: {runtime.text.printable(line)}")
    size = sum(path.stat().st_size for path in Path(args.output).rglob("*") if path.is_file())
    print(f"{args.form} ({args.dtype}) written to {args.output}, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    console.run(main, settings)
