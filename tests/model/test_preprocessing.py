"""Pictures: open_clip's own preprocessing to two levels of 255, torchvision's random crop, and every kind of input."""

import io
import random

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from clip_finetuning.model import preprocessing
from clip_finetuning.model.preprocessing import ImageTransform, decode, normalize, random_crop_box
from clip_finetuning.pictures.decode import PictureError


def photo(height, width, seed=0):
    """Soft shapes, hard edges and grain."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    pixels[: height // 3, : width // 3] = (255, 0, 0)
    pixels += generator.normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(picture, file_format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **({"quality": 95} if file_format != "PNG" else {}), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [224, (224, 160)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_within_two_levels_of_open_clip(file_format, resize_mode, size, interpolation):
    keywords = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": 127}
    reference = image_transform_v2(PreprocessCfg(mean=(0, 0, 0), std=(1, 1, 1), **keywords), is_train=False)
    transform = ImageTransform(train=False, **keywords)
    for height, width in [(256, 256), (300, 200), (97, 400), (50, 61), (650, 500), (400, 100), (900, 260)]:
        data = encode(photo(height, width), file_format)
        expected = (reference(Image.open(io.BytesIO(data)).convert("RGB")) * 255).round()
        ours = transform(data)
        assert ours.dtype == torch.uint8 and ours.shape == expected.shape
        assert (ours.float() - expected).abs().max() <= 2


def test_preprocessing_of_a_model_as_open_clip_reports_it():
    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-16-SigLIP-256", pretrained=None, load_weights=False
    )
    config = open_clip.get_model_preprocess_cfg(model)
    transform = ImageTransform(**{key: value for key, value in config.items() if key != "mode"}, train=False)
    data = encode(photo(300, 200), "JPEG")
    pixels = normalize(transform(data)[None], config["mean"], config["std"])[0]
    expected = preprocess(Image.open(io.BytesIO(data)))
    assert (pixels - expected).abs().max() <= 2.01 / 255 / min(config["std"])


def test_normalize_is_to_tensor_and_normalize():
    images = torch.randint(0, 256, (4, 3, 8, 9), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    mean, std = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
    expected = (images.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    pixels = normalize(images, mean, std)
    assert pixels.is_contiguous() and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, rtol=1e-6, atol=2e-6)


def test_training_crops_are_reproducible_and_differ():
    transform, data = ImageTransform(32, train=True), encode(photo(80, 80), "JPEG")
    assert torch.equal(transform(data, 5), transform(data, 5))
    assert not torch.equal(transform(data, 5), transform(data, 6))
    unseeded = [transform(data) for _ in range(9)]  # two of them may well take the same of the few boxes
    assert any(not torch.equal(unseeded[0], other) for other in unseeded[1:])


@pytest.mark.parametrize("shape", [(256, 256), (120, 100), (40, 400), (400, 40)])
def test_crop_boxes_have_the_distribution_of_torchvision(shape):
    generator = random.Random(0)
    torch.manual_seed(0)
    picture = torch.empty(3, *shape)
    ours = np.array([random_crop_box(*shape, (0.9, 1.0), generator) for _ in range(3000)], dtype=float)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, (0.9, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)], dtype=float
    )
    for column in range(4):
        quantiles = np.quantile(ours[:, column], [0.1, 0.5, 0.9]), np.quantile(theirs[:, column], [0.1, 0.5, 0.9])
        np.testing.assert_allclose(*quantiles, atol=0.02 * max(shape))


@pytest.mark.parametrize("shape", [(256, 256), (1300, 1000)])
def test_training_pixels_are_those_of_pil_for_the_same_crop(shape):
    picture = photo(*shape)
    top, left, height, width = random_crop_box(*shape, (0.9, 1.0), random.Random(3))
    expected = picture.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BICUBIC)
    ours = ImageTransform(224, train=True)(encode(picture, "PNG"), 3)
    difference = (ours.permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()).abs()
    if max(shape) > 2 * 224:  # the height goes first, so what is rounded in between differs
        assert difference.max() < 10 and difference.float().mean() < 0.2
    else:
        assert difference.max() <= 2


@pytest.mark.skipif(preprocessing.simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"subsampling": 1}])
def test_the_fast_decoder_gives_the_pixels_of_pil(options, monkeypatch):
    for picture in (photo(123, 77), photo(64, 64).convert("L")):
        data = encode(picture, "JPEG", **options)
        fast = decode(data)
        monkeypatch.setattr(preprocessing, "simplejpeg", None)
        assert (fast == decode(data)).all()
        monkeypatch.undo()


def test_exif_rotation_and_cmyk_take_the_careful_way():
    picture = photo(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode(encode(picture, "JPEG", exif=exif)).shape == (60, 40, 3)
    exif[0x0112] = 1
    assert (decode(encode(picture, "JPEG", exif=exif)) == decode(encode(picture, "JPEG"))).all()
    white = Image.new("CMYK", (16, 16))
    assert decode(encode(white, "JPEG")).min() > 250


def test_unreadable_pictures_say_why():
    data = encode(photo(64, 64), "JPEG")
    for broken in (b"", b"no picture", data[: len(data) // 2], b"\xff\xd8", data[:30]):
        with pytest.raises(PictureError) as error:
            decode(broken)
        assert error.value.reason


@pytest.mark.parametrize("with_simplejpeg", [True, False])
def test_reduced_decode_is_smaller_but_never_below_twice_the_model(with_simplejpeg, monkeypatch):
    if not with_simplejpeg:
        monkeypatch.setattr(preprocessing, "simplejpeg", None)
    elif preprocessing.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    data = encode(photo(130, 100).resize((1000, 1300), Image.Resampling.BICUBIC), "JPEG")
    assert decode(data, smallest=448).shape == (650, 500, 3)
    small = encode(photo(300, 300), "JPEG")
    assert decode(small, smallest=448).shape == (300, 300, 3)
    reduced = ImageTransform(224, train=True, reduced_decode=True)(data, 1).float()
    full = ImageTransform(224, train=True)(data, 1).float()
    assert 0 < (reduced - full).abs().mean() < 3
    exact = ImageTransform(224, train=False, reduced_decode=True)(data)
    assert torch.equal(exact, ImageTransform(224, train=False)(data))  # evaluation takes no short cut


def test_unknown_resize_mode():
    with pytest.raises(ValueError, match="resize_mode='middle'"):
        ImageTransform(224, resize_mode="middle", train=False)


# ----------------------------------------------------------------------------------------------- what training does


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [64, (64, 48)])
def test_training_on_whole_pictures_sees_the_pixels_of_evaluation(resize_mode, size):
    keywords = {"size": size, "resize_mode": resize_mode, "interpolation": "bilinear", "fill_color": 127}
    whole, evaluation = (ImageTransform(train=train, crop_scale=1.0, **keywords) for train in (True, False))
    crops = ImageTransform(train=True, **keywords)
    for height, width in [(80, 80), (300, 90), (70, 200)]:
        data = encode(photo(height, width), "JPEG")
        assert torch.equal(whole(data, 7), evaluation(data))
        assert not torch.equal(whole(data, 7), crops(data, 7))


def test_a_smaller_crop_scale_shows_less_of_a_picture():
    """Of a grey ramp, the range of what is shown."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 200, dtype=np.uint8)[:, None, None], (1, 200, 3)))
    data = encode(ramp, "PNG")
    shown = {}
    for scale in (0.1, 0.9):
        images = [ImageTransform(32, train=True, crop_scale=scale)(data, seed).int() for seed in range(30)]
        shown[scale] = np.mean([(image.max() - image.min()).item() for image in images])
    assert shown[0.1] < 0.8 * shown[0.9] < 255


@pytest.mark.parametrize("crop_scale", [0.9, 1.0])
def test_half_of_the_pictures_are_mirrored_and_their_crops_stay(crop_scale):
    data = encode(photo(80, 60), "JPEG")
    plain, flipping = (ImageTransform(32, train=True, crop_scale=crop_scale, flip=flip) for flip in (False, True))
    mirrored = 0
    for seed in range(200):
        image, other = plain(data, seed), flipping(data, seed)
        assert torch.equal(other, flipping(data, seed)) and other.permute(1, 2, 0).is_contiguous()
        mirrored += torch.equal(other, image.flip(2))
        assert torch.equal(other, image) or torch.equal(other, image.flip(2))
    assert 70 < mirrored < 130
    assert torch.equal(ImageTransform(32, train=False, flip=True)(data, 1), ImageTransform(32, train=False)(data))


def test_what_training_does_to_a_picture_is_one_line():
    def line(**options):
        return ImageTransform(**{"size": (64, 48), "train": True, **options}).what_it_does

    assert line() == "a random crop of 0.9 to 1 of the area, to 64 x 48"
    assert (
        line(crop_scale=1, resize_mode="longest", flip=True)
        == "whole, padded to 64 x 48 as in evaluation, half of them mirrored"
    )
    assert line(train=False, flip=True, reduced_decode=True) == "whole, its middle to 64 x 48 as in evaluation"
    assert "at a fraction of its size" in line(reduced_decode=True)
