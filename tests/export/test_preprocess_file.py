"""preprocess.py sees pictures as the model did."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.export import pictures, preprocess_file
from clip_finetuning.export.check import read_preprocess
from clip_finetuning.model.preprocessing import ImageTransform, normalize
from clip_finetuning.pictures.decode import to_rgb
from tests.helpers import encoded_picture

CONFIG = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "fill_color": 7}


def written(tmp_path, size, mode="shortest", interpolation="bicubic", cleaner=None, tensors=False):
    config = CONFIG | {"size": size, "resize_mode": mode, "interpolation": interpolation}
    (tmp_path / "preprocess.py").write_text(preprocess_file.render(config, cleaner, tensors, 8))
    return read_preprocess(tmp_path / "preprocess.py"), ImageTransform(**config, train=False)


@pytest.mark.parametrize(
    ("mode", "size", "interpolation"),
    list(itertools.product(["shortest", "longest", "squash"], [32, [24, 40]], ["bicubic", "bilinear"])),
)
def test_every_way_to_resize_and_every_kind_of_picture(mode, size, interpolation, tmp_path):
    module, transform = written(tmp_path, size, mode, interpolation)
    for picture_size in ((45, 61), (61, 45), (20, 20), (200, 33)):
        for kind, data in pictures.variants(encoded_picture(1, picture_size), 3).items():
            found, wanted = (
                np.asarray(module.prepare(io.BytesIO(data)), dtype=int),
                transform(data).permute(1, 2, 0).numpy(),
            )
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() <= 3, (kind, picture_size)


ALONE = """
import sys
class Others:  # no package but those that the file names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {"PIL", "numpy", "preprocess", *sys.stdlib_module_names}:
            raise ImportError(f"{name} is not what the file says that it needs")
sys.meta_path.insert(0, Others())
sys.path.insert(0, sys.argv[1])
from preprocess import prepare
import pathlib, numpy
found = {path.name: numpy.asarray(prepare(path)) for path in pathlib.Path(sys.argv[1]).glob("*.img")}
numpy.savez(sys.argv[2], **found)
"""


def odd_pictures():
    """{name: encoded picture} of what shops have beside the kinds of `variants`."""

    def encoded(picture, file_format, **options):
        buffer = io.BytesIO()
        picture.save(buffer, file_format, **options)
        return buffer.getvalue()

    plain = Image.open(io.BytesIO(encoded_picture(4, (61, 45)))).convert("RGB")
    cut, grey = plain.copy(), plain.convert("L")
    cut.putalpha(Image.linear_gradient("L").resize(plain.size))
    found = {
        f"{width} x {height}": encoded(plain.resize((width, height)), "PNG")
        for width, height in ((1, 1), (1, 3000), (2000, 3))
    }
    for orientation in range(10):
        exif = Image.Exif()
        exif[pictures.ORIENTATION] = orientation
        found[f"EXIF {orientation}"] = encoded(plain, "JPEG", exif=exif.tobytes())
    return found | {
        "damaged EXIF": found["EXIF 6"].replace(b"Exif\0\0MM", b"Exif\0\0XX"),
        "palette with alpha": encoded(cut.quantize(64), "PNG"),
        "palette, some colours transparent": encoded(plain.quantize(50), "PNG", transparency=bytes(range(0, 250, 5))),
        "colour key": encoded(plain, "PNG", transparency=plain.getpixel((3, 3))),
        "LA": encoded(cut.convert("LA"), "PNG"),
        "dark 16 bit": encoded(Image.fromarray(np.asarray(grey).astype(np.uint16)), "PNG"),
        "float TIFF": encoded(Image.fromarray(np.asarray(grey).astype(np.float32)), "TIFF"),
        "CMYK TIFF": encoded(plain.convert("CMYK"), "TIFF"),
        "animated GIF": encoded(plain, "GIF", save_all=True, append_images=[Image.new("RGB", plain.size)]),
    }  # fmt: skip


def test_the_file_alone_sees_odd_pictures_as_the_model_did(tmp_path):
    _, transform = written(tmp_path, 32)
    odd = odd_pictures()
    for name, data in odd.items():
        (tmp_path / f"{name}.img").write_bytes(data)
    subprocess.run([sys.executable, "-I", "-c", ALONE, str(tmp_path), str(tmp_path / "out.npz")], check=True)
    with np.load(tmp_path / "out.npz") as found:
        assert len(found.files) == len(odd)
        for name, data in odd.items():
            wanted = transform(data).permute(1, 2, 0).numpy().astype(int)
            assert np.abs(found[f"{name}.img"] - wanted).max() <= 3, name


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "HSV"])
def test_every_mode_of_pillow(mode, tmp_path):
    module, _ = written(tmp_path, 32)
    picture = Image.new(mode, (40, 50))
    prepared = module.prepare(picture)
    assert (prepared.mode, prepared.size) == ("RGB", (32, 32))
    assert prepared.getpixel((0, 0)) == to_rgb(picture).getpixel((0, 0))


def test_the_input_of_the_image_tower(tmp_path):
    module, transform = written(tmp_path, [24, 40], "squash", cleaner="lower", tensors=True)
    data = [encoded_picture(number) for number in range(2)]
    (tmp_path / "photo.jpg").write_bytes(data[1])
    rows = module.pixels([io.BytesIO(data[0]), tmp_path / "photo.jpg"])
    import torch

    wanted = normalize(torch.stack([transform(one) for one in data]), CONFIG["mean"], CONFIG["std"]).numpy()
    assert rows.dtype == np.float32 and np.abs(rows - wanted).max() < 3 / 255 / 0.5


@pytest.mark.parametrize("how", ["lower", "whitespace", "canonicalize"])
def test_captions_are_cleaned_as_open_clip_does(how, tmp_path):
    from open_clip.tokenizer import get_clean_fn

    module, _ = written(tmp_path, 32, cleaner=how)
    for caption in ["  A\tB ", "caf\u00c3\u00a9 &amp;amp; “co.”_x-y!", "ﬁne ｆｕｌｌ", "", "½ ", "<b>&lt;"]:
        assert module.clean(caption) == get_clean_fn(how)(caption)
