"""Names of pictures made of columns."""

import pytest

from clip_finetuning.catalogue.image_template import fill_image_template, image_template_fields


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{id:0>10}.jpg", "0108775015.jpg"),
        ("{id:010}.jpg", "0108775015.jpg"),
        ("{id:0>10|:3}/{id:0>10}.jpg", "010/0108775015.jpg"),
        ("{id:-2:}/{id::4}/{id:3:6|0>5}.png", "15/1087/00775.png"),
        ("{id:x<11}_{Body (HTML)}", "108775015xx_b.jpg"),
        ("{{{id}}}", "{108775015}"),
        ("{id}-{none}.jpg", ""),
    ],
)
def test_a_template(template, name):
    assert fill_image_template(template, {"id": "108775015", "Body (HTML)": "b.jpg", "none": ""}) == name
    assert set(image_template_fields(template)) <= {"id", "Body (HTML)", "none"}


@pytest.mark.parametrize(
    "template", ["1.jpg", "{}.jpg", "{id", "{id!r}", "{id:>}", "{id:.3}", "{id:0>10.3}", "{id:|:3}"]
)
def test_a_wrong_template_is_refused_with_a_right_one(template):
    with pytest.raises(ValueError, match=r"image template .*'\{?id|\{column\}.jpg"):
        image_template_fields(template)
