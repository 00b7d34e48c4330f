"""Codes of vectors and the scan over them, on vectors of every kind: recall, copies, sizes, hostile arrays."""

import numpy as np
import pytest

from clip_finetuning.search import scan


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(kind, dimensions, count=3000):
    """(vectors, queries): without neighbourhoods, in a narrow cone that queries share, with outweighing numbers ..."""
    random = np.random.default_rng(1)
    vectors, queries = random.normal(size=(count, dimensions)), random.normal(size=(40, dimensions))
    if kind == "cone":
        axis = 10 * random.normal(size=dimensions)
        vectors, queries = vectors + axis, queries + 0.3 * axis
    elif kind == "outweighed":
        weights = np.exp(1.2 * random.normal(size=dimensions))
        vectors, queries = vectors * weights, queries * weights
    elif kind == "flat":
        basis = random.normal(size=(8, dimensions))
        vectors, queries = vectors[:, :8] @ basis, queries[:, :8] @ basis
    return unit(vectors), unit(queries)


def scan_of(vectors):
    quantizer = scan.trained(vectors)
    codes, code_of = scan.distinct(scan.encoded(quantizer, vectors))
    scan.check(quantizer, codes, code_of, vectors.shape[1])
    return scan.Scan(quantizer, codes, code_of)


def recall(found, vectors, queries, count=10):
    """The share of each query's true first ten that is among the rows found."""
    true = np.argsort(-(queries @ vectors.T), axis=1)[:, :count]
    return np.mean([np.isin(best, rows).mean() for best, rows in zip(true, found)])


@pytest.mark.parametrize("kind", ["random", "cone", "outweighed", "flat"])
def test_few_candidates_hold_the_first_ten(kind):
    vectors, queries = vectors_of(kind, 64)
    made = scan_of(vectors)
    alone = [made.nearest(query, 200) for query in queries]
    assert recall(alone, vectors, queries) >= 0.98
    assert all(len(rows) >= 200 and (np.diff(rows) > 0).all() for rows in alone)
    together = made.nearest_of_each(queries, 200)
    assert np.mean([np.isin(one, other).mean() for one, other in zip(alone, together)]) > 0.97


@pytest.mark.parametrize("dimensions", [1, 2, 3, 7, 33])
def test_vectors_of_any_size_are_coded(dimensions):
    vectors, queries = vectors_of("random", dimensions, 500)
    made = scan_of(vectors)
    assert recall([made.nearest(query, 250) for query in queries], vectors, queries) >= 0.99


def test_a_scan_of_some_pictures_finds_these_alone():
    vectors, queries = vectors_of("random", 32)
    vectors[1::2] = vectors[::2]  # each code twice, once among the chosen
    chosen = np.arange(1, 3000, 4)
    part = scan_of(vectors).within(chosen)
    found = [part.nearest(query, 200) for query in queries]
    assert all(np.isin(rows, chosen).all() for rows in found)
    assert recall([np.searchsorted(chosen, rows) for rows in found], vectors[chosen], queries) >= 0.99


def test_one_vector_over_and_over_is_one_code():
    vectors = np.tile(unit(np.ones((1, 6))), (400, 1))
    made = scan_of(vectors)
    assert len(made) == 1 and np.array_equal(made.nearest(vectors[0], 32), np.arange(400))
    assert scan.tuned(made, vectors, np.arange(400), vectors[:5]) == (32, 1.0, 5)


def test_the_reach_is_the_least_that_finds_enough(monkeypatch):
    vectors, queries = vectors_of("random", 64)
    made, products = scan_of(vectors), np.arange(3000)
    monkeypatch.setattr(scan, "FARTHEST", 2)
    found = scan.tuned(made, vectors, products, queries)
    assert found.recall >= scan.WANTED and found.queries == 40
    less = scan.REACHES[scan.REACHES.index(found.reach) - 1]
    assert recall(made.nearest_of_each(queries, less), vectors, queries) < scan.WANTED
    assert recall(made.nearest_of_each(queries, found.reach), vectors, queries) == pytest.approx(found.recall)
    monkeypatch.setattr(scan, "FARTHEST", 1000)
    assert scan.tuned(made, vectors, products, queries).reach is None


def test_the_reach_counts_products_by_their_best_picture(monkeypatch):
    """Sixteen views a product: the first ten products lie deeper than the first ten pictures."""
    random = np.random.default_rng(2)
    centres = random.normal(size=(300, 32))
    vectors = unit(np.repeat(centres, 16, axis=0) + 0.1 * random.normal(size=(4800, 32)))
    made, queries = scan_of(vectors), unit(random.normal(size=(30, 32)))
    monkeypatch.setattr(scan, "FARTHEST", 2)
    pictures = scan.tuned(made, vectors, np.arange(4800), queries)
    products = scan.tuned(made, vectors, np.arange(4800) // 16, queries)
    assert products.reach > pictures.reach


def test_faiss_keeps_the_threads_it_had():
    import faiss

    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        vectors, _ = vectors_of("random", 8, 300)
        scan_of(vectors).nearest(vectors[0], 5)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda quantizer, codes, code_of: (quantizer[1:], codes, code_of), "a quantiser has shape"),
        (lambda quantizer, codes, code_of: (quantizer * np.nan, codes, code_of), "or holds NaN"),
        (lambda quantizer, codes, code_of: (quantizer, codes[:, 1:], code_of), "codes have 3 bytes"),
        (lambda quantizer, codes, code_of: (quantizer, codes[:-1], code_of), "name codes that are not there"),
        (lambda quantizer, codes, code_of: (quantizer, codes[:0], code_of), "name codes that are not there"),
        (lambda quantizer, codes, code_of: (quantizer, codes, code_of - 1), "name codes that are not there"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    vectors, _ = vectors_of("random", 15, 300)
    quantizer = scan.trained(vectors)
    codes, code_of = scan.distinct(scan.encoded(quantizer, vectors))
    with pytest.raises(ValueError, match=message):
        scan.check(*change(quantizer, codes, code_of), 15)


def test_codes_of_somebody_elses_bytes_are_scanned_without_harm():
    """Any byte is two numbers of centres, and any centre is a number: wrong candidates at worst."""
    random = np.random.default_rng(3)
    vectors, queries = vectors_of("random", 10, 300)
    quantizer = scan.trained(vectors) * np.float32(1e30)
    made = scan.Scan(quantizer, random.integers(0, 256, (300, 3), dtype=np.uint8), np.arange(300))
    for query in queries:
        rows = made.nearest(query, 50)
        assert len(rows) <= 50 and np.isin(rows, np.arange(300)).all()
