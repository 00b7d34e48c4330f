"""The embeddings file: a round trip, anybody's minimal file, and files that are not one."""

import numpy as np
import pytest

import embeddings as embeddings_file
from tests.helpers import embedded_catalogue

FOUR = ("image_embeddings", "text_embeddings", "image_product", "text_product")


def test_what_is_saved_is_loaded(tmp_path):
    mine = embedded_catalogue(noise=0.2)
    embeddings_file.save(tmp_path / "e.npz", mine)
    theirs = embeddings_file.load(tmp_path / "e.npz")
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
    np.savez(tmp_path / "objects.npz", image_embeddings=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no .npz file of plain arrays"):
        embeddings_file.load(tmp_path / "objects.npz")
