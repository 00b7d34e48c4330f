"""Formats that another package reads: HEIC and AVIF where it is there, and its name where it is not."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from clip_finetuning.pictures import formats
from clip_finetuning.pictures.decode import PictureError, load_picture, to_jpeg
from tests.helpers import entry, read_samples, shards_in, write_mapping, write_shards

HEIC = b"\0\0\0\x1cftyp%s\0\0\0\0mif1heicmiaf" + b"\0" * 50
AVIF = b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiafMA1B" + b"\0" * 50


@pytest.fixture
def anew(monkeypatch):
    formats._is_readable.cache_clear()
    yield monkeypatch
    formats._is_readable.cache_clear()


def encoded(file_format, picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def two_halves():
    picture = Image.new("RGB", (64, 32), "blue")
    picture.paste("red", (0, 0, 32, 32))
    return picture


def test_heic_is_read_as_it_is_shown(anew):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded("HEIF", two_halves(), quality=95, exif=turned.tobytes())
    Image.OPEN.pop("HEIF", None)  # reading registers it by itself
    Image.ID.remove("HEIF")
    assert load_picture(encoded("PNG", two_halves(), exif=turned)).size == load_picture(data).size == (32, 64)
    assert np.allclose(load_picture(data).getpixel((16, 8)), (255, 0, 0), atol=12)
    with Image.open(io.BytesIO(to_jpeg(data, 95)[0])) as picture:
        assert (picture.format, picture.size) == ("JPEG", (32, 64))
    with pytest.raises(PictureError, match="truncated or damaged image"):
        load_picture(data[:-100])


def test_avif_is_read(anew):
    if "avif" not in features.modules or not features.check_module("avif"):
        heif = pytest.importorskip("pillow_heif")
        getattr(heif, "register_avif_opener", lambda: pytest.skip("nothing reads AVIF"))()
    picture = load_picture(encoded("AVIF", two_halves(), quality=95))
    assert picture.size == (64, 32) and np.allclose(picture.getpixel((8, 16)), (255, 0, 0), atol=12)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_without_the_package_the_reason_names_it(anew, brand):
    anew.setitem(sys.modules, "pillow_heif", None)
    for _ in range(2):
        with pytest.raises(PictureError) as error:
            load_picture(HEIC % brand)
        assert error.value.reason == 'HEIC picture, which needs the package pillow-heif: pip install -e ".[heif]"'


def test_what_else_is_missing_is_named(anew):
    anew.setitem(sys.modules, "pillow_heif", None)
    anew.setitem(sys.modules, "pillow_jxl", None)
    anew.delitem(features.modules, "avif", raising=False)
    for data, package in ((AVIF, "Pillow 11.3"), (b"\xff\x0a" + b"\0" * 50, "pillow-jxl-plugin")):
        with pytest.raises(PictureError) as error:
            load_picture(data)
        assert package in error.value.reason
    for video in (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", b"\0\0\0\x08ftyp", b"\0\0\0\0ftyp"):
        with pytest.raises(PictureError, match="not an image"):
            load_picture(video)


def test_a_catalogue_of_heic_becomes_shards(tmp_path, capsys, anew):
    pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "a.heic").write_bytes(encoded("HEIF", two_halves()))
    two_halves().save(tmp_path / "b.png")
    mapping = write_mapping(tmp_path / "m.json", [entry(tmp_path / "a.heic", 1), entry(tmp_path / "b.png", 2)])
    write_shards(mapping, tmp_path / "shards")
    assert len(read_samples(*shards_in(tmp_path / "shards"))) == 2
    formats._is_readable.cache_clear()
    anew.setitem(sys.modules, "pillow_heif", None)
    capsys.readouterr()
    write_shards(mapping, tmp_path / "fewer")
    assert len(read_samples(*shards_in(tmp_path / "fewer"))) == 1
    assert "HEIC picture, which needs the package pillow-heif" in capsys.readouterr().out
