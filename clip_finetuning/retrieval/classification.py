"""The numbers of a classification: accuracy beside chance and majority, its intervals over products, its confusions."""

from typing import Any

import numpy as np

from clip_finetuning.retrieval import intervals

TOPS = (1, 5)  # of top-k accuracy
CONFUSIONS = 20  # that are kept
MATRIX_CLASSES = 20  # up to which the whole matrix is kept
FEWEST_PRODUCTS = 5  # of a class whose numbers tell something: confusions of smaller ones come after the others


def measure(scores: np.ndarray, labels: np.ndarray, classes: list[str], products: np.ndarray) -> dict[str, Any]:
    """Numbers of (N, C) scores, (N,) numbers of the right classes, C names of classes, (N,) product ids.

    `top1` and `top5` are shares of the images, `macro` is top-1 averaged over classes, which gives each the same weight,
    and `weighted` the same weighted by their images, which is top-1 again; `f1` has both averages of F1, as scikit-learn's
    `f1_score` calls them. A tie counts against the model. `by_product` has a row for each product in each of its classes.
    """
    own = scores[np.arange(len(labels)), labels]
    rank = (scores >= own[:, None]).sum(1)
    answers = _answers(scores, labels, rank)
    matrix = np.zeros((len(classes), len(classes)), np.int64)  # right class, answer
    np.add.at(matrix, (labels, answers), 1)
    table = _by_product(rank, labels, classes, products)
    numbers = {f"top{k}": float((rank <= k).mean()) for k in TOPS}
    asked, right = matrix.sum(1), matrix.diagonal()
    return {
        "classes": len(classes),
        "images": len(labels),
        "products": len(np.unique(products)),
        **numbers,
        "macro": float((right / asked).mean()),
        "weighted": numbers["top1"],
        "f1": _f1(matrix),
        "chance": {f"top{k}": min(1.0, k / len(classes)) for k in TOPS} | {"macro": 1 / len(classes)},
        "majority": {"top1": float(asked.max() / asked.sum()), "class": classes[int(asked.argmax())]},
        "intervals": _intervals(table, classes),
        "confusion": _confusion(matrix, classes, table),
        "by_product": table,
    }


def _answers(scores, labels, rank):
    """(N,) the class that each image is taken for: of equal scores another than the right one."""
    others = scores.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.where(rank == 1, labels, others.argmax(1))


def _by_product(rank, labels, classes, products):
    """Hits and queries of each product in each of its classes, as `by_product` of a protocol."""
    ids, codes = np.unique(products, return_inverse=True)
    pairs, rows = np.unique(codes * len(classes) + labels, return_inverse=True)
    return {
        "product": [str(ids[pair // len(classes)]) for pair in pairs],
        "category": [classes[pair % len(classes)] for pair in pairs],
        "queries": np.bincount(rows).tolist(),
        **{f"top{k}": np.bincount(rows, rank <= k).tolist() for k in TOPS},
    }


def _f1(matrix):
    """F1 of each class, averaged alike or by its images; a class that is never right has 0."""
    asked = matrix.sum(1)
    f1 = 2 * matrix.diagonal() / (asked + matrix.sum(0))
    return {"macro": float(f1.mean()), "weighted": float((f1 * asked).sum() / asked.sum())}


def _intervals(table, classes):
    """95 % intervals over products; that of the mean over classes adds up theirs (MOVER, Zou and Donner 2008)."""
    counts = np.array(table["queries"])
    found = {f"top{k}": intervals.share_interval(np.array(table[f"top{k}"]), counts, 1.0) for k in TOPS}
    hits, category = np.array(table["top1"]), np.array(table["category"], dtype=object)
    shares, bounds = [], []
    for name in classes:
        rows = category == name
        shares.append(hits[rows].sum() / counts[rows].sum())
        bounds.append(intervals.share_interval(hits[rows], counts[rows], 1.0))
    share, (low, high) = np.array(shares), np.array(bounds).T
    middle = share.mean()
    below, above = (float(np.sqrt((width**2).sum()) / len(classes)) for width in (share - low, high - share))
    return found | {"macro": [max(0.0, middle - below), min(1.0, middle + above)]}


def _confusion(matrix, classes, table):
    """The most frequent mistakes, those that take the largest share of their class first; all of it for few classes."""
    products = {name: table["category"].count(name) for name in classes}
    asked = matrix.sum(1)
    wrong = [(int(a), int(b)) for a, b in zip(*np.nonzero(matrix)) if a != b]
    wrong.sort(
        key=lambda pair: (
            products[classes[pair[0]]] < FEWEST_PRODUCTS,
            -matrix[pair] / asked[pair[0]],
            -matrix[pair],
            pair,
        )
    )
    top = [
        {
            "class": classes[a],
            "taken_for": classes[b],
            "images": int(matrix[a, b]),
            "share": float(matrix[a, b] / asked[a]),
        }
        for a, b in wrong[:CONFUSIONS]
    ]
    whole = {"names": classes, "matrix": matrix.tolist()} if len(classes) <= MATRIX_CLASSES else {}
    return {"top": top, "kinds": len(wrong), **whole}
