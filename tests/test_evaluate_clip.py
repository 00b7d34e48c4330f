"""The evaluator from shards to files: outputs, flags, what is left out, and the same numbers from two processes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import evaluate_clip
import openClipManagement as clip
from clip_finetuning.model import building, clip_model
from clip_finetuning.retrieval import embeddings as embeddings_file
from clip_finetuning.runtime import device, distributed
from clip_finetuning.runtime.version import version
from tests.helpers import (
    ROOT,
    catalogue_sample,
    embedded_catalogue,
    encoded_picture,
    overflowing,
    parsed_page,
    write_config,
    write_shard,
)
from tests.processes import run_ranks

PRODUCTS, VIEWS = 20, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_shards):
    """A folder with shards, a config, and a checkpoint of other weights."""
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder / "valid", products=PRODUCTS, views=VIEWS, shards=3)
    write_config(folder)
    model = clip.create_model(str(folder / "tiny-test.json"), "", None, torch.device("cpu"), seed=7)
    clip.save_checkpoint(folder / "final.pt", model, step=5)
    return folder


def flags(data, *more):
    return [
        f"--model-name={data / 'tiny-test.json'}",
        "--model-pretrained=",
        f"--valid-dataset-pattern={data / 'valid.{000000..000002}.tar'}",
        "--device=cpu",
        "--precision=fp32",
        "--num-workers=0",
        "--batch-size=7",
        *map(str, more),
    ]


def evaluate(data, folder, *more):
    """Run the script in a folder -> its results."""
    os.chdir(folder)
    evaluate_clip.main(flags(data, *more))
    names = [argument.split("=")[1] for argument in more if str(argument).startswith("--output=")]
    checkpoint = any("checkpoint" in str(argument) for argument in more)
    name = names[0] if names else f"evaluation_results{'_checkpoint' if checkpoint else ''}.json"
    return json.loads((folder / name).read_text())


@pytest.fixture(autouse=True)
def _stay_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_results_are_laid_out_as_documented(data, tmp_path):
    results = evaluate(data, tmp_path)
    assert results["num_samples"] == PRODUCTS * VIEWS
    assert results["num_products"] == results["num_captions"] == PRODUCTS
    for k in (5, 10):
        assert set(results[f"recall@{k}"]) == {"text_to_image", "image_to_text"}
        for direction, value in results[f"recall@{k}"].items():
            assert value == results["protocols"]["product"][direction][f"recall@{k}"]
    assert results["protocol"] == "product"
    assert set(results["protocols"]) == {"product", "pair"}
    assert results["model"] == {"name": "tiny-test", "weights": "random", "precision": "fp32"}
    assert results["version"] == version()


def test_embeddings_are_open_clips_own(data, tmp_path):
    """Plain open_clip on the same pictures: same vectors, so nothing is cropped at random or left out."""
    evaluate(data, tmp_path, "--save-embeddings=e.npz", f"--checkpoint={data / 'final.pt'}")
    open_clip.add_model_config(str(data / "tiny-test.json"))
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-test", pretrained=str(data / "final.pt"))
    model.eval()
    with np.load("e.npz") as file, torch.inference_mode():
        for number in (0, 31, 59):
            picture = preprocess(Image.open(io.BytesIO(encoded_picture(number))))[None]
            expected = model.encode_image(picture, normalize=True)[0].numpy()
            assert file["image_embeddings"][number] @ expected > 0.9999
        tokens = open_clip.get_tokenizer("tiny-test")(json.loads(file["captions"].tobytes()))
        expected = model.encode_text(tokens, normalize=True).numpy()
        assert np.allclose(file["text_embeddings"], expected, atol=1e-5)


def test_each_distinct_caption_is_encoded_once(data, tmp_path, monkeypatch):
    rows = []
    encode = clip_model.encode_texts
    monkeypatch.setattr(
        clip_model, "encode_texts", lambda model, tokens: rows.append(len(tokens)) or encode(model, tokens)
    )
    evaluate(data, tmp_path)
    assert sum(rows) == PRODUCTS


def test_the_checkpoint_brings_its_own_architecture(data, tmp_path):
    results = evaluate(data, tmp_path, "--use-checkpoint", f"--eval-checkpoint={data / 'final.pt'}")
    assert results["model"]["weights"].endswith("final.pt")
    assert results["model"]["name"] == "tiny-test"
    base = evaluate(data, tmp_path)
    assert base["protocols"]["pair"]["text_to_image"]["mrr"] != results["protocols"]["pair"]["text_to_image"]["mrr"]


def test_a_checkpoint_of_another_architecture_is_refused_by_name(data):
    arguments = [flag for flag in flags(data) if "model-name" not in flag]
    with pytest.raises(ValueError, match="tiny-test.*ViT-B-16"):
        evaluate_clip.main([*arguments, "--model-name=ViT-B-16", f"--checkpoint={data / 'final.pt'}"])


def test_the_last_figure_is_measured_on_the_test_shards_and_has_files_of_its_own(data, tmp_path):
    """So that nobody takes it for a validation result, nor loses one to it."""
    shards, checkpoint = f"--test-dataset-pattern={data / 'valid.{000002..000002}.tar'}", data / "final.pt"
    written = {
        "evaluation_results.json": [],
        "evaluation_results_checkpoint.json": [f"--checkpoint={checkpoint}"],
        "evaluation_results_test.json": ["--test"],
        "evaluation_results_test_checkpoint.json": ["--test", "--use-checkpoint", f"--eval-checkpoint={checkpoint}"],
    }
    before = {}
    for number, (name, more) in enumerate(written.items(), 1):
        evaluate_clip.main(flags(data, shards, "--protocol=product", *more))
        assert len(list(tmp_path.glob("*.json"))) == number
        assert all((tmp_path / other).read_bytes() == content for other, content in before.items())
        before[name] = (tmp_path / name).read_bytes()
        samples = PRODUCTS * VIEWS // (3 if "--test" in more else 1)
        assert json.loads(before[name])["num_samples"] == samples


def test_all_protocols_other_ks_and_fewer_samples(data, tmp_path, capsys):
    results = evaluate(data, tmp_path, "--protocol=all", "--k", "2", "500", "--max-samples=31", "--output=o.json")
    assert results["num_samples"] == 31
    assert set(results["protocols"]) == {"product", "pair", "one_view", "sampled101"}
    assert results["recall@500"] == {"text_to_image": 1, "image_to_text": 1}
    assert {"recall@2", "recall@5", "recall@10"} <= set(results)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("against all 31 images" in line for line in lines)


def test_embeddings_saved_and_evaluated_without_a_model_give_the_same_numbers(data, tmp_path):
    first = evaluate(data, tmp_path, "--protocol=all", "--save-embeddings=e.npz", "--candidates=c.npz")
    evaluate_clip.main(["--from-embeddings=e.npz", "--protocol=all", "--candidates=c.npz", "--output=again.json"])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["protocols"] == first["protocols"]


def test_keywords_categories_and_all_wordings_ask_too(data, tmp_path, capsys):
    """And are asked again of the file of embeddings, with the same numbers; a file without them says so."""
    fields = [{"captions": [f"Produkt {n // 2}", f"Product {n // 2}"], "languages": ["de", "en"]} for n in range(12)]
    samples = [catalogue_sample(n, n // 2, category=["TOPS", "SHOES"][n // 2 % 2], **fields[n]) for n in range(12)]
    more = ("--queries", "short", "category", "--captions=all", "--protocol", "product", "--k", "2")
    asked = {"short_queries", "category_to_product", "all_captions"}
    first = evaluate(data, tmp_path, shard_of(tmp_path, samples), *more, "--save-embeddings=e.npz")
    assert set(first["protocols"]) == {"product", *asked}
    assert first["protocol"] == "product" and first["num_captions"] == 6
    wordings = first["protocols"]["all_captions"]
    assert wordings["text_to_image"]["queries"] == 18 and set(wordings["languages"]) == {"de", "en"}
    assert "18 wordings of 6 products, 6 in de, 6 in en, 6 in no named language" in wordings["protocol"]
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert [line.split()[:2] for line in shown.splitlines() if line.split()[1:2] in (["de"], ["en"])] == [
        ["Recall@10", "de"], ["Recall@10", "en"],
    ]  # fmt: skip
    evaluate_clip.main(["--from-embeddings=e.npz", *more, "--output=again.json", "--baseline=evaluation_results.json"])
    assert json.loads((tmp_path / "again.json").read_text())["protocols"] == first["protocols"]
    shown = capsys.readouterr().out
    assert all(f"{protocol}, text->image" in shown for protocol in asked) and shown.count(" unclear") > 9
    evaluate(data, tmp_path, "--save-embeddings=without.npz")
    with pytest.raises(ValueError, match="without.npz has no texts for short_queries"):
        evaluate_clip.main(["--from-embeddings=without.npz", "--queries=short"])


def test_a_protocol_that_one_of_two_results_lacks_is_named(data, tmp_path, capsys):
    evaluate(data, tmp_path, "--protocol", "product", "pair", "--output=a.json")
    evaluate(data, tmp_path, "--protocol", "product", "one_view", "--output=b.json")
    capsys.readouterr()
    evaluate_clip.main(["--compare", "a.json", "b.json"])
    shown = capsys.readouterr().out
    assert {"left out: one_view: a.json lacks it", "left out: pair: b.json lacks it"} <= {*shown.splitlines()}
    assert "product, text->image" in shown


def test_lists_of_sampled101_are_written_where_one_asks_for_them(data, tmp_path, capsys):
    before = {path.name for path in tmp_path.iterdir()}
    evaluate(data, tmp_path, "--protocol=sampled101")
    assert {path.name for path in tmp_path.iterdir()} - before == {"evaluation_results.json"}
    evaluate(data, tmp_path, "--protocol=sampled101", "--candidates=c.npz")
    assert "the lists of sampled101 are in c.npz" in capsys.readouterr().out and (tmp_path / "c.npz").exists()


def test_candidates_are_written_read_and_checked(data, tmp_path):
    arguments = ("--protocol=sampled101", "--candidates=c.npz", f"--checkpoint={data / 'final.pt'}")
    first = evaluate(data, tmp_path, *arguments)["protocols"]["sampled101"]
    written = (tmp_path / "c.npz").read_bytes()
    second = evaluate(data, tmp_path, *arguments, "--seed=5")["protocols"]["sampled101"]
    assert (tmp_path / "c.npz").read_bytes() == written
    assert first["text_to_image"]["mrr"] == second["text_to_image"]["mrr"]
    with pytest.raises(ValueError, match="candidate lists of other data"):
        evaluate(data, tmp_path, *arguments, "--max-samples=30")


def test_compare_and_baseline(data, tmp_path, capsys):
    evaluate(data, tmp_path, "--save-embeddings=a.npz")
    checkpoint = f"--checkpoint={data / 'final.pt'}"
    evaluate(data, tmp_path, checkpoint, "--save-embeddings=b.npz", "--baseline=evaluation_results.json")
    assert "B - A [95 %]" in capsys.readouterr().out
    evaluate_clip.main(["--compare", "evaluation_results.json", "evaluation_results_checkpoint.json"])
    by_results = capsys.readouterr().out
    evaluate_clip.main(["--compare", "a.npz", "b.npz"])
    by_embeddings = capsys.readouterr().out
    assert by_results.splitlines()[2:] == by_embeddings.splitlines()[2:]
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
        evaluate_clip.main(["--compare", "nowhere.json", "b.npz"])


def test_seeds_are_joined(data, tmp_path, capsys):
    for seed in (1, 2):  # of random weights
        evaluate(data, tmp_path, "--protocol=product", f"--seed={seed}", f"--output={seed}.json")
    capsys.readouterr()
    evaluate_clip.main(["--seeds", "1.json", "2.json"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 seeds: 1.json, 2.json" and max(map(len, lines)) <= 80
    assert sum(line.startswith("  Recall@10 ") for line in lines) == 2
    with pytest.raises(ValueError, match="needs the results of two seeds at least; 1.json is one"):
        evaluate_clip.main(["--seeds", "1.json"])


@pytest.fixture
def no_model(monkeypatch):
    """No model is to be built."""
    monkeypatch.setattr(building, "create_model", lambda *_: pytest.fail("a model was built"))
    monkeypatch.setattr(building, "load_model", lambda *_, **__: pytest.fail("a model was built"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--baseline=of_two_shards.json"], "are results of different data"),
        (["--baseline=of_all.json", "--max-samples=9"], "are results of different data"),
        (["--baseline=of_all.json", "--test", "--test-dataset-pattern={two}"], "are results of different data"),
        (["--baseline=of_all.json", "--protocol=one_view"], "have no protocol in common"),
        (["--baseline=of_old_rules.json", "--protocol=pair"], "measures pair/v1 .*; measure of_old_rules.json anew"),
        (["--baseline=nowhere.json"], "nowhere.json does not exist"),
        (["--dataset-path=typo.{{000000..000001}}.tar"], "no shard matches 'typo."),
        (["--test", "--test-dataset-pattern=typo.tar"], "no shard matches 'typo.tar'"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_model(data, tmp_path, baselines, no_model, more, words):
    two = data / "valid.{000000..000001}.tar"
    more = [argument.format(two=two) for argument in more]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        evaluate_clip.main(flags(data, *more))
    assert not list(tmp_path.glob("evaluation_results*"))


@pytest.fixture
def baselines(data, tmp_path):
    two = data / "valid.{000000..000001}.tar"
    evaluate(data, tmp_path, "--output=of_all.json", "--save-embeddings=of_all.npz")
    evaluate(data, tmp_path, "--output=of_two_shards.json", f"--dataset-path={two}")
    old = json.loads((tmp_path / "of_all.json").read_text())
    for protocol in old["protocols"].values():
        del protocol["version"]
    (tmp_path / "of_old_rules.json").write_text(json.dumps(old))


@pytest.mark.parametrize("name", ["of_all.json", "of_all.npz", "of_old_rules.json"])
def test_a_baseline_that_fits_is_taken(data, tmp_path, baselines, capsys, name):
    evaluate(data, tmp_path, f"--baseline={name}")
    assert "B - A [95 %]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("json", []),
        ("npz", []),
        ("json", ["--protocol=image_to_image"]),
        ("json", ["--protocol=image_to_image", "--queries=category"]),
    ],
)
def test_a_baseline_fits_though_pictures_are_lost_in_both(data, tmp_path, capsys, kind, more):
    samples = [catalogue_sample(number, number // 2) for number in range(12)]
    samples[5]["000000005.jpg"] = b"no picture"
    write_shard(tmp_path / "lossy.tar", samples)
    shards = f"--dataset-path={tmp_path / 'lossy.tar'}"
    evaluate(data, tmp_path, shards, *more, "--output=before.json", "--save-embeddings=before.npz")
    assert evaluate(data, tmp_path, shards, *more, f"--baseline=before.{kind}")["num_samples"] == 11
    assert "B - A [95 %]" in capsys.readouterr().out


LOADED = """
import sys
sys.path.insert(0, {root!r})
import evaluate_clip
try:
    evaluate_clip.main({arguments!r})
except SystemExit as end:
    assert not end.code
print(sorted(sys.modules.keys() & {{"torch", "torchvision", "open_clip", "webdataset", "jinja2", "numpy"}}))
"""


def test_help_and_comparing_load_no_torch(data, tmp_path):
    """Each in a process of its own: what is imported is there for good."""
    evaluate(data, tmp_path)
    compared = ["--compare", *["evaluation_results.json"] * 2]
    for arguments, loaded in ((["--help"], "[]"), (compared, "['numpy']")):
        code = LOADED.format(root=str(ROOT), arguments=arguments)
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert shown.stdout.splitlines()[-1] == loaded
        assert ("usage:" in shown.stdout) == (arguments == ["--help"])
        assert ("unclear" in shown.stdout) == (arguments != ["--help"])


def test_results_of_embeddings_are_compared_by_their_data(data, tmp_path, capsys):
    evaluate(data, tmp_path, "--save-embeddings=e.npz")
    evaluate_clip.main(["--from-embeddings=e.npz", "--output=o.json", "--baseline=evaluation_results.json"])
    assert "unclear" in capsys.readouterr().out
    (tmp_path / "odd.json").write_text('{"protocols": {"product": {}}, "data": {}}')
    (tmp_path / "list.json").write_text("[]")
    for name in ("odd.json", "list.json"):
        with pytest.raises(ValueError, match=f"{name} is no result file"):
            evaluate_clip.main(["--compare", "o.json", name])


def test_product_is_the_headline_in_whatever_order(data, tmp_path):
    assert evaluate(data, tmp_path, "--protocol", "pair", "product")["protocol"] == "product"


def test_zero_shot_and_report(data, tmp_path):
    (tmp_path / "s").mkdir()
    samples = [catalogue_sample(n, n // 2, category=["TOPS", "SHOES"][n // 2 % 2]) for n in range(12)]
    write_shard(tmp_path / "s" / "a.000000.tar", samples)
    pattern = f"--dataset-path={tmp_path / 's' / 'a.{000000..000000}.tar'}"
    results = evaluate(data, tmp_path, pattern, "--zero-shot", "--report=report.html")
    assert results["zero_shot"]["classes"] == 2
    assert results["zero_shot"]["top5"] == 1
    page = parsed_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.find("img")) > 6 and not page.find(name="gone")
    shown = {image.attributes["alt"]: image.attributes["src"] for image in page.find("img")}
    assert {alt.split(":")[0] for alt in shown} <= {f"{number:09d}" for number in range(12)}
    assert len(set(shown.values())) == len(shown)


def test_prompts_are_a_setting_and_two_classifications_are_compared(data, tmp_path, capsys):
    samples = [catalogue_sample(n, n // 2, category=["TOPS", "SHOES"][n // 2 % 2]) for n in range(12)]
    write_shard(tmp_path / "a.000000.tar", samples)
    (tmp_path / "prompts.txt").write_text("{}\nthe {} of a shop\n")
    pattern = (f"--dataset-path={tmp_path / 'a.000000.tar'}", "--protocol=product", "--zero-shot")
    assert len(evaluate(data, tmp_path, *pattern, "--output=a.json")["zero_shot"]["prompts"]) == 5
    other = evaluate(data, tmp_path, *pattern, "--prompts=prompts.txt", "--output=b.json", "--baseline=a.json")
    assert other["zero_shot"]["prompts"] == ["{}", "the {} of a shop"]
    said = capsys.readouterr().out
    assert "2 classes named by 2 prompts" in said and "asked by other prompts: 5 of A, 2 of B" in said
    assert max(map(len, said.splitlines())) <= 80
    with pytest.raises(SystemExit):
        evaluate(data, tmp_path, "--prompts=prompts.txt")
    assert "--prompts says how --zero-shot asks; add --zero-shot" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_a_report_shows_what_the_baseline_answered(data, tmp_path, kind):
    """A result file knows that of the sample, embeddings of all queries."""
    evaluate(data, tmp_path, "--save-embeddings=e.npz", "--output=e.json")
    flags = ["--from-embeddings=e.npz", f"--baseline=e.{kind}", "--output=o.json", "--report=r.html"]
    evaluate_clip.main([*flags, "--dataset-path=nowhere.{000000..000001}.tar"])
    page = parsed_page((tmp_path / "r.html").read_text(encoding="utf-8"))
    shown = {part.attributes["id"]: part.find("article") for part in page.find("section")}
    assert all(len(card.find("ol")) == 2 for card in shown["sample"]) and shown["sample"]
    assert kind == "json" or all(len(card.find("ol")) == 2 for card in shown["failures"])


def test_a_report_without_its_shards_has_keys_for_pictures(data, tmp_path, capsys):
    evaluate(data, tmp_path, "--save-embeddings=e.npz")
    evaluate_clip.main(
        ["--from-embeddings=e.npz", "--output=o.json", "--report=r.html", "--dataset-path=nowhere.{000000..000001}.tar"]
    )
    page = parsed_page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.find(name="gone") and not page.find("img")
    assert "the report has no pictures: " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ retention


@pytest.fixture
def tuned(data, tmp_path):
    """Flags that evaluate a checkpoint on a little data, with another kind of data beside it; `start.pt` is its start."""
    write_shard(tmp_path / "own.000000.tar", [catalogue_sample(n, n // 2) for n in range(12)])
    write_shard(tmp_path / "general.000000.tar", [catalogue_sample(n + 100, n // 2 + 50) for n in range(60)])
    start = clip.create_model(str(data / "tiny-test.json"), "", None, torch.device("cpu"), seed=3)
    clip.save_checkpoint(tmp_path / "start.pt", start)
    tuned = clip.load_model(tmp_path / "start.pt")
    with torch.no_grad():
        tuned.model.visual.proj.add_(torch.randn(tuned.model.visual.proj.shape, generator=torch.manual_seed(0)))
    trained = {"TRAIN_DATASET_PATTERN": str(tmp_path / "train.{000000..000001}.tar")}
    clip.save_checkpoint(tmp_path / "tuned_checkpoint.pt", tuned, settings=trained)
    return "--checkpoint=tuned_checkpoint.pt", f"--dataset-path={tmp_path / 'own.000000.tar'}", "--protocol=product"


GENERAL = "--retention=general.000000.tar"


def test_what_was_forgotten_is_measured_against_the_weights_that_the_checkpoint_began_with(
    data, tmp_path, tuned, capsys
):
    results = evaluate(data, tmp_path, *tuned, GENERAL)
    retention = results["retention"]
    assert retention["base"] == {"name": "tiny-test", "weights": str(tmp_path / "start.pt")}
    assert (retention["num_samples"], retention["num_products"], results["num_samples"]) == (60, 30, 12)
    assert retention["cite"] != results["cite"] and retention["pattern"] == "general.000000.tar"
    for checkpoint, column in (("start.pt", "before"), ("tuned_checkpoint.pt", "after")):
        alone = evaluate(
            data, tmp_path, f"--checkpoint={checkpoint}", "--dataset-path=general.000000.tar", "--output=alone.json"
        )
        for way, changes in retention["change"].items():
            assert {key: change[column] for key, change in changes.items()} == {
                key: alone["protocols"]["product"][way][key] for key in ("recall@1", "recall@5", "recall@10")
            }
    text = capsys.readouterr().out
    assert "retention: general.000000.tar: 60 images, 30 products; before:" in text
    assert "product, text->image        before   after             change [95 %]" in text


def test_a_start_that_is_gone_is_said_and_a_baseline_takes_its_place(data, tmp_path, tuned, capsys):
    evaluate(data, tmp_path, "--checkpoint=start.pt", *tuned[1:], GENERAL, "--output=before.json")
    said = " ".join(capsys.readouterr().out.split())
    assert "random weights, which had nothing to forget; give results of the model before on these shards" in said
    (tmp_path / "start.pt").unlink()
    lost = evaluate(data, tmp_path, *tuned, GENERAL, "--output=lost.json")["retention"]
    assert lost["change"] == lost["base"] == {} and "are not there:" in lost["sentence"]
    assert "--baseline FILE, which evaluate_clip.py --retention writes" in lost["sentence"]
    found = evaluate(data, tmp_path, *tuned, GENERAL, "--baseline=before.json", "--output=found.json")["retention"]
    assert found["base"] == {"results": "before.json"} and found["protocols"] == lost["protocols"]
    assert (
        found["change"]["text_to_image"]["recall@10"]["after"]
        == lost["protocols"]["product"]["text_to_image"]["recall@10"]
    )
    capsys.readouterr()
    evaluate_clip.main(["--compare", "before.json", "found.json"])
    assert "\nretention, on general.000000.tar\nproduct, text->image " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("own.000000.tar", "own.000000.tar is one of the shards that the model is evaluated on"),
        ("general.000000.tar::./own.*.tar", "own.000000.tar is one of the shards that the model is evaluated on"),
        ("train.000001.tar", "train.000001.tar is one of the shards that the model is trained on"),
        ("copy.tar", "all 12 samples are also in the shards that the model is evaluated on"),
        ("typo.tar", "no shard matches 'typo.tar'"),
    ],
)
def test_what_cannot_tell_what_was_forgotten_is_refused(data, tmp_path, tuned, no_model, pattern, words):
    for copy in ("copy.tar", "train.000001.tar"):
        (tmp_path / copy).write_bytes((tmp_path / "own.000000.tar").read_bytes())
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        evaluate(data, tmp_path, *tuned, f"--retention={pattern}")


# ------------------------------------------------------------------------------------------------ bad input


def shard_of(folder, samples, name="a"):
    write_shard(folder / f"{name}.000000.tar", samples)
    return f"--dataset-path={folder / f'{name}.{{000000..000000}}.tar'}"


def test_a_corrupt_picture_is_counted_and_named(data, tmp_path, capsys, caplog):
    samples = [catalogue_sample(n, n // 2) for n in range(8)]
    samples[3]["000000003.jpg"] = samples[3]["000000003.jpg"][:200]
    results = evaluate(data, tmp_path, shard_of(tmp_path, samples))
    assert results["num_samples"] == 7
    assert sum(results["data"]["skipped"].values()) == 1
    assert "left out: 1 " in capsys.readouterr().out
    assert "000000003" in caplog.text


def test_shards_without_product_ids_group_equal_captions(data, tmp_path):
    samples = []
    for number in range(8):
        files = catalogue_sample(number, number // 2)
        del files[f"{number:09d}.json"]
        samples.append(files)
    results = evaluate(data, tmp_path, shard_of(tmp_path, samples))
    assert (results["num_samples"], results["num_products"]) == (8, 4)


def test_one_sample_is_found_by_itself(data, tmp_path):
    results = evaluate(data, tmp_path, shard_of(tmp_path, [catalogue_sample(0, 0)]), "--protocol=all")
    assert results["recall@5"] == {"text_to_image": 1, "image_to_text": 1}


def test_nothing_usable_is_an_error(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(data, tmp_path, "--dataset-path=nowhere.{000000..000003}.tar")
    sample = catalogue_sample(0, 0)
    sample["000000000.jpg"] = b"no picture"
    with pytest.raises(ValueError, match="not an image"):
        evaluate(data, tmp_path, shard_of(tmp_path, [sample]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "0"], "--k 0"),
        (["--max-samples", "0"], "--max-samples 0"),
        (["--protocol", "best"], "best"),
        (["--test", "--dataset-path=a.tar"], "--test and --dataset-path"),
        (["--zero-shot", "--from-embeddings=e.npz"], "--zero-shot needs a model"),
        (["--protocol", "pair", "--report=r.html"], "--report shows the product protocol"),
    ],
)
def test_wrong_flags_end_in_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate_clip.main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ several processes


def test_processes_that_see_different_shards_are_refused(data, tmp_path, monkeypatch):
    """Each takes its share of what it sees: some samples would be measured twice, others never."""
    gather = distributed.gather_objects
    monkeypatch.setattr(
        distributed, "gather_objects", lambda value: [value, value - 1] if isinstance(value, int) else gather(value)
    )
    with pytest.raises(ValueError, match=r"the processes see \[\d+, \d+\] samples"):
        evaluate(data, tmp_path)


def test_two_processes_give_the_numbers_of_one(data, tmp_path):
    """And count each lost sample once: both find what the index lacks, one alone what cannot be decoded."""
    samples = [catalogue_sample(n, n // 3) for n in range(40)]
    samples[2] = {"000000002.jpg": encoded_picture(2)}  # no caption
    samples[39] = {"000000039.txt": b"no picture"}
    samples[5]["000000005.json"] = b"{damaged"  # used, its caption for a product
    samples[0]["000000000.jpg"] = samples[38]["000000038.jpg"] = b"no picture at all"
    more = (shard_of(tmp_path, samples), "--protocol=all", "--batch-size=8", "--queries=short", "--captions=all")
    alone = evaluate(data, tmp_path, *more, "--save-embeddings=alone.npz")
    (tmp_path / "two").mkdir()
    arguments = flags(data, *more, "--save-embeddings=two.npz")
    done = run_ranks(evaluate_clip.__file__, *arguments, cwd=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "two" / "evaluation_results.json").read_text())
    assert together["protocols"] == alone["protocols"]
    assert together["data"]["skipped"] == alone["data"]["skipped"]
    assert sum(alone["data"]["skipped"].values()) == 4 and alone["num_samples"] == 36
    assert together["data"]["guessed"] == alone["data"]["guessed"]
    assert [*alone["data"]["guessed"].values()] == [1]
    with np.load(tmp_path / "alone.npz") as one, np.load(tmp_path / "two" / "two.npz") as two:
        assert (one["image_key"] == two["image_key"]).all()
        assert np.allclose(one["image_embeddings"], two["image_embeddings"], atol=1e-5)


# ------------------------------------------------------------------------------------ ids that pandas wrote


def test_samples_whose_id_is_nan_are_no_product(data, tmp_path, capsys):
    samples = []
    for number in range(12):
        files = catalogue_sample(number, number, product_id=float("nan"))
        assert b'"product_id": NaN' in files[f"{number:09d}.json"]
        samples.append(files)
    results = evaluate(data, tmp_path, shard_of(tmp_path, samples))
    assert results["num_products"] == 12
    assert "12 samples name no product: those with equal captions are one product" in capsys.readouterr().out


def test_a_product_that_holds_most_samples_is_a_warning(data, tmp_path, capsys):
    samples = [catalogue_sample(n, 0 if n < 9 else n) for n in range(12)]
    results = evaluate(data, tmp_path, shard_of(tmp_path, samples))
    assert "one product ('P0') holds 9 of 12 samples" in results["warnings"][0]
    assert "warning: one product ('P0') holds 9 of 12 samples" in capsys.readouterr().out
    assert evaluate(data, tmp_path)["warnings"] == []


# ------------------------------------------------------------------------------------------ half precision


def caption_of_product(number):
    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=16)([f"Caption of product {number}"])
    return lambda rows: (rows == tokens).all(1)


def test_weights_that_overflow_in_fp16_are_measured_in_fp32(data, tmp_path, capsys, caplog):
    """A real overflow: the projections end above 65,504."""
    model = clip.create_model(str(data / "tiny-test.json"), "", None, torch.device("cpu"), seed=7)
    with torch.no_grad():
        model.model.visual.proj *= 1e6
        model.model.text_projection *= 1e6
    clip.save_checkpoint(tmp_path / "large.pt", model)
    checkpoint = f"--checkpoint={tmp_path / 'large.pt'}"
    exact = evaluate(data, tmp_path, checkpoint)
    half = evaluate(data, tmp_path, checkpoint, "--precision=fp16")
    assert half["data"]["again_in_fp32"] == {"images": PRODUCTS * VIEWS, "captions": PRODUCTS}
    assert half["data"]["skipped"] == {} and half["protocols"] == exact["protocols"]
    assert exact["data"]["again_in_fp32"] == {"images": 0, "captions": 0}
    assert f"embedded again in fp32: {PRODUCTS * VIEWS} images, {PRODUCTS} captions" in capsys.readouterr().out
    assert "7 pictures overflowed in fp16" in caplog.text and "000000000, 000000001" in caplog.text


def test_what_is_not_finite_even_in_fp32_is_left_out_by_name(data, tmp_path, monkeypatch, capsys, caplog):
    overflowing(monkeypatch, "encode_images", lambda rows: torch.arange(len(rows)) == 0, only_in_half=False)
    overflowing(monkeypatch, "encode_texts", caption_of_product(2), only_in_half=False)
    results = evaluate(data, tmp_path, "--precision=bf16", "--batch-size=30")
    pictures, captions = "picture without a finite embedding", "caption without a finite embedding"
    assert results["data"]["skipped"] == {pictures: 2, captions: VIEWS}
    assert results["num_samples"] == PRODUCTS * VIEWS - 2 - VIEWS
    assert results["num_products"] == PRODUCTS - 1
    assert "left out: 2 picture without" in capsys.readouterr().out
    assert "000000000" in caplog.text and "000000030" in caplog.text and "000000006" in caplog.text


def test_a_model_without_any_finite_embedding_is_an_error_of_the_script(data, tmp_path, monkeypatch):
    overflowing(monkeypatch, "encode_images", lambda rows: slice(None), only_in_half=False)
    with pytest.raises(ValueError, match="no sample could be embedded.*60"):
        evaluate(data, tmp_path)


def test_a_folder_of_embeddings_is_evaluated_on_the_device_that_is_named(tmp_path, monkeypatch, capsys):
    """And compared, as the file is."""
    monkeypatch.chdir(tmp_path)
    embeddings = embedded_catalogue(products=30, views=2, noise=1.0)
    for name in ("e/", "e.npz"):
        embeddings_file.save(name, embeddings)
    used, pick = [], device.pick_device
    monkeypatch.setattr(device, "pick_device", lambda name, rank=0: (used.append(name), pick(name, rank))[1])
    for name in ("e/", "e.npz"):
        evaluate_clip.main([f"--from-embeddings={name}", "--protocol=all", "--device=cpu", f"--output={name[:2]}json"])
    folder, file = (json.loads(Path(name).read_text()) for name in ("e/json", "e.json"))
    assert folder["protocols"] == file["protocols"] and used == ["cpu", "cpu"]
    evaluate_clip.main(["--compare", "e", "e.npz"])
    assert "+0.0000" in capsys.readouterr().out
