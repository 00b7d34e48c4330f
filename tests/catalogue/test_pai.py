"""The PAI pickles of a split."""

from clip_finetuning.catalogue.pai import open_pai


def test_a_source_knows_its_size_before_it_is_read(tmp_path):
    (tmp_path / "full_train_info_PAI").mkdir()
    (tmp_path / "extracted_train_images").mkdir()
    for number in range(3):
        (tmp_path / "full_train_info_PAI" / f"{number}.pkl").write_bytes(b"cut")
    source = open_pai(tmp_path, "train")
    assert source.total == 3
    assert [skipped.name for skipped in source.rows] == ["0.pkl", "1.pkl", "2.pkl"]
