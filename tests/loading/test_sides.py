"""Which captions name a side, in many languages, and how many samples of some shards do."""

import pytest

from clip_finetuning.loading.sides import look, names_side
from tests.helpers import catalogue_sample, write_shard


@pytest.mark.parametrize(
    "caption",
    """Logo on the left chest|zip at the right-hand side|LEFT sleeve|Tasche auf der linken Seite|Tasche links|poche à gauche
    logo brodé à droite|bolsillo izquierdo|tasca a sinistra|Bolso no lado direito|linkermouw met print|ficka på höger sida
    vasemmalla taskulla|lewa kieszeń|левый карман|карман справа|кишеня зліва|左胸ロゴ|ロゴは右|口袋在左边|왼쪽 가슴 로고|sağ cep
    sol tarafta logo|zseb a bal oldalon|túi bên trái|saku kiri|τσέπη αριστερά|جيب على اليسار|כיס בצד שמאל|जेब बाएं ओर|ด้านซ้าย""".replace(
        "\n", "|"
    ).split("|"),
)
def test_captions_that_name_a_side(caption):
    assert names_side(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "bright red",
        "copyright notice",
        "upright collar",
        "leftover fabric",
        "coupe droite",
        "gafas de sol",
        "rechteckig",
        "silver cuff links",
        "左右対称",
        "all rights reserved",
        "soleil",
        "a dress",
    ],
)
def test_captions_that_name_none(caption):
    assert not names_side(caption)


def test_shards_are_looked_at_all_over_and_every_wording_counts(tmp_path):
    """One sample of the last shard says it in its second caption."""
    for shard in range(4):
        samples = [catalogue_sample(number, number) for number in range(10 * shard, 10 * shard + 10)]
        write_shard(tmp_path / f"{shard}.tar", samples)
    samples[3] = catalogue_sample(33, 33, captions=["Caption of product 33", "pocket on the left\x1b[2J"])
    write_shard(tmp_path / "3.tar", samples)
    found = look(str(tmp_path / "*.tar"))
    assert (found.samples, found.naming) == (40, 1)
    assert found.examples[0].startswith("'pocket on the left") and "\x1b" not in found.examples[0]
