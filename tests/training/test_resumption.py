"""Which settings a resumed run has: what was set for the call, then the checkpoint's, then the page's; and its next command."""

import pytest

import settings
from clip_finetuning.loading.shard_list import names_url
from clip_finetuning.runtime import knobs as page_of_knobs
from clip_finetuning.training import knobs, resumption

KNOBS = page_of_knobs.Page(settings).knobs
PAGE = {name: page_of_knobs.value(settings, name) for name in knobs.ALL}
OTHERS = {
    "BATCH_SIZE": 64, "EPOCHS": 3, "LEARNING_RATE": 3e-4, "WARMUP_STEPS": 7, "BETA2": 0.5, "OPTIMIZER": "muon",
    "IMAGE_MEAN": "0.5,0.5,0.5", "NUM_WORKERS": 0, "EVAL_INTERVAL": None, "GRAD_CHECKPOINTING": True, "PRECISION": "bf16",
    "TRAIN_DATASET_PATTERN": "elsewhere/train.{0..3}.tar", "KEEP_CHECKPOINTS": 9, "TENSORBOARD": True, "LOSS": "siglip",
}  # fmt: skip


def take_up(saved, **set_now):
    values = PAGE | {name.upper(): value for name, value in set_now.items()}
    given = {name.upper() for name in set_now}
    return resumption.take_up(values, given, saved, KNOBS, names_url, "a.pt")


def test_what_nobody_set_is_as_in_the_checkpoint():
    found = take_up(PAGE | OTHERS)
    assert {name: found.values[name] for name in OTHERS} == OTHERS
    assert {type(found.values[name]) for name in ("BATCH_SIZE", "WARMUP_STEPS")} == {int}


def test_what_was_set_counts_more_and_each_difference_to_the_page_is_said():
    found = take_up(PAGE | {"BATCH_SIZE": 64, "SEED": 7, "LEARNING_RATE": 1e-4}, batch_size=32)
    assert (found.values["BATCH_SIZE"], found.values["SEED"]) == (32, 7)
    assert found.remarks == ["as the checkpoint says, not settings.py; a flag overrules both:", "  SEED=7 (not 42)"]
    assert not take_up(PAGE | {"LEARNING_RATE": 1e-4, "WARMUP_STEPS": 9}).remarks  # settings.py says nothing of these


def test_what_was_set_to_be_decided_is_as_in_the_checkpoint():
    found = take_up(PAGE | OTHERS, precision="auto", learning_rate=None)
    assert (found.values["PRECISION"], found.values["LEARNING_RATE"]) == ("bf16", 3e-4)


@pytest.mark.parametrize(
    ("saved", "now", "length"),
    [
        ((None, 300), {}, (None, 300)),
        ((2, 7), {}, (2, 7)),
        ((None, 300), {"epochs": 9}, (9, None)),
        ((3, None), {"max_steps": 40}, (5, 40)),
        ((None, 300), {"max_steps": 400}, (5, 400)),
    ],
)
def test_epochs_and_max_steps_are_one_decision(saved, now, length):
    found = take_up(PAGE | dict(zip(resumption.LENGTH, saved)), **now)
    assert (found.values["EPOCHS"], found.values["MAX_STEPS"]) == length
    assert ("EPOCHS" in found.given) == (now.keys() != {"max_steps"})


def test_a_checkpoint_of_an_older_version_leaves_the_rest_to_the_page():
    found = take_up({"BATCH_SIZE": 64})
    assert found.values == PAGE | {"BATCH_SIZE": 64}


def test_no_checkpoint_says_where_files_are_written():
    saved = {"CHECKPOINT_DIR": "/etc", "MODEL_CACHE_DIR": "/etc", "RESUME": "theirs.pt"}
    assert take_up(PAGE | saved).values == PAGE


@pytest.mark.parametrize(
    "pattern", ["pipe:rm -rf x", "s3://x/{0..3}.tar", "a.tar::https://x/b.tar", "{pipe:touch x,a.tar}"]
)
def test_no_checkpoint_says_what_is_fetched_or_run(pattern):
    with pytest.raises(ValueError, match=r"a\.pt cannot be used: TRAIN_DATASET_PATTERN .*add --train-dataset-pattern="):
        take_up(PAGE | {"TRAIN_DATASET_PATTERN": pattern})
    assert take_up(PAGE | {"TRAIN_DATASET_PATTERN": pattern}, train_dataset_pattern=pattern).values != PAGE


@pytest.mark.parametrize(
    "wrong", [{"BATCH_SIZE": "many"}, {"BATCH_SIZE": 0}, {"LOSS": "\x1b[2J"}, {"EPOCHS": None}, {"SEED": [1]}]
)
def test_settings_that_no_knob_takes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as refusal:
        take_up(PAGE | wrong)
    assert str(refusal.value).isprintable()


def test_the_command_that_goes_on_names_what_the_checkpoint_does_not_say():
    def flags(config=None, **values):
        return resumption.flags_to_go_on(PAGE | values, PAGE, KNOBS, config or {}, names_url)

    assert flags(BATCH_SIZE=3, MODEL_NAME="ViT-B-16") == ["--resume"]
    assert flags(CHECKPOINT_DIR="a b") == ["--resume", "--checkpoint-dir=a b"]
    assert flags(MODEL_NAME="hf-hub:x/y", VALID_DATASET_PATTERN="s3://v.tar") == [
        "--resume", "--model-name=hf-hub:x/y", "--valid-dataset-pattern=s3://v.tar",
    ]  # fmt: skip
    fetched = {"text_cfg": {"hf_tokenizer_name": "x/y"}}
    assert flags(fetched, MODEL_NAME="mine.json") == ["--resume", "--model-name=mine.json"]
    assert flags(MODEL_NAME="mine.json") == ["--resume"]
