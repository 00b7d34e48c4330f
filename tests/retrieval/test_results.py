"""What is measured of a model, and what is said of the numbers: by the script and by the trainer alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_finetuning.model import clip_model as clip
from clip_finetuning.model.building import create_model
from clip_finetuning.retrieval import ranking, results
from dBManagement import eval_loader
from tests.helpers import embedded_catalogue, overflowing, write_config


def test_the_first_protocol_is_the_headline():
    measured = results.measure_embeddings(embedded_catalogue(noise=1.0), ["pair", "product"], (1, 5))
    assert measured["protocol"] == "pair" and list(measured["protocols"]) == ["pair", "product"]
    for k in (1, 5):
        for way, value in measured[f"recall@{k}"].items():
            assert value == measured["protocols"]["pair"][way][f"recall@{k}"]
    assert (measured["num_samples"], measured["num_products"], measured["num_captions"]) == (18, 6, 6)


def test_what_changes_the_meaning_of_the_numbers_is_said():
    embeddings = embedded_catalogue(captions=["same", "Same", "c", "d", "e", "f"])
    embeddings.image_product[:3] = "same"
    assert results.warnings_of(embeddings) == [
        "3 samples name no product: those with equal captions are one product",
        "1 texts are embedded otherwise than the same caption before them, which stands for both",
    ]
    assert results.warnings_of(embedded_catalogue()) == []


# -------------------------------------------------------------------------------------------- of a model


@pytest.fixture
def model(tmp_path):
    return create_model(write_config(tmp_path), "", None, torch.device("cpu"), seed=7)


@pytest.fixture
def loader(make_shards, tmp_path, model):
    """A function that opens a loader of 8 products of 2 views."""
    pattern = make_shards(tmp_path / "valid", products=8, views=2, shards=1)

    def open_loader():
        return eval_loader(pattern, clip.image_transform(model, train=False), model.tokenizer, batch_size=16)

    return open_loader


def test_an_overflow_ends_no_training(model, loader, monkeypatch, caplog):
    healthy = results.measure(model, loader(), "bf16")
    overflowing(monkeypatch, "encode_images", lambda rows: torch.arange(len(rows)) == 0)
    again = results.measure(model, loader(), "bf16")
    assert again["again_in_fp32"] == {"images": 1, "captions": 0} and again["skipped"] == {}
    assert again["num_samples"] == healthy["num_samples"] == 16
    overflowing(monkeypatch, "encode_images", lambda rows: slice(None), only_in_half=False)
    nothing = results.measure(model, loader(), "bf16")
    assert nothing["recall@10"] == {"text_to_image": 0.0, "image_to_text": 0.0}
    assert nothing["skipped"] == {"picture without a finite embedding": 16}
    assert "every recall counts as 0" in caplog.text


def test_a_wish_to_stop_ends_the_measuring(model, loader):
    with pytest.raises(results.distributed.Stopped):
        results.measure(model, loader(), "fp32", wished=lambda: True)
    assert results.measure(model, loader(), "fp32", wished=lambda: False)["num_samples"] == 16


def test_a_seed_draws_the_intervals_alone(model, loader):
    one, other = (results.measure(model, loader(), "fp32", seed)["protocols"]["product"] for seed in (0, 1))
    for way in ("text_to_image", "image_to_text"):
        assert one[way]["mrr"] == other[way]["mrr"]
        assert np.isfinite(one[way]["intervals"]["mean_rank"]).all()
    assert one["image_to_text"]["intervals"]["mean_rank"] != other["image_to_text"]["intervals"]["mean_rank"]


def test_the_trainer_ranks_on_the_models_device_and_shares_the_work(monkeypatch):
    """The embeddings are made elsewhere here; which device multiplies them is asked."""
    used, rank = [], ranking.ask
    monkeypatch.setattr(results, "embed", lambda *_, **__: (embedded_catalogue(), {}))
    monkeypatch.setattr(
        ranking, "ask", lambda *a, **b: (used.append((b["device"], b["shared"])), rank(*a, **b | {"device": None}))[1]
    )
    measured = results.measure(SimpleNamespace(device=torch.device("meta")), None, "fp32")
    assert used == [(torch.device("meta"), True)] * 2 and measured["recall@10"]["text_to_image"] == 1
