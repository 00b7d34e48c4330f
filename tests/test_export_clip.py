"""From a checkpoint to a folder that its user loads, as a command."""

import contextlib
import errno
import io
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import export_clip
import openClipManagement as clip
from clip_finetuning.export import open_clip_form, pictures
from tests.helpers import ROOT, TINY, contents, encoded_picture, write_config

FORMS = ("open_clip", "transformers", "onnx", "sentence-transformers")
CAPTIONS = ["Caption of product 1", "red “leather” ankle boots &amp; laces", "A  B\tC " * 30]


@pytest.fixture(scope="module")
def shop(tmp_path_factory, make_shards):
    """(folder of config, checkpoint and shards, ClipModel)."""
    folder = tmp_path_factory.mktemp("shop")
    model = clip.create_model(write_config(folder), seed=3)
    with torch.no_grad():  # of random weights all embeddings are alike
        for parameter in model.model.parameters():
            parameter.mul_(1.5)
    clip.save_checkpoint(folder / "final.pt", model, step=7, settings={"BATCH_SIZE": 8, "MODEL_NAME": "tiny-test"})
    make_shards(folder / "shards" / "valid", products=3, views=2, shards=1)
    model.model.eval()
    return folder, model


@pytest.fixture(scope="module")
def exported(shop, tmp_path_factory):
    """exported(form) -> (its folder, what was printed); each is made once."""
    made = {}

    def export(form):
        if form not in made:
            printed, output = io.StringIO(), tmp_path_factory.mktemp("made") / f"made-{form}"
            with contextlib.redirect_stdout(printed):
                run(shop[0], "--form", form, "--output", str(output))
            made[form] = output, printed.getvalue()
        return made[form]

    return export


def run(folder, *arguments):
    pattern = str(folder / "shards" / "valid.*.tar")
    export_clip.main(
        ["--checkpoint", str(folder / "final.pt"), "--pictures", pattern, "--max-samples", "4", *arguments]
    )


def refused(folder, *arguments):
    """The one line that a command ends in; nothing is left of its output."""
    output = arguments[arguments.index("--output") + 1]
    before = sorted(os.listdir(os.path.dirname(output)))
    with pytest.raises((ValueError, OSError)) as caught:
        run(folder, *arguments)
    assert sorted(os.listdir(os.path.dirname(output))) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def embedded(model, data, captions):
    transform = clip.image_transform(model, train=False)
    with torch.inference_mode():
        images = clip.encode_images(model, torch.stack([transform(data)]))
        return images.numpy(), clip.encode_texts(model, model.tokenizer(captions)).numpy()


def transparent_photo(folder):
    """A picture of two kinds at once: a cut-out that lies on its side."""
    cut = Image.open(io.BytesIO(pictures.variants(encoded_picture(5), 0)["transparent"]))
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    cut.save(folder / "photo.png", exif=exif)
    return (folder / "photo.png").read_bytes()


def normalized(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def in_readme(folder):
    """The Python of README.md."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize("form", FORMS)
def test_the_lines_of_its_readme_give_the_embeddings_of_the_model(form, shop, exported, tmp_path, monkeypatch):
    _, model = shop
    output, printed = exported(form)
    assert max(map(float, re.findall(r"([\d.e-]+) of equal (?:pixels|texts)", printed))) < 1e-4
    data = transparent_photo(tmp_path)
    code = in_readme(output).replace("photo.jpg", str(tmp_path / "photo.png"))
    assert len(code.strip().splitlines()) <= 10
    names = {}
    monkeypatch.chdir(output.parent)
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(code.replace('"red leather ankle boots"', repr(CAPTIONS[1])), names)
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    if form == "transformers":
        names |= {"images": names["result"].image_embeds, "texts": names["result"].text_embeds}
    image, text = embedded(model, data, CAPTIONS[1:2])
    assert np.abs(normalized(names["texts"]) - text).max() < 1e-4
    assert (normalized(names["images"]) * image).sum() > 0.999


def test_open_clip_alone_sees_transparency_on_black_and_the_table_says_so(exported):
    output, printed = exported("open_clip")
    page = (output / "README.md").read_text()
    for text in (printed, page):
        rows = {row.split("|")[1].strip(): row.split("|")[2:] for row in text.splitlines() if row.startswith("| ")}
        assert float(rows["transparent"][1]) < 0.99 and float(rows["the catalogue's"][1]) == 1
        assert rows["EXIF-turned"][0].strip() == "4"
        assert "Every kind is made of the catalogue's 4; of such kinds by themselves: none." in text
    assert re.search("needed for pictures that are transparent, .*EXIF-turned", printed)
    assert "not in README.md: a license" in printed and str(output.parent) not in page
    assert page.index("from preprocess import prepare") < page.index("## Where it comes from")


def test_half_precision_is_half_the_size_and_stays_near(shop, exported, tmp_path, capsys):
    run(shop[0], "--form", "open_clip", "--output", str(tmp_path / "half"), "--dtype", "fp16")
    sizes = [
        (path / "open_clip_model.safetensors").stat().st_size for path in (tmp_path / "half", exported("open_clip")[0])
    ]
    assert 0.49 < sizes[0] / sizes[1] < 0.52
    difference = re.search(r"embeddings: ([\d.e-]+) of equal pixels", capsys.readouterr().out)[1]
    assert 1e-6 < float(difference) < 5e-3


def test_onnx_with_normalisation_inside_any_batch_and_eight_bits(shop, tmp_path, capsys):
    import onnxruntime

    folder, model = shop
    run(folder, "--form", "onnx", "--output", str(tmp_path / "out"), "--normalize", "--int8")
    assert re.search(
        r"in eight bits: Recall@10 [\d.]+, it was [\d.]+ \([+-][\d.]+\); lowest cosine 0\.9", capsys.readouterr().out
    )
    tokens = model.tokenizer([CAPTIONS[0]] * 64).numpy()
    for suffix, allowed in (("", 1e-4), ("_int8", 0.2)):
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / f"text{suffix}.onnx"))
        for count in (1, 3, 64):
            (rows,) = session.run(None, {"tokens": tokens[:count]})
            assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-4)
            assert np.abs(rows - embedded(model, encoded_picture(1), CAPTIONS[:1])[1]).max() < allowed
    small, large = ((tmp_path / "out" / f"text{suffix}.onnx").stat().st_size for suffix in ("_int8", ""))
    assert small < 0.4 * large


def test_a_base_model_without_checkpoint(shop, tmp_path, capsys):
    folder, _ = shop
    config = write_config(tmp_path, vision_cfg={**TINY["vision_cfg"], "image_size": 48})
    flags = ["--model-name", config, "--model-pretrained", "", "--image-mean", "0.1,0.2,0.3"]
    flags += ["--image-resize-mode", "longest", "--max-samples", "2"]
    flags += [
        "--pictures",
        str(folder / "shards" / "valid.*.tar"),
        "--form",
        "open_clip",
        "--output",
        str(tmp_path / "out"),
    ]
    export_clip.main(flags)
    loaded = open_clip_form.load(tmp_path / "out")
    assert list(loaded.preprocess.transforms[-1].mean) == [0.1, 0.2, 0.3]
    assert "Base: tiny-test, from random weights." in (tmp_path / "out" / "README.md").read_text()


def test_a_logit_bias_that_the_architecture_does_not_name_goes_along(shop, tmp_path, capsys):
    folder, _ = shop
    model = clip.create_model(write_config(tmp_path), seed=4)
    clip.add_logit_bias(model)
    clip.save_checkpoint(tmp_path / "sigmoid.pt", model)
    run(folder, "--form", "open_clip", "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "sigmoid.pt"))
    assert open_clip_form.load(tmp_path / "out").model.logit_bias.item() == -10


@pytest.mark.parametrize("form", ["open_clip", "transformers", "onnx"])
def test_the_lines_of_docs_use_md_see_what_the_model_saw(form, shop, exported, tmp_path, monkeypatch, capsys):
    _, model = shop
    (tmp_path / "photos").mkdir()
    shapes = [pictures.variants(encoded_picture(number), number) for number in range(3)]
    data = [shapes[0]["transparent"], shapes[1]["EXIF-turned"], shapes[2]["CMYK"]]
    for number, picture in enumerate(data):
        (tmp_path / "photos" / f"{number}.img").write_bytes(picture)
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    blocks = {
        re.search(r'FOLDER = "(.*)"', code)[1]: code
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "FOLDER" in code
    }
    (tmp_path / f"shop-{form}").symlink_to(exported(form)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {}
    exec(blocks[f"shop-{form}"], names)
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    assert len(blocks[f"shop-{form}"].strip().splitlines()) <= 24
    for number, picture in enumerate(data):
        image, text = embedded(model, picture, ["red leather ankle boots"])
        assert (normalized(names["images"])[number] * image[0]).sum() > 0.999
    assert np.abs(np.asarray(names["texts"]) - text).max() < 1e-4
    assert (
        len(re.findall(r"^-?0?\.\d+ photos/\d\.img$|^-?\d\.\d+ photos/\d\.img$", capsys.readouterr().out, re.MULTILINE))
        == 3
    )


# ------------------------------------------------------------------------------------------------------------ the card


def result_of(weights, name="tiny-test", fingerprint="abc", recall=0.5):
    numbers = {"recall@5": recall, "recall@10": recall, "intervals": {"recall@10": [recall - 0.1, recall + 0.1]}}
    numbers["by_product"] = {
        "product": ["P1"],
        "category": ["TOPS"],
        "queries": [2],
        "recall@5": [1.0],
        "recall@10": [1.0],
    }
    directions = {"text_to_image": numbers, "image_to_text": numbers}
    return {
        "num_samples": 6,
        "protocol": "product",
        "protocols": {"product": {"protocol": "each | of <b>", **directions}},
        "model": {"name": name, "weights": weights},
        "data": {"fingerprint": fingerprint, "pattern": "/secret/place/valid.{000000..000006}.tar"},
    }


def test_the_model_card_has_the_numbers_of_this_model_and_of_its_base(shop, tmp_path, monkeypatch, capsys):
    folder, _ = shop
    monkeypatch.chdir(tmp_path)
    files = {
        "evaluation_results_checkpoint.json": result_of(str(folder / "final.pt"), recall=0.75),
        "evaluation_results.json": result_of("random", recall=0.25),
        "evaluation_results_test.json": result_of("random", fingerprint="other samples", recall=0.125),
        "evaluation_results_old.json": result_of("another.pt"),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    run(folder, "--form", "open_clip", "--output", str(tmp_path / "out"), "--license", "mit")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    found = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert found["Recall@10, text->image"] == 0.75 and card.data.license == "mit"
    assert card.data.eval_results[0].dataset_name == "valid.{000000..000006}.tar"
    for entry in card.data.eval_results:  # each under its own direction
        assert entry.task_name.split()[0] == entry.metric_name.split(", ")[1] and entry.dataset_revision == "abc"
        assert entry.metric_args == ({"interval_95": [0.65, 0.85]} if entry.metric_type == "recall@10" else None)
    assert re.search(r"\| Recall@10, text->image +\| 0\.250 +\| 0\.750 +\| 0\.650 to 0\.850 +\|", card.text)
    assert (
        "0.125" not in card.text and "secret" not in card.text and "<b>" not in card.text and "each \\| of" in card.text
    )
    assert "`BATCH_SIZE` 8" in card.text and "`steps trained` 7" in card.text
    assert "evaluation_results_old.json: it measures another.pt" in capsys.readouterr().out


@pytest.mark.parametrize("is_known", [True, False])
def test_the_model_card_says_what_the_model_still_knows_of_other_data(shop, tmp_path, monkeypatch, is_known):
    folder, _ = shop
    monkeypatch.chdir(tmp_path)
    retention = result_of("", fingerprint="other", recall=0.625)
    retention["data"]["pattern"] = retention["pattern"] = "/secret/general.tar"
    if is_known:
        change = {"before": 0.875, "after": 0.625, "gain": -0.25, "interval": [-0.5, -0.125], "verdict": "worse"}
        retention["change"] = {"text_to_image": {"recall@10": change}}
        retention["base"] = {"name": "ViT-B-32", "weights": "/secret/start.pt"}
    results = result_of(str(folder / "final.pt"), recall=0.75) | {"retention": retention}
    (tmp_path / "evaluation_results_checkpoint.json").write_text(json.dumps(results))
    run(folder, "--form", "open_clip", "--output", str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "What it still knows of other data, 6 samples of `general.tar`" in card and "secret" not in card
    assert "To cite: protocol: product/v1 strict sha256:abc" in card
    assert ("against the model before (ViT-B-32, start.pt)" in card) == is_known
    assert bool(re.search(r"\| 0\.875 +\| 0\.625 +\| -0\.250 \(-0\.500 to -0\.125\) \| worse \|", card)) == is_known
    assert ("What it forgot is not known" in card) == (not is_known)
    assert bool(re.search(r"\| Recall@10, text->image +\| 0\.625 +\| 0\.525 to 0\.725", card)) == (not is_known)


def test_results_older_than_the_checkpoint_are_another_models(shop, tmp_path, monkeypatch, capsys):
    folder, _ = shop
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evaluation_results_checkpoint.json"
    path.write_text(json.dumps(result_of(str(folder / "final.pt"))))
    os.utime(path, (1, 1))
    run(folder, "--form", "open_clip", "--output", str(tmp_path / "out"))
    assert "It was not measured" in (tmp_path / "out" / "README.md").read_text()
    assert "it is older than" in capsys.readouterr().out
    (tmp_path / "wrong.json").write_text(json.dumps(result_of("another.pt")))
    assert "wrong.json measures another.pt" in refused(
        folder, "--form", "open_clip", "--output", str(tmp_path / "new"), "--results", str(tmp_path / "wrong.json")
    )


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_failed_check_leaves_nothing_behind(shop, tmp_path, monkeypatch):
    folder, _ = shop

    def spoiled(options, weights):
        return {
            name: weight * 1.001 if name == "visual.proj" else weight.clone() for name, weight in weights.items()
        } | {"ln_final.weight": weights["ln_final.weight"] + torch.linspace(0, 0.1, 32)}

    monkeypatch.setattr(open_clip_form, "half_if", spoiled)
    message = refused(folder, "--form", "open_clip", "--output", str(tmp_path / "out"))
    assert re.fullmatch(
        "the check failed: equal texts give embeddings that differ by up to .*, more than 0.0001; nothing is written",
        message,
    )


def test_a_preprocess_file_that_is_wrong_fails_the_check(shop, tmp_path, monkeypatch):
    from clip_finetuning.export import preprocess_file

    monkeypatch.setattr(preprocess_file, "HEAD", preprocess_file.HEAD.replace('"white"', '"black"'))
    message = refused(shop[0], "--form", "open_clip", "--output", str(tmp_path / "out"))
    assert "preprocess.py keeps a cosine of only" in message and "transparent" in message


def test_what_is_there_already_is_left_as_it_is(shop, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    message = refused(shop[0], "--form", "open_clip", "--output", str(tmp_path / "out"))
    assert "out exists already" in message
    assert contents(tmp_path) == {"out/precious.txt": b"mine"}


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
@pytest.mark.parametrize("form", ["open_clip", "transformers", "onnx"])
def test_a_disk_that_is_full(form, shop, tmp_path):
    """A limit on the size of files: the libraries meet a real error while they write."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        message = refused(shop[0], "--form", form, "--output", str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large: nothing is left of" in message and "make room" in message


def test_a_disk_that_is_full_as_safetensors_says_it(shop, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(open_clip_form, "save_file", full)
    with pytest.raises(OSError) as caught:
        run(shop[0], "--form", "open_clip", "--output", str(tmp_path / "out"))
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "package"),
    [("transformers", "transformers"), ("onnx", "onnxruntime"), ("sentence-transformers", "sentence_transformers")],
)
def test_a_missing_package_is_named_with_its_extra(form, package, shop, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(shop[0], "--form", form, "--output", str(tmp_path / "out"))
    assert f"needs the package {package}" in message and f'pip install -e ".[{form}]"' in message


def test_no_pictures(shop, tmp_path):
    output = ["--form", "open_clip", "--output", str(tmp_path / "out")]
    assert "no shard" in refused(shop[0], *output, "--pictures", str(tmp_path / "none.*.tar")).lower()


def test_a_checkpoint_that_does_not_say_what_it_is(shop, tmp_path):
    folder, model = shop
    torch.save(model.model.state_dict(), tmp_path / "bare.pt")
    arguments = ["--form", "open_clip", "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "bare.pt")]
    assert "set MODEL_NAME" in refused(folder, *arguments)
    run(folder, *arguments, "--model-name", str(folder / "tiny-test.json"))
    assert "does not say which weights it began with" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("form", ["transformers", "sentence-transformers"])
def test_an_architecture_that_the_target_lacks(form, shop, tmp_path):
    config = write_config(tmp_path, vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8})
    clip.save_checkpoint(tmp_path / "model.pt", clip.create_model(config))
    message = refused(
        shop[0], "--checkpoint", str(tmp_path / "model.pt"), "--form", form, "--output", str(tmp_path / "out")
    )
    assert "CLIPModel has no such architecture as tiny-test: its image tower is a ModifiedResNet" in message


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--form", "open_clip", "--int8"], "--int8 is of --form onnx"),
        (["--form", "open_clip", "--normalize"], "--normalize is of --form onnx"),
        (["--form", "open_clip", "--max-samples", "0"], "whole number >= 1"),
        (["--form", "tflite"], "invalid choice"),
        (["--form", "onnx", "--license", "a\nb: c"], "do not print"),
    ],
)
def test_flags_that_mean_nothing(arguments, rule, capsys):
    with pytest.raises(SystemExit) as end:
        export_clip.main([*arguments, "--output", "out"])
    assert end.value.code == 2 and rule in capsys.readouterr().err
