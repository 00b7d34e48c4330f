"""A look at a few samples goes by the same fields as the training after it."""

import json

import pytest

from clip_finetuning.loading.first_look import check_contrast, listed
from clip_finetuning.loading.sample import Fields
from tests.helpers import encoded_picture, write_shard


@pytest.fixture
def shards(tmp_path):
    """Samples of one product_id, but of several `sku`, with one caption in the .txt and several in `title`."""
    samples = []
    for number in range(4):
        record = {"product_id": "P", "sku": f"S{number}", "title": f"title {number}"}
        files = {"jpg": encoded_picture(number), "txt": b"a dress", "json": json.dumps(record).encode()}
        samples.append({f"{number}.{suffix}": data for suffix, data in files.items()})
    write_shard(tmp_path / "a.000000.tar", samples)
    return str(tmp_path / "a.*.tar")


@pytest.mark.parametrize("scheme", ["", "pipe:cat "])
@pytest.mark.parametrize("fields", [Fields(), Fields(caption="title"), Fields(product="sku")])
def test_fields_that_do_not_tell_apart_are_refused(shards, fields, scheme):
    with pytest.raises(ValueError, match="nothing to be told apart"):
        check_contrast(scheme + shards.replace("*", "{000000..000000}"), fields)


@pytest.mark.parametrize("scheme", ["", "pipe:cat "])
def test_fields_that_tell_apart_are_enough(shards, scheme):
    check_contrast(scheme + shards.replace("*", "{000000..000000}"), Fields(caption="title", product="sku"))


def test_what_an_evaluation_would_look_at(shards):
    found = listed(shards, 2, Fields(caption="title", product="sku"))
    assert found == (["0", "1"], ["S0", "S1"], ["title 0", "title 1"])
