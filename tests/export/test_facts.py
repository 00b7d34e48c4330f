"""What a model card says of the past is what files tell of this very model."""

import json
from types import SimpleNamespace

import pytest

from clip_finetuning.export import facts


def gather(path="final.pt", named=None, name="ViT-B-32", tag="", **checkpoint):
    return facts.gather(SimpleNamespace(name=name, pretrained=tag), path, checkpoint, named)


def test_the_base_and_its_repository():
    past = gather(pretrained="laion2b_s34b_b79k")
    assert (
        past.base == "ViT-B-32, weights `laion2b_s34b_b79k`"
        and past.base_model == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    )
    past = gather(None, tag="laion2b_s34b_b79k")
    assert past.base_model == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert gather(pretrained="").base == "ViT-B-32, from random weights"
    assert gather(pretrained="/home/me/secret/weights.pt")[:2] == ("ViT-B-32, weights `weights.pt`", None)
    assert gather(name="hf-hub:somebody/model", pretrained="").base_model == "somebody/model"
    assert "does not say which weights" in gather().base


def test_data_by_manifest_by_sizes_or_not_at_all(tmp_path):
    def told(name):
        return " ".join(
            gather(settings={"TRAIN_DATASET_PATTERN": str(tmp_path / f"{name}.{{000000..000009}}.tar")}).data
        )

    manifest = {
        "samples": 1234,
        "shards": {"a.000000.tar": {}, "a.000001.tar": {}},
        "skipped": {"missing image": {"count": 3}},
    }
    (tmp_path / "a.manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "sizes.json").write_text(json.dumps({"b.000000.tar": 1000, "b.000001.tar": 50, "bb.000000.tar": 7}))
    (tmp_path / "c.manifest.json").write_text("{damaged")
    assert "1,234 samples in 2 shards" in told("a") and "Left out: 3 (missing image)." in told("a")
    assert "1,050 samples in 2 shards" in told("b")
    assert "not known here" in told("c") and str(tmp_path) not in told("a")
    assert gather(settings={"TRAIN_DATASET_PATTERN": 5}).data == ["The checkpoint does not say what it was trained on."]


@pytest.mark.parametrize("settings", [None, [], "text", {"BATCH_SIZE": None}])
def test_a_checkpoint_without_a_recipe(settings):
    assert gather(settings=settings, step="many").recipe == {}
    assert gather(settings={"BATCH_SIZE": 8, "CHECKPOINT_DIR": "/secret"}, step=7).recipe == {
        "BATCH_SIZE": 8,
        "steps trained": 7,
    }


@pytest.mark.parametrize(
    ("mix", "share"), [({"share": 0.7}, 0.7), ({"share": "x"}, None), (["share"], None), (None, None)]
)
def test_a_mix_says_how_much_of_it_was_trained(mix, share):
    told = gather(settings={}, interpolated=mix).recipe
    assert told == ({} if share is None else {"share of the trained weights, the rest being those of before": share})


def test_a_damaged_result_file_is_said_unless_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation_results.json").write_text("[]")
    assert ["no result file" in line for line in gather().left_out] == [True]
    with pytest.raises(ValueError, match="no result file"):
        gather(named=["evaluation_results.json"])
    with pytest.raises(FileNotFoundError):
        gather(named=["missing.json"])
