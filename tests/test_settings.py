"""The page of knobs, and which script takes and uses which of them."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import settings
from clip_finetuning.runtime import command_line, knobs
from tests.helpers import write_config

ROOT = Path(__file__).parent.parent
KNOBS = {row.name: row for row in knobs.rows(settings)}
PAGE = ast.parse((ROOT / "settings.py").read_text(encoding="utf-8"))

# The command line of each script: what is added or taken away here is a decision, and documented.
FLAGS = {
    "clip_prep": """
        --allow-outside --attributes --audit --caption-column --caption-fields --caption-template --category-column --data-dir --debug
        --download --download-limit --download-rate --drop-leaks --encoding --hdf5 --help --image-column --image-template
        --images --keep-markup --max-skipped --num-workers --on-colab --output --preset --product-column --ray --split
        --subcategory-column --table --test-fraction --valid-fraction
    """,
    "create_webdataset": """
        --allow-outside --caption-key --crop-margins --data-dir --dataset-name --debug --help --image-key --image-size
        --json --max-shards --no-shuffle --num-workers --on-colab --output-dir --part --quality --ray --seed --shard-size --verify
    """,
    "clipFineTuner": """
        --batch-size --beta1 --beta2 --caption-key --checkpoint-dir --checkpoint-interval --debug --device --ema-decay --epochs --eps
        --eval-interval --force --grad-checkpointing --grad-clip-norm --help --image-interpolation --image-mean --image-resize-mode
        --image-std --keep-checkpoints --learning-rate
        --log-interval --loss --lr-schedule --max-steps --micro-batch-size --model-cache-dir --model-name
        --model-pretrained --num-workers --on-colab --optimizer --patience --precision --product-key --reduced-decode --resume --seed
        --tensorboard --train-dataset-pattern --valid-dataset-pattern --views --warmup-steps --weight-decay
        --retention-dataset-pattern --crop-scale --flip --tune --layer-decay --image-rate --text-rate --lora-rank --lora-alpha --lora-dropout
        --lora-targets --anchor --start-share --fit-temperature --warm-statistics --keep --try-rates --dry-run
    """,
    "evaluate_clip": """
        --attributes --baseline --batch-size --candidates --caption-key --captions --checkpoint --checkpoint-dir --compare
        --dataset-path --debug --device --disputed --eval-checkpoint --from-embeddings --help --image-interpolation --image-mean
        --image-resize-mode --image-std --judgements --k --max-samples --model-cache-dir --model-name --model-pretrained
        --num-workers --on-colab --output --precision --product-key --prompts --protocol --queries --report --retention
        --save-embeddings --seed --seeds --test --test-dataset-pattern --truth --use-checkpoint --valid-dataset-pattern --zero-shot
        --interpolate --save-checkpoint
    """,
    "export_clip": """
        --caption-key --checkpoint --debug --dtype --form --help --image-interpolation --image-mean --image-resize-mode --image-std --int8
        --license --max-samples --model-cache-dir --model-name --model-pretrained --normalize --on-colab --output --pictures
        --product-key --results --seed --valid-dataset-pattern
    """,
    "search_clip": """
        --all-views --allow-outside --batch-size --caption-key --category --checkpoint --compare --data-dir --debug --device --exact --export --help
        --host --image --image-interpolation --image-mean --image-resize-mode --image-std --json --model-cache-dir
        --model-name --model-pretrained --num-workers --on-colab --output --port --precision --product-key --seed --sheet
        --similarity --top
    """,
}
SMALLEST_CALL = {
    "create_webdataset": ["--json", "a.json", "--output-dir", "shards"],
    "export_clip": ["--form", "onnx", "--output", "folder"],
    "search_clip": ["query", "index", "words"],
}
OWN = {("create_webdataset", "CAPTION_KEY")}  # a flag of the same name that is no knob: a field of the mapping


def flag_of(name):
    return "--" + name.lower().replace("_", "-")


# ------------------------------------------------------------------------------------------------- the page


def test_documented_defaults():
    assert (settings.MODEL_NAME, settings.MODEL_PRETRAINED) == ("ViT-B-32", "laion2b_s34b_b79k")
    assert (settings.CHECKPOINT_INTERVAL, settings.MAX_STEPS) == (1000, None)
    assert settings.VALID_DATASET_PATTERN == "webdataset_shards/clip_dataset_valid.{000000..000006}.tar"
    assert settings.TEST_DATASET_PATTERN == "webdataset_shards/clip_dataset_valid.{000007..000032}.tar"
    assert settings.TRAIN_DATASET_PATTERN.startswith("webdataset_shards/clip_dataset_train.{000000..")
    assert (settings.CHECKPOINT_DIR, settings.EVAL_CHECKPOINT) == ("checkpoints", "checkpoints/final_checkpoint.pt")
    for name in ["ON_COLAB", "BATCH_SIZE", "NUM_WORKERS", "MODEL_CACHE_DIR"]:
        assert hasattr(settings, name)


def test_editors_and_linters_see_every_knob_as_a_plain_annotated_assignment():
    plain = [node.target.id for node in PAGE.body if isinstance(node, ast.AnnAssign)]
    assert [name for name in plain if name in KNOBS] == list(KNOBS)
    assert len(KNOBS) == 64


def test_the_page_holds_no_machinery():
    docstring, *body = PAGE.body
    assert isinstance(docstring, ast.Expr)
    assert {type(node) for node in body} == {ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr}
    aliases = [node for node in body if isinstance(node, ast.Assign)]
    assert all(ast.unparse(node.value).startswith("Annotated[") for node in aliases)
    assert {node.module for node in body if isinstance(node, ast.ImportFrom)} == {"typing"}


@pytest.mark.parametrize("name", KNOBS)
def test_every_value_of_the_page_is_one_that_the_knob_takes(name):
    assert knobs.value(settings, name) == getattr(settings, name)


def test_colab_is_detected(monkeypatch):
    command = [
        sys.executable,
        "-c",
        "import settings; print(settings.ON_COLAB, settings.DATA_DIR, settings.EVAL_CHECKPOINT)",
    ]
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-1")
    on_colab = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    elsewhere = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    drive = settings.DRIVE_FOLDER
    assert on_colab.split() == ["True", drive, f"{drive}/checkpoints/final_checkpoint.pt"]
    assert elsewhere.split() == ["False", ".", "checkpoints/final_checkpoint.pt"]


def test_drive_holds_the_default_paths_on_colab_and_only_those():
    names = [name for name in KNOBS if name.endswith(("_DIR", "_PATTERN", "EVAL_CHECKPOINT"))]
    values = command_line.Parser(settings, "A test.", names).parse_args(
        ["--on-colab", "--train-dataset-pattern", "t.tar"]
    )
    assert values.data_dir == settings.DRIVE_FOLDER
    for name in ("VALID_DATASET_PATTERN", "TEST_DATASET_PATTERN", "CHECKPOINT_DIR", "EVAL_CHECKPOINT"):
        assert getattr(values, name.lower()) == f"{settings.DRIVE_FOLDER}/{getattr(settings, name)}"
    assert (values.train_dataset_pattern, values.model_cache_dir) == ("t.tar", None)


# ---------------------------------------------------------------------------------------------- the scripts


def help_of(script, capsys):
    """(flags, text) of a script's help."""
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).parse_arguments(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    return re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", text, re.MULTILINE), text


@functools.cache
def reads_of(script):
    """Names that the script and the modules below it read as `args.<name>`, or of its knobs by name, `values["NAME"]`."""
    names, waiting, done = set(), [ROOT / f"{script}.py"], set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") in ("values", "settings"):
                key = getattr(node.slice, "value", None)
                names |= {key.lower()} if isinstance(node.ctx, ast.Load) and key in KNOBS else set()
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):  # a folder's module, loaded on use
                file = ROOT / "clip_finetuning" / node.value.id / f"{node.attr}.py"
                waiting += [file] if file.exists() else []
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names |= {node.attr} if getattr(node.value, "id", "") == "args" else set()
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module, *(f"{node.module}.{name}" for name in imported)]
            files = [ROOT / (module.replace(".", "/") + ".py") for module in imported]
            waiting += [file for file in files if file.exists() and file.stem not in FLAGS and file not in done]
    return names


def used_by(script):
    """Knobs that a script reads, those of which the page works these out, and what every script takes."""
    used = {name for name in KNOBS if name.lower() in reads_of(script)}
    for node in reversed(PAGE.body):
        if isinstance(node, ast.AnnAssign) and node.target.id in used:
            used |= {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name) and name.id in KNOBS}
    return used | set(command_line.ALWAYS)  # read by the page, and by console.run


@pytest.mark.parametrize("script", FLAGS)
def test_the_command_line_is_what_it_was(script, capsys):
    flags, _ = help_of(script, capsys)
    assert sorted(flags) == sorted(FLAGS[script].split())


@pytest.mark.parametrize("script", FLAGS)
def test_a_script_offers_the_knobs_that_it_uses_and_no_other(script):
    assert {name for name in KNOBS if flag_of(name) in FLAGS[script].split()} == used_by(script)


@pytest.mark.parametrize("script", FLAGS)
def test_a_script_reads_what_its_parser_gives(script):
    arguments = importlib.import_module(script).parse_arguments(SMALLEST_CALL.get(script, []))
    assert reads_of(script) <= set(vars(arguments))


def test_every_knob_is_used_by_some_script():
    assert set().union(*map(used_by, FLAGS)) == set(KNOBS)


@pytest.mark.parametrize("script", FLAGS)
def test_help_of_each_script_lists_its_knobs_with_defaults_in_eighty_columns(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    flags, text = help_of(script, capsys)
    words = " ".join(text.split())
    for row in KNOBS.values():
        if flag_of(row.name) in flags and (script, row.name) not in OWN:
            assert f"{row.help} [{row.default or 'empty'}]" in words
    examples = [line for line in importlib.import_module(script).__doc__.splitlines() if line.startswith("    ")]
    assert max(len(line) for line in text.splitlines() if line not in examples) <= 80


def test_a_script_says_in_one_line_what_is_wrong_with_the_page():
    """As a command, with the page that lies beside it."""
    done = subprocess.run(
        [sys.executable, "-c", "import settings, runpy; settings.BATCHSIZE = 3; runpy.run_path('clip_prep.py', run_name='__main__')"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.endswith("error: settings.BATCHSIZE sets nothing: did you mean settings.BATCH_SIZE?\n")
    assert done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------------------- a notebook


def test_a_training_takes_what_a_notebook_assigned(make_shards, tmp_path, monkeypatch):
    import clipFineTuner
    import openClipManagement as clip
    from clip_finetuning.training import curves

    assigned = {
        "BATCH_SIZE": 6,
        "EPOCHS": 1,  # given, so MAX_STEPS does not take its place
        "MAX_STEPS": 50,
        "MODEL_NAME": write_config(tmp_path),
        "MODEL_PRETRAINED": "",
        "DEVICE": "cpu",
        "PRECISION": "fp32",
        "NUM_WORKERS": 0,
        "EVAL_INTERVAL": None,
        "CHECKPOINT_DIR": str(tmp_path / "run"),
        "TRAIN_DATASET_PATTERN": make_shards(tmp_path / "train", products=6, views=2, shards=1),
    }
    for name, value in assigned.items():
        monkeypatch.setattr(settings, name, value)
    monkeypatch.setattr(curves, "draw", lambda *_: None)  # most of the time
    clipFineTuner.main(["--seed", "7"])
    checkpoint = clip.read_checkpoint(tmp_path / "run" / "final_checkpoint.pt")
    assert assigned.items() <= checkpoint["settings"].items()
    assert (checkpoint["settings"]["SEED"], checkpoint["step"]) == (7, 2)


def test_an_evaluation_looks_where_a_notebooks_checkpoints_are(monkeypatch):
    import evaluate_clip

    monkeypatch.setattr(settings, "CHECKPOINT_DIR", "mine")
    assert evaluate_clip.parse_arguments(["--use-checkpoint"]).eval_checkpoint == "mine/final_checkpoint.pt"
