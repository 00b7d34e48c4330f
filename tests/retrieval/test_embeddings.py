"""The embeddings file: a round trip, anybody's minimal file, and files that are not one."""

import json
import tracemalloc

import numpy as np
import pytest

from clip_finetuning.retrieval import embeddings as embeddings_file
from clip_finetuning.retrieval import results, tiles
from clip_finetuning.retrieval.names import PROTOCOLS
from clip_finetuning.retrieval.stored_rows import StoredRows
from tests.helpers import embedded_catalogue

FOUR = ("image_embeddings", "text_embeddings", "image_product", "text_product")


def test_what_is_saved_is_loaded(tmp_path):
    mine = embedded_catalogue(noise=0.2)
    mine.attributes = embeddings_file.texts([{"colour": "red", "f\u00fcr": ""}] * 10 + [{}] * 8)
    mine.looks = np.random.default_rng(0).integers(0, 256, (18, 200), dtype=np.uint8)
    embeddings_file.save(tmp_path / "e.npz", mine)
    theirs = embeddings_file.load(tmp_path / "e.npz")
    mine.attributes = embeddings_file.texts([{"colour": "red"}] * 10 + [{}] * 8)  # no blank ones
    for name, column in vars(mine).items():
        loaded = getattr(theirs, name)
        assert loaded.shape == column.shape
        assert np.allclose(loaded, column, atol=1e-6) if column.dtype.kind == "f" else (loaded == column).all()
    assert theirs.fingerprint() == mine.fingerprint()
    with np.load(tmp_path / "e.npz") as file:
        assert file["image_embeddings"].dtype == np.float32
        named = (
            "image_embeddings",
            "text_embeddings",
            "image_product",
            "text_product",
            "image_key",
            "captions",
            "category",
        )
        assert set(named) <= set(file)


def test_four_arrays_are_enough(tmp_path):
    rows = np.array([[3.0, 0.0], [0.0, 2.0]], dtype=np.float16)
    products = np.array([7, 8])
    np.savez(
        tmp_path / "e.npz", image_embeddings=rows, text_embeddings=rows, image_product=products, text_product=products
    )
    loaded = embeddings_file.load(tmp_path / "e.npz")
    assert np.allclose(np.linalg.norm(loaded.image_embeddings, axis=1), 1)
    assert loaded.image_text.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({name: np.eye(2) for name in FOUR}, "image_product has shape"),
        (
            {**dict.fromkeys(FOUR[:2], np.eye(2)), **{key: [1, 2] for key in FOUR[2:]}, "image_text": [0, -1]},
            "image_text",
        ),
        ({**dict.fromkeys(FOUR[:2], np.eye(2) * 1j), **{key: [1, 2] for key in FOUR[2:]}}, "real numbers"),
        ({"image_embeddings": np.eye(2)}, "lacks text_embeddings, image_product, text_product"),
        (
            {
                "image_embeddings": np.eye(2),
                "text_embeddings": np.eye(3),
                "image_product": [1, 2],
                "text_product": [1, 2, 3],
            },
            "shapes",
        ),
        (
            {"image_embeddings": np.eye(2), "text_embeddings": np.eye(2), "image_product": [1], "text_product": [1, 2]},
            "image_product has 1 rows, but there are 2 images",
        ),
        (
            {
                "image_embeddings": np.empty((0, 2)),
                "text_embeddings": np.eye(2),
                "image_product": [],
                "text_product": [1, 2],
            },
            "nothing to evaluate",
        ),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, arrays, words):
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        embeddings_file.load(tmp_path / "e.npz")


def test_files_that_are_no_embeddings(tmp_path):
    with pytest.raises(FileNotFoundError, match="--save-embeddings"):
        embeddings_file.load(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="no .npz file"):
        embeddings_file.load(tmp_path / "text.npz")


# ------------------------------------------------------------------------------------------ long and odd texts


def test_one_long_caption_widens_no_other(tmp_path):
    """As one NumPy array of text, 2,000 captions with one of 20,000 letters take 160 MB."""
    captions = ["a" * 20_000] + [f"caption {number}" for number in range(1, 2000)]
    tracemalloc.start()
    try:
        embeddings = embedded_catalogue(products=2000, views=1, captions=captions)
        embeddings_file.save(tmp_path / "e.npz", embeddings)
        loaded = embeddings_file.load(tmp_path / "e.npz")
        loaded.fingerprint()
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
    assert (tmp_path / "e.npz").stat().st_size < 1e6
    assert loaded.captions.tolist() == captions
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert json.loads(file["captions"].tobytes()) == captions
        assert all(file[name].dtype == np.uint8 for name in file["json_columns"].tolist())


def test_any_text_comes_back(tmp_path):
    captions = ["caf\u00e9", "lone surrogate \udcff", "ends in NUL\0", "", "nan", '"quoted"']
    mine = embedded_catalogue(captions=captions)
    embeddings_file.save(tmp_path / "e.npz", mine)
    theirs = embeddings_file.load(tmp_path / "e.npz")
    assert theirs.captions.tolist() == captions and theirs.fingerprint() == mine.fingerprint()


def test_files_from_before_still_load(tmp_path):
    """Columns of text as plain arrays."""
    mine = embedded_catalogue(noise=0.2)
    columns = {name: column for name, column in vars(mine).items() if column is not None}
    plain = {name: column.astype(str) if column.dtype == object else column for name, column in columns.items()}
    np.savez(tmp_path / "e.npz", **plain)
    theirs = embeddings_file.load(tmp_path / "e.npz")
    assert theirs.fingerprint() == mine.fingerprint()
    assert theirs.category.tolist() == mine.category.tolist()


def minimal(folder, **arrays):
    rows = np.eye(3, dtype=np.float32)
    four = {"image_embeddings": rows, "text_embeddings": rows, "image_product": [1, 2, 3], "text_product": [1, 2, 3]}
    np.savez(folder / "e.npz", **{**four, **arrays})
    return folder / "e.npz"


def test_ids_that_went_through_pandas(tmp_path):
    loaded = embeddings_file.load(minimal(tmp_path, image_product=[15970.0, 2.0, 3.0], text_product=[15970, 2, 3]))
    assert loaded.image_product.tolist() == loaded.text_product.tolist() == ["15970", "2", "3"]
    assert loaded.image_key.tolist() == ["0", "1", "2"]
    loaded = embeddings_file.load(minimal(tmp_path, image_product=np.array([b"caf\xc3\xa9", b"b", b"c"])))
    assert loaded.image_product[0] == "caf\u00e9"


@pytest.mark.parametrize("missing", [[np.nan, 2.0, np.inf], ["nan", "2", "None"], ["", "2", " "]])
def test_a_missing_id_is_the_caption_or_refused(tmp_path, missing):
    with pytest.raises(ValueError, match="2 rows of image_product are blank or no number"):
        embeddings_file.load(minimal(tmp_path, image_product=missing))
    with pytest.raises(ValueError, match="2 rows of text_product are blank or no number"):
        embeddings_file.load(minimal(tmp_path, text_product=missing))
    named = {"captions": ["a", "b", "c"], "image_text": [0, 1, 2]}
    loaded = embeddings_file.load(minimal(tmp_path, image_product=missing, text_product=missing, **named))
    assert loaded.image_product.tolist() == loaded.text_product.tolist() == ["a", "2", "c"]


def test_rows_that_are_not_finite_are_named(tmp_path):
    rows = np.eye(3)
    rows[1, 0] = np.nan
    with pytest.raises(ValueError, match="1 rows of text_embeddings hold NaN or infinity, first of all row 1"):
        embeddings_file.load(minimal(tmp_path, text_embeddings=rows))


def test_images_without_a_text_are_told(tmp_path, caplog):
    embeddings_file.load(minimal(tmp_path, image_product=[1, 2, 9]))
    assert "1 images have no text of their product" in caplog.text


def test_captions_that_are_embedded_in_two_ways_are_counted():
    embeddings = embedded_catalogue(captions=["same", "Same", "SAME", "d", "e", "f"])
    embeddings.text_embeddings[1] = embeddings.text_embeddings[0]
    assert embeddings_file.unlike_captions(embeddings) == 1


def test_without_attributes_and_fingerprints_the_file_is_what_it_was(tmp_path):
    mine = embedded_catalogue()
    mine.attributes = embeddings_file.texts([{}] * 18)
    mine.__post_init__()
    embeddings_file.save(tmp_path / "e.npz", mine)
    with np.load(tmp_path / "e.npz") as file:
        assert not {"attributes", "looks"} & {*file, *file["json_columns"].tolist()}


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (np.array(['{"colour": "red", "n": 1.0}', "", '{"colour": null}']), [{"colour": "red", "n": "1"}, {}, {}]),
        (np.array([b'{"a": [2, "b"]}', b"{}", b""]), [{"a": "2, b"}, {}, {}]),
        (np.array(["", "", ""]), None),
    ],
)
def test_attributes_of_others(tmp_path, column, found):
    arrays = dict.fromkeys(("image_embeddings", "text_embeddings"), np.eye(3))
    arrays |= dict.fromkeys(("image_product", "text_product"), np.arange(3))
    np.savez(tmp_path / "e.npz", **arrays, attributes=column)
    loaded = embeddings_file.load(tmp_path / "e.npz")
    assert (None if loaded.attributes is None else loaded.attributes.tolist()) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attributes": np.array(["red", "", ""])}, "row 0 of attributes is no JSON object, such as"),
        ({"attributes": np.array(['{"a": "b"}', "{}"])}, "attributes has 2 rows, but there are 3 images"),
        ({"looks": np.zeros((3, 8), np.uint8)}, r"looks is uint8 \(3, 8\); it must be uint8 \(images, 200\)"),
        ({"looks": np.zeros((2, 200), np.uint8)}, "looks has 2 rows, but there are 3 images"),
        ({"looks": np.zeros((3, 200))}, "looks is float64"),
    ],
)
def test_columns_that_are_none_are_named(tmp_path, changes, words):
    rows, ids = np.eye(3), np.arange(3)
    arrays = {"image_embeddings": rows, "text_embeddings": rows, "image_product": ids, "text_product": ids}
    np.savez(tmp_path / "e.npz", **arrays, **changes)
    with pytest.raises(ValueError, match=words):
        embeddings_file.load(tmp_path / "e.npz")


def test_some_attributes_are_kept_and_unknown_ones_are_told_with_those_there_are():
    mine = embedded_catalogue(products=3, views=1)
    with pytest.raises(
        ValueError, match="--attributes colour: no sample of the embeddings file has it; there are none$"
    ):
        mine.keep_attributes(["colour"])
    mine.attributes = embeddings_file.texts([{"colour": "red", "size": "M"}, {}, {"size": "L", "fit": "slim"}])
    mine.keep_attributes([])
    with pytest.raises(ValueError, match="there are colour, size, fit$"):
        mine.keep_attributes(["size", "hue"])
    mine.keep_attributes(["size"])
    assert mine.attributes.tolist() == [{"size": "M"}, {}, {"size": "L"}]


def test_keys_name_pictures_where_they_are_single():
    mine = embedded_catalogue(products=2, views=2)
    mine.image_key[:2] = "same"
    assert mine.keys_of([0, 2, 3]) == {2: "000000002", 3: "000000003"}


def test_a_folder_of_arrays_gives_the_numbers_of_the_file_and_stays_there(tmp_path):
    """The rows of the folder are read some at a time, as float16 too; shuffled, they are read by number."""
    embeddings = embedded_catalogue(products=30, views=3, noise=1.0)
    embeddings_file.save(tmp_path / "e.npz", embeddings)
    embeddings_file.save(f"{tmp_path}/folder/", embeddings)
    wanted = results.measure_embeddings(embeddings_file.load(tmp_path / "e.npz"), list(PROTOCOLS), (1, 5))
    loaded = embeddings_file.load(tmp_path / "folder")
    assert isinstance(loaded.image_embeddings, StoredRows) and isinstance(loaded.image_embeddings._rows, np.memmap)
    assert results.measure_embeddings(loaded, list(PROTOCOLS), (1, 5)) == wanted
    for name in ("image_embeddings", "text_embeddings"):
        half = 3 * getattr(embeddings, name).astype(np.float16)
        np.save(tmp_path / "folder" / f"{name}.npy", half)
        setattr(embeddings, name, half)
    embeddings_file.save(tmp_path / "half.npz", embeddings)
    halves = [embeddings_file.load(path) for path in (tmp_path / "folder", tmp_path / "half.npz")]
    assert len({json.dumps(results.measure_embeddings(half, ["product"], (1, 5))) for half in halves}) == 1
    embeddings_file.save(f"{tmp_path}/again/", halves[0])
    assert embeddings_file.load(f"{tmp_path}/again").fingerprint() == embeddings.fingerprint()


def test_a_large_folder_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    embeddings_file.save(f"{tmp_path}/e/", embedded_catalogue(products=50, views=4, noise=1.0))
    largest, read = [], StoredRows.__getitem__
    monkeypatch.setattr(
        StoredRows, "__getitem__", lambda self, rows: (largest.append(len(part := read(self, rows))), part)[1]
    )
    monkeypatch.setattr(tiles, "MOST_COLUMNS", 20)
    monkeypatch.setattr(tiles, "MOST_ROWS", 10)
    measured = results.measure_embeddings(embeddings_file.load(tmp_path / "e"), ["product", "pair"], (1, 5))
    assert max(largest) <= tiles.FILL
    monkeypatch.undo()
    assert measured == results.measure_embeddings(embeddings_file.load(tmp_path / "e"), ["product", "pair"], (1, 5))


@pytest.mark.parametrize("form", ["e.npz", "folder"])
@pytest.mark.parametrize(("name", "how"), [("image_product", "dtype=str"), ("text_embeddings", "dtype=numpy.float32")])
def test_arrays_of_objects_are_refused_and_how_to_write_them_is_said(tmp_path, form, name, how):
    arrays = {
        "image_embeddings": np.eye(2),
        "text_embeddings": np.eye(2),
        "image_product": ["a", "b"],
        "text_product": ["a", "b"],
    }
    arrays[name] = np.array(arrays[name], dtype=object)
    if form == "e.npz":
        np.savez(tmp_path / form, **arrays)
    else:
        (tmp_path / form).mkdir()
        for key, array in arrays.items():
            np.save(tmp_path / form / key, array)
    with pytest.raises(ValueError, match=f"{name} is an array of Python objects.*{how}") as error:
        embeddings_file.load(tmp_path / form)
    assert "\n" not in str(error.value)
