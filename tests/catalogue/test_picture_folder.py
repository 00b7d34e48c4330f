"""Pictures are found however a cell names them; what is guessed is said, and nothing is guessed between two."""

import os
import unicodedata

import pytest

from clip_finetuning.catalogue.picture_folder import PictureFolder
from clip_finetuning.catalogue.picture_names import all_names, is_url, names_of, pieces
from clip_finetuning.catalogue.rows import RowError

NFC, NFD = unicodedata.normalize("NFC", "été.jpg"), unicodedata.normalize("NFD", "été.jpg")
FILES = ("15970.jpg", "1.png", "Red Coat.JPG", "a.jpg", "b.jpg", "sub/2/c.jpeg", "v1.2", "Shirt, red.jpg", NFC)


@pytest.fixture
def photos(tmp_path):
    """`photos` with FILES; beside it `secret.jpg`."""
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos" / "15970.json").touch()
    (tmp_path / "photos" / ".1.jpg").touch()
    (tmp_path / "secret.jpg").touch()
    return tmp_path / "photos"


def found(photos, cell, **options):
    """Paths in the folder, or reasons."""
    pictures = PictureFolder(photos, **options).find_all(cell)
    return [str(p) if isinstance(p, RowError) else os.path.relpath(p[0], photos) for p in pictures]


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("15970", "15970.jpg"),
        (15970, "15970.jpg"),
        (15970.0, "15970.jpg"),
        ("15970.0", "15970.jpg"),
        ("15970.png", "15970.jpg"),
        ("photos/15970.jpg", "15970.jpg"),
        ("photos\\15970.jpg", "15970.jpg"),
        (".\\photos\\15970.jpg", "15970.jpg"),
        ("/15970.jpg", "15970.jpg"),
        ("C:\\shop\\Photos\\15970.jpg", "15970.jpg"),
        ("/home/anna/photos/sub/2/c.jpeg", "sub/2/c.jpeg"),
        ("../export/15970.jpg", "15970.jpg"),
        ("img/15970", "15970.jpg"),
        ("file:///home/anna/photos/1.png", None),
        ("red coat.jpg", "Red Coat.JPG"),
        ("Red%20Coat.jpg", "Red Coat.JPG"),
        ("A.JPG", "a.jpg"),
        (NFD, NFC),
        (NFD.upper(), NFC),
        ("a.jpg?v=1686", "a.jpg"),
        ("c", "sub/2/c.jpeg"),
        ("2/c.jpg", "sub/2/c.jpeg"),
        ("v1.2", "v1.2"),
        ("V1.2", "v1.2"),
        ({"src": "a.jpg"}, "a.jpg"),
        ("{a.jpg}", "a.jpg"),
        ("[a.jpg]", "a.jpg"),
        (b"a.jpg", "a.jpg"),
        ("Shirt, red.jpg", "Shirt, red.jpg"),
        ("shirt, red", "Shirt, red.jpg"),
        ("/old/shirt, red.jpg", "Shirt, red.jpg"),
    ],
)
def test_a_picture_is_found(photos, cell, file):
    if file:
        assert found(photos, cell) == [file]
    else:
        assert found(photos, cell) == ["image is a URL (--download DIR fetches it)"]


@pytest.mark.parametrize(
    "cell",
    [
        "a.jpg, b.jpg",
        "a.jpg,b.jpg,",
        "a.jpg|b.jpg",
        "a.jpg ; b.jpg",
        "a.jpg b.jpg",
        "a.jpg + b.jpg",
        "a.jpg\nb.jpg",
        "photos/a.jpg,photos/b.jpg",
        "/x/a.jpg|/x/b.jpg",
        "A.JPG, a.jpg, b",
        '["a.jpg", "b.jpg"]',
        "['a.jpg', 'b.jpg']",
        "['a.jpg' 'b.jpg']",
        "[a.jpg, b.jpg]",
        "{a.jpg,b.jpg}",
        '[{"src": "a.jpg"}, {"src": "b.jpg"}]',
        ["a.jpg", "b.jpg", "a.jpg"],
        [{"path": "a.jpg"}, {"path": "b.jpg"}],
        ("a.jpg", ["b.jpg", None]),
    ],
)
def test_a_cell_of_several_pictures(photos, cell):
    assert found(photos, cell) == ["a.jpg", "b.jpg"]


def test_what_is_there_of_several_is_taken_and_the_rest_has_its_reason(photos):
    assert found(photos, "a.jpg|no.jpg|Shirt, red.jpg") == ["a.jpg", "missing image", "Shirt, red.jpg"]
    assert found(photos, "no.jpg, nor.jpg") == ["missing image"] * 2


@pytest.mark.parametrize("cell", ["", None, " ", [], "[]", "null", {}, {"bytes": None, "path": None}, float("nan")])
def test_a_blank_cell_names_nothing(photos, cell):
    assert found(photos, cell) == []


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "sub/../../secret.jpg", "{}/secret.jpg", "link.jpg", "LINK", "out/secret"]
)
def test_no_way_leads_out_of_the_folder(photos, name):
    (photos / "link.jpg").symlink_to(photos.parent / "secret.jpg")
    (photos / "out").symlink_to(photos.parent)
    cell = name.format(photos.parent)
    assert found(photos, cell)[0] in ("image outside its folder (--allow-outside takes it)", "missing image")
    (photos / "secret.jpg").touch()  # another one: what the name says is there, and refused
    if "/" in name and name != "out/secret":
        assert found(photos, cell) == ["image outside its folder (--allow-outside takes it)"]


@pytest.mark.parametrize(
    ("files", "cell"),
    [
        (("x.jpg", "X.jpg"), "x.JPG"),
        (("x.jpg", "x.png"), "x"),
        (("x.jpg", "x.png"), "x.webp"),
        (("p/x.jpg", "q/x.jpg"), "x.jpg"),
        ((f"x_{NFC}", f"x_{NFD}"), f"X_{NFC}"),
    ],
)
def test_between_two_nothing_is_guessed(tmp_path, files, cell):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = PictureFolder(tmp_path)
    assert [str(error) for error in folder.find_all(cell)] == ["ambiguous image name"]
    (remark,) = folder.remarks()
    assert remark.startswith(f"{cell} may be ") and all(name in remark for name in files)
    assert folder.find_all(files[0]) == [
        (f"{tmp_path}/{files[0]}", os.path.basename(files[0]))
    ]  # as it is written there


def test_a_folder_of_another_machine_is_left_out_once_for_all(photos):
    folder = PictureFolder(photos)
    first, second, other = (folder.find_all(cell)[0] for cell in ("/mnt/a.jpg", "/mnt/b.jpg", "/tmp/a.jpg"))
    assert isinstance(first, tuple) and isinstance(second, tuple)
    assert str(other) == "missing image"  # not taken for another folder's picture of that name
    assert "2 pictures are there without mnt/ before it (/mnt/a.jpg -> a.jpg)" in folder.remarks()


def test_what_was_guessed_and_the_nearest_name_are_said(photos):
    folder = PictureFolder(photos)
    for cell in ("15970", "1", "A.JPG", "1597O.jpg", "nothing like it", "a.jpg"):
        folder.find_all(cell)
    assert folder.remarks() == [
        "2 pictures are there without the ending (15970 -> 15970.jpg)",
        "1 pictures are there under another spelling (A.JPG -> a.jpg)",
        f"no file {photos.as_posix()}/1597O.jpg; the nearest name there is 15970.jpg",
    ]


def test_folders_that_cannot_be_listed_are_said(photos, monkeypatch):
    scan = os.scandir

    def guarded(path):
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    folder = PictureFolder(photos)
    assert [str(error) for error in folder.find_all("c")] == ["missing image"]
    assert folder.remarks()[-1] == f"1 folders of pictures cannot be listed ({photos}/sub: Permission denied)"


def test_a_folder_is_listed_only_for_what_is_not_there_as_it_is(photos, monkeypatch):
    monkeypatch.setattr(os, "scandir", lambda _: pytest.fail("listed"))
    assert found(photos, "a.jpg") == ["a.jpg"]
    assert found(photos, ["a.jpg", "sub/2/c.jpeg"]) == ["a.jpg", "sub/2/c.jpeg"]


URLS = "https://a.example/w_3,h_4/1.jpg, https://a.example/2.jpg"


def test_urls_are_told_from_names_and_from_each_other(photos):
    assert pieces(URLS) == ["https://a.example/w_3,h_4/1.jpg", "https://a.example/2.jpg"]
    assert all_names([URLS, "x.jpg|y.jpg"]) == [*pieces(URLS), "x.jpg", "y.jpg"]
    assert names_of('["//cdn.example/1.jpg"]') == ["//cdn.example/1.jpg"]
    assert [is_url(name) for name in ("HTTP://x/1.jpg", "//cdn.x.io/1.jpg", "C:\\1.jpg", "/a/1.jpg")] == [
        *(True, True, False, False)
    ]
    fetched = found(photos, URLS, of_url=lambda url: (f"{photos}/{url[-5:]}", url[-5:]))
    assert fetched == ["1.jpg", "2.jpg"]
