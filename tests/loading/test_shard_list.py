"""Patterns, and the messages that tell what is missing and what would match."""

import pytest

from clip_finetuning.loading.shard_list import expand_pattern, in_common, is_url, pattern_of


@pytest.fixture
def folder(tmp_path):
    for name in ["train.000000.tar", "train.000001.tar", "train.000002.tar", "train.000004.tar", "valid.000000.tar"]:
        (tmp_path / name).touch()
    return tmp_path


def names(shards):
    return [shard.replace("\\", "/").rpartition("/")[2] for shard in shards]


def test_braces_globs_and_joined_patterns(folder):
    assert names(expand_pattern(f"{folder}/train.{{000000..000002}}.tar")) == [f"train.00000{i}.tar" for i in range(3)]
    assert names(expand_pattern(f"{folder}/train.*.tar")) == [f"train.00000{i}.tar" for i in (0, 1, 2, 4)]
    joined = expand_pattern(f"{folder}/valid.000000.tar::{folder}/{{train,valid}}.000000.tar")
    assert names(joined) == ["valid.000000.tar", "train.000000.tar", "valid.000000.tar"]
    assert names(expand_pattern(f"file://{folder}/valid.000000.tar")) == ["valid.000000.tar"]


def test_a_name_with_brackets_is_itself(tmp_path):
    path = tmp_path / "a[1]{x.tar"
    path.touch()
    assert expand_pattern(str(path)) == [str(path)]


def test_urls_are_not_looked_up():
    assert expand_pattern("http://host/a.{0..2}.tar") == [f"http://host/a.{i}.tar" for i in range(3)]
    assert expand_pattern("pipe:curl -s http://host/{a,b}.tar") == [f"pipe:curl -s http://host/{i}.tar" for i in "ab"]


def test_a_drive_letter_is_a_local_path():
    assert not is_url("C:\\shards\\a.{0..1}.tar")
    assert is_url("s3://bucket/a.tar")
    with pytest.raises(FileNotFoundError, match=r"C:\\\\shards\\\\new.\{0..1\}.tar"):  # backslashes are no escapes
        expand_pattern("C:\\shards\\new.{0..1}.tar")


def test_missing_shards_are_named_with_the_pattern_that_matches(folder):
    with pytest.raises(FileNotFoundError) as error:
        expand_pattern(f"{folder}/train.{{000000..000005}}.tar")
    message = str(error.value)
    assert "2 of the 6 shards" in message
    assert "train.000003.tar, train.000005.tar" in message
    remedy = message.split("matches what is there: ")[1]
    assert names(expand_pattern(remedy)) == [f"train.00000{i}.tar" for i in (0, 1, 2, 4)]


def test_no_match_at_all(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no shard matches.*valid\.000000\.tar"):
        expand_pattern(f"{folder}/nothing.*.tar")
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent' does not exist"):
        expand_pattern(f"{tmp_path}/absent/train.{{0..3}}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar file; write shards with create_webdataset\.py"):
        expand_pattern(f"{tmp_path}/empty/*.tar")
    with pytest.raises(FileNotFoundError, match=r"train\.\{000000\.\.000002\}\.tar"):  # a folder is no pattern
        expand_pattern(str(folder))


@pytest.mark.parametrize("pattern", ["", "a.tar::", "a.{0..3.tar"])
def test_malformed_patterns(pattern):
    with pytest.raises(ValueError, match="pattern"):
        expand_pattern(pattern)


def test_pattern_of_is_the_inverse(folder):
    shards = sorted(str(path) for path in folder.iterdir())
    assert sorted(expand_pattern(pattern_of(shards))) == shards
    assert pattern_of([f"x/a.{i:03d}.tar" for i in range(12)]) == "x/a.{000..011}.tar"


def test_shards_that_two_patterns_name_are_found_by_whatever_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.000000.tar", "a.000001.tar", "b.tar"):
        (tmp_path / name).touch()
    (tmp_path / "link.tar").symlink_to("a.000001.tar")
    mine = "a.{000000..000001}.tar"
    second = ["a.000001.tar"]
    for other in (
        "a.000001.tar", f"{tmp_path}/a.000001.tar", "./a.000001.tar", "../*/a.*1.tar", "a.{000001..000009}.tar", "link.tar",
        "b.tar::a.000001.tar", f"{tmp_path.as_uri()}/a.000001.tar", "a.00000[1-9].tar",
    ):  # fmt: skip
        assert in_common(mine, other) == second, other
    for other in (
        "b.tar",
        "a.000002.tar",
        "c.*.tar",
        "",
        "a.{",
        "\0",
        "s3://x/a.000001.tar",
        "/elsewhere/a.000001.tar",
    ):
        assert in_common(mine, other) == [], other
    assert in_common("s3://x/{a,b}.tar", "s3://x/b.tar") == ["s3://x/b.tar"]
    for bomb in ("x.{0..99999999999}.tar", "{0..9999999}", f"{{0..{'9' * 5000}}}", "{a,b}" * 60, "\x00.tar"):
        assert in_common(mine, bomb) == []  # a checkpoint may say anything
