"""Any picture a catalogue may hold -> RGB on white, or one of a few fixed reasons."""

import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from clip_finetuning.pictures.decode import PictureError, content_box, load_picture, read_source, to_jpeg
from clip_finetuning.pictures.jpeg_markers import plain_jpeg_size
from tests.helpers import png_header

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture, file_format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(size=(64, 48), seed=0):
    """A picture with smooth colours, so that JPEG keeps them."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def reason_of(data):
    with pytest.raises(PictureError) as caught:
        load_picture(data)
    return caught.value.reason


def test_transparency_is_laid_on_white():
    picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((1, 1), (255, 0, 0, 255))
    picture.putpixel((2, 2), (0, 0, 0, 128))
    result = load_picture(encoded(picture))
    assert (result.mode, result.getpixel((0, 0)), result.getpixel((1, 1))) == ("RGB", WHITE, RED)
    assert result.getpixel((2, 2)) == (127, 127, 127)


def test_a_transparent_palette_entry_becomes_white():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 255, 255, 0, 0])
    picture.putpixel((0, 0), 0)
    result = load_picture(encoded(picture, transparency=0))
    assert (result.mode, result.getpixel((0, 0)), result.getpixel((1, 1))) == ("RGB", WHITE, RED)


def test_a_transparent_colour_becomes_white():
    picture = Image.new("RGB", (4, 4), RED)
    picture.putpixel((0, 0), (0, 255, 0))
    result = load_picture(encoded(picture, transparency=(0, 255, 0)))
    assert (result.getpixel((0, 0)), result.getpixel((1, 1))) == (WHITE, RED)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_rgb(mode):
    result = load_picture(encoded(Image.new("L", (4, 4), 255).convert(mode)))
    assert (result.mode, result.getpixel((0, 0))) == ("RGB", WHITE)


def test_cmyk_keeps_its_colours():
    result = load_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert result.mode == "RGB"
    assert np.allclose(result.getpixel((8, 8)), RED, atol=3)


@pytest.mark.parametrize("value, grey", [(0, 0), (200, 1), (257 * 100, 100), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(value, grey):
    result = load_picture(encoded(Image.fromarray(np.full((4, 4), value, dtype=np.uint16))))
    assert (result.mode, result.getpixel((0, 0))) == ("RGB", (grey, grey, grey))


def test_exif_rotation_is_applied():
    picture = Image.new("RGB", (32, 16), "blue")
    picture.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise
    result = load_picture(encoded(picture, "JPEG", quality=95, exif=exif))
    assert result.size == (16, 32)
    assert np.allclose(result.getpixel((8, 4)), RED, atol=6)


def test_damaged_exif_does_not_cost_the_picture():
    result = load_picture(encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage"))
    assert result.size == (64, 48)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(file_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert load_picture(data).getpixel((8, 8)) == RED


def test_a_bomb_is_refused_by_its_header():
    assert reason_of(png_header(50_000, 50_000)) == "decompression bomb"
    assert reason_of(png_header(12_000, 12_000)) == "decompression bomb"


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty file"),
        (b"\0" * 1000, "not an image"),
        (b"<html>404</html>", "not an image"),
        (encoded(photo(), "JPEG")[:700], "truncated or damaged image"),
        (encoded(photo(), "PNG")[:300], "truncated or damaged image"),
        (encoded(photo(), "PNG")[:20], "truncated or damaged image"),
    ],
)
def test_what_is_no_picture_has_a_reason(data, reason):
    assert reason_of(data) == reason


def test_the_extension_does_not_matter(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(photo(), "PNG"))
    assert load_picture(read_source(str(path))).tobytes() == photo().tobytes()


@pytest.mark.parametrize("name", ["absent.png", "folder", "file.png/below.png"])
def test_a_missing_file_has_a_reason(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.png").touch()
    with pytest.raises(PictureError) as caught:
        read_source(str(tmp_path / name))
    assert caught.value.reason == "missing image"


@pytest.mark.parametrize("name", ["a\0b.png", "a\ud800.png", "n" * 5000])
def test_an_impossible_name_has_a_reason(name):
    with pytest.raises(PictureError) as caught:
        read_source(name)
    assert caught.value.reason == "unreadable file"


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full"])
def test_a_device_is_not_read(name):
    with pytest.raises(PictureError) as caught:
        read_source(name)
    assert caught.value.reason == "not a file"


@pytest.fixture
def hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "fashiongen.h5"
    with h5py.File(path, "w") as file:
        file["input_image"] = np.stack([np.asarray(photo((32, 32), seed)) for seed in range(3)])
    return path


def test_a_row_of_an_hdf5_file(hdf5):
    for row in (2, 0):
        assert load_picture(read_source(f"{hdf5}#{row}")).tobytes() == photo((32, 32), row).tobytes()


def test_rows_that_are_not_there_have_a_reason(hdf5, tmp_path):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"no HDF5")
    reasons = {f"{hdf5}#3": "missing image", f"{hdf5}x.h5#0": "missing image", f"{damaged}#0": "unreadable file"}
    for name, reason in reasons.items():
        with pytest.raises(PictureError) as caught:
            read_source(name)
        assert caught.value.reason == reason


def test_a_file_may_have_a_number_sign_in_its_name(tmp_path):
    path = tmp_path / "look#3"
    path.write_bytes(b"data")
    assert read_source(str(path)) == b"data"


PLAIN = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"subsampling": 0},
    {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
]


@pytest.mark.parametrize("options", PLAIN)
def test_a_plain_jpeg_stays_as_it_is(options):
    data = encoded(photo(), "JPEG", **options)
    assert to_jpeg(data, 50) == (data, True)
    assert to_jpeg(data, 50, shorter_side=48) == (data, True)


def not_plain():
    """What looks like a JPEG that could stay, and must not."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(photo(), "JPEG")
    yield "turned", encoded(photo(), "JPEG", exif=exif)
    yield "turned by XMP", encoded(photo(), "JPEG", xmp=b'<rdf tiff:Orientation="6"/>')
    yield "grey", encoded(photo().convert("L"), "JPEG")
    yield "CMYK", encoded(photo().convert("CMYK"), "JPEG")
    yield "RGB components", encoded(photo(), "JPEG", keep_rgb=True)
    yield "a second picture behind it", data + data
    yield "PNG", encoded(photo(), "PNG")


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in not_plain()])
def test_what_is_no_plain_jpeg_is_encoded_anew(data):
    result, untouched = to_jpeg(data, 95)
    assert not untouched and result != data
    with Image.open(io.BytesIO(result)) as picture:
        assert (picture.mode, picture.format, dict(picture.getexif())) == ("RGB", "JPEG", {})
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(load_picture(data), dtype=int)).mean() < 6


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_is_cut_anywhere_never_passes(options):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "a thumbnail ends \u00ff\u00d9 here"
    data = encoded(Image.fromarray(noise), "JPEG", exif=exif, **options)
    for end in range(0, len(data), 11):
        with contextlib.suppress(PictureError):
            assert not to_jpeg(data[:end], 95)[1]
        assert plain_jpeg_size(data[:end] + b"\xff\xd9") is None or end > data.index(b"\xff\xda")


def test_damaged_headers_never_pass_what_cannot_be_decoded():
    data = encoded(photo((48, 48)), "JPEG", quality=95)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        place = random.integers(2, data.index(b"\xff\xda"))
        damaged[place] = random.integers(256)
        if plain_jpeg_size(bytes(damaged)):
            load_picture(bytes(damaged))


def test_a_jpeg_bomb_does_not_pass():
    data = bytearray(encoded(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(PictureError) as caught:
        to_jpeg(bytes(data), 95)
    assert caught.value.reason == "decompression bomb"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "size, result", [((64, 48), (32, 24)), ((48, 64), (24, 32)), ((900, 600), (36, 24)), ((24, 90), (24, 90))]
)
def test_the_shorter_side_is_bounded_and_never_enlarged(size, result, file_format):
    data, _ = to_jpeg(encoded(photo(size), file_format), 95, shorter_side=24)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == result
        exact = photo(size).resize(result, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(picture, dtype=int) - np.asarray(exact, dtype=int)).mean() < 6


def on_white(box, size=(100, 80), white=(255, 255, 255)):
    picture = Image.new("RGB", size, white)
    picture.paste(RED, box)
    return picture


@pytest.mark.parametrize(
    "box, content",
    [
        ((30, 20, 70, 60), (30, 20, 70, 60)),
        ((0, 0, 100, 40), (0, 0, 100, 80)),  # wide: widened to a square as far as the picture reaches
        ((40, 10, 60, 60), (25, 10, 75, 60)),
        ((90, 10, 100, 60), (50, 10, 100, 60)),
        ((50, 40, 51, 41), (38, 30, 63, 50)),  # a speck: a quarter of each side is kept
    ],
)
def test_near_white_borders_are_found(box, content):
    assert content_box(on_white(box)) == (None if content == (0, 0, 100, 80) else content)
    assert content_box(on_white(box, white=(241, 250, 245))) == content_box(on_white(box))


@pytest.mark.parametrize(
    "picture", [Image.new("RGB", (50, 40), "white"), photo(), Image.new("RGB", (9, 9), (236,) * 3)]
)
def test_no_borders_no_crop(picture):
    assert content_box(picture) is None


def test_borders_are_cropped_before_the_size_is_bounded():
    data = encoded(on_white((30, 20, 70, 60)))
    for shorter_side, size in ((None, (40, 40)), (20, (20, 20)), (60, (40, 40))):
        with Image.open(io.BytesIO(to_jpeg(data, 95, shorter_side, crop=True)[0])) as picture:
            assert picture.size == size
    unbordered = encoded(Image.new("RGB", (30, 20), "red"), "JPEG")
    assert to_jpeg(unbordered, 95, crop=True) == (unbordered, True)
