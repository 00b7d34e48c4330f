"""Pictures by key, from local and from streamed shards."""

import pytest

from clip_finetuning.loading.lookup import read_pictures
from tests.helpers import encoded_picture

KEYS = ["000000003", "000000017", "nowhere"]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_pictures_asked_for(tmp_path, make_shards, streamed):
    pattern = make_shards(tmp_path / "a", products=10, views=2, shards=2)
    found = read_pictures(f"pipe:cat {pattern}" if streamed else pattern, KEYS)
    assert found == {key: encoded_picture(int(key)) for key in KEYS[:2]}


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        read_pictures(str(tmp_path / "gone.{000000..000001}.tar"), KEYS)
