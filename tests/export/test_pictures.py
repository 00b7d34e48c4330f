"""The pictures that an export is proved on."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.export import pictures
from clip_finetuning.loading.sample import NO_NAMED_CAPTION, NO_NAMED_PRODUCT, Fields
from clip_finetuning.pictures.decode import load_picture
from tests.helpers import catalogue_sample, encoded_picture, write_shard


def test_each_variant_is_of_its_kind_and_shows_the_same():
    data = encoded_picture(3)
    original = np.asarray(load_picture(data), dtype=int)
    for number in range(7):
        shapes = pictures.variants(data, number)
        assert shapes.pop(pictures.CATALOGUE) == data and set(shapes) == set(pictures.MAKERS)
        kinds = {kind: pictures.kind_of(encoded) for kind, encoded in shapes.items()}
        assert kinds.pop("transparent palette") == "transparent" and kinds.pop("long and narrow") == "plain"
        assert all(kind == found for kind, found in kinds.items())
        seen = {kind: np.asarray(load_picture(encoded), dtype=int) for kind, encoded in shapes.items()}
        for kind, allowed in {"EXIF-turned": 0, "animated": 0, "CMYK": 12}.items():
            assert np.abs(seen[kind] - original).mean() <= allowed
        assert seen["transparent"][0, 0].tolist() == [255, 255, 255]
        middle = tuple(side // 2 for side in original.shape[:2])
        assert (seen["transparent"][middle] == original[middle]).all()
        assert np.abs(seen["16-bit grey"] - seen["grey"]).max() <= 4
        assert sorted(seen["long and narrow"].shape)[-1] > 2 * max(original.shape[:2])


def test_each_orientation_is_used():
    data = encoded_picture(3)
    tags = [
        Image.open(io.BytesIO(pictures.variants(data, n)["EXIF-turned"])).getexif()[pictures.ORIENTATION]
        for n in range(7)
    ]
    assert sorted(tags) == [2, 3, 4, 5, 6, 7, 8]


def test_samples_are_spread_over_the_shards_and_what_is_broken_is_counted(tmp_path):
    samples = [catalogue_sample(number, number) for number in range(20)]
    samples[5]["000000005.jpg"] = b"no picture"
    del samples[10]["000000010.txt"]
    samples[10]["000000010.json"] = json.dumps({}).encode()
    write_shard(tmp_path / "valid.000000.tar", samples[:10])
    write_shard(tmp_path / "valid.000001.tar", samples[10:])
    found = pictures.read(str(tmp_path / "valid.*.tar"), 4)
    assert [sample.key for sample in found.samples] == ["000000000", "000000004", "000000009", "000000015"]
    assert found.skipped == {"no caption in the shard": 1} and found.total == 20
    every = pictures.read(str(tmp_path / "valid.*.tar"), 100)
    assert len(every.samples) == 18 and every.skipped == {"not an image": 1, "no caption in the shard": 1}
    (tmp_path / "copy.000000.tar").write_bytes((tmp_path / "valid.000000.tar").read_bytes())
    streamed = pictures.read(f"pipe:cat {tmp_path}/copy.000000.tar", 7)
    assert [len(streamed.samples), streamed.skipped, streamed.total] == [7, {"not an image": 1}, 0]


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_fields_that_are_named(prefix, tmp_path):
    records = [{"title": "a boot", "sku": 7}, {"title": "a hat"}, {"sku": 8}]
    names = [(f"{n}.jpg", f"{n}.txt", f"{n}.json") for n in range(3)]
    contents = [(encoded_picture(n), b"no", json.dumps(record).encode()) for n, record in enumerate(records)]
    write_shard(tmp_path / "valid.000000.tar", [dict(zip(*pair)) for pair in zip(names, contents)])
    pattern = f"{prefix}{tmp_path}/valid.000000.tar"
    found = pictures.read(pattern, 5, Fields("title", "sku"))
    assert [(s.captions, s.product_id) for s in found.samples] == [(["a boot"], "7"), (["a hat"], "a hat")]
    assert found.skipped == {NO_NAMED_CAPTION: 1} and found.guessed == {NO_NAMED_PRODUCT: 1}
    with pytest.raises(ValueError, match="^PRODUCT_KEY=skus: .*; did you mean sku"):
        pictures.read(pattern, 5, Fields("title", "skus"))


def test_shards_without_a_picture(tmp_path):
    write_shard(tmp_path / "valid.000000.tar", [{"a.txt": b"a caption alone"}])
    with pytest.raises(ValueError, match="no picture to check the export on: .*no image in the shard"):
        pictures.read(str(tmp_path / "valid.000000.tar"), 4)
