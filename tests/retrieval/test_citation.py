"""The line to cite is the same wherever the same is measured, and another where anything else is."""

import numpy as np

from clip_finetuning.retrieval import citation, sampled101
from clip_finetuning.retrieval.results import measure_embeddings
from tests.helpers import embedded_catalogue

PROTOCOLS = ["product", "pair", "sampled101"]
CITED = "product/v1 strict sha256:"


def cites(protocols=PROTOCOLS, **changes):
    found = measure_embeddings(embedded_catalogue(**changes), protocols, (1, 5))
    assert found["cite"] == found["protocols"][protocols[0]]["cite"]
    return {name: protocol["cite"] for name, protocol in found["protocols"].items()}


def test_the_same_data_and_protocol_are_cited_alike_on_any_machine():
    """Literally: whatever changes these lines changes what older papers cite."""
    assert cites() == {
        "product": "product/v1 strict sha256:09d9fa8103c7546c",
        "pair": "pair/v2 strict sha256:09d9fa8103c7546c",
        "sampled101": "sampled101/v2 strict sha256:71069dbbc6322a39",
    }


def test_a_model_changes_nothing_of_the_line():
    assert cites(noise=3.0, dimensions=8, seed=0) == cites()


def test_other_samples_captions_products_or_lists_are_cited_otherwise():
    lines = [
        cites(["product"], **changes)["product"]
        for changes in ({}, {"products": 5}, {"views": 2}, {"captions": [f"text {number}" for number in range(6)]})
    ]
    assert len(set(lines)) == 4 and all(line.startswith(CITED) for line in lines)
    embeddings = embedded_catalogue(products=12)
    drawn = [
        measure_embeddings(embeddings, ["sampled101"], (1,), seed, sampled101.draw_candidates(embeddings, seed))["cite"]
        for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]
    assert drawn[0] == measure_embeddings(embeddings, ["sampled101"], (1,), 0)["cite"]


def test_the_hash_is_of_values_not_of_how_they_are_held():
    rows = np.array([[1, 2], [3, -1]])
    hashed = citation.data_hash("f", {"a": rows, "b": np.array(["x", "yz"], object)})
    assert hashed == citation.data_hash("f", {"b": np.array(["x", "yz"]), "a": np.asfortranarray(rows.astype(">i4"))})
    others = [
        {"a": rows.T, "b": ["x", "yz"]},
        {"a": rows, "b": ["xy", "z"]},
        {"a": rows, "c": ["x", "yz"]},
        {"a": rows},
        {},
    ]
    assert len({hashed, *(citation.data_hash("f", other) for other in others)}) == 6
    assert citation.data_hash("f", {}) == "f"


def test_older_results_are_cited_by_what_they_say():
    old = {"protocols": {"product": {}, "pair": {}, "sampled101": {}}, "data": {"fingerprint": "1a2b"}, "rules": 2}
    assert citation.of(old, "product") == f"{CITED}1a2b" and citation.of(old, "pair") == "pair/v2 strict sha256:1a2b"
    assert citation.of(old, "sampled101") == ""  # by which lists, nobody knows
    del old["rules"]
    assert citation.of(old, "pair") == "pair/v1 strict sha256:1a2b"
    assert citation.of({"protocols": {"pair": {"cite": "as written"}}}, "pair") == "as written"
