"""The line to cite: by which protocol, in which version, by which truth and on which data a number was measured.

    product/v1 strict sha256:1a2b3c4d5e6f7a8b

The hash names the samples by their keys, products and captions in their order, and whatever else decides what is ranked
against what, such as frozen lists of candidates. Paths, seeds of intervals, embeddings and the pictures' pixels are no
part of it, so the same data gives the same line on any machine.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_finetuning.retrieval import names

Columns = Mapping[str, np.ndarray]  # {name: whole numbers of any shape, or strings (N,)}


def line(protocol: str, fingerprint: str, truth: str = "strict", also: Columns | None = None) -> str:
    """The line of a protocol on samples of a fingerprint; `also` is what else is measured on."""
    return f"{protocol}/v{names.VERSIONS[protocol]} {truth} sha256:{data_hash(fingerprint, also or {})}"


def data_hash(fingerprint: str, also: Columns) -> str:
    """16 hexadecimal digits: the fingerprint of samples itself, or the hash of it and of further columns."""
    if not also:
        return fingerprint
    digest = hashlib.sha256(fingerprint.encode())
    for name in sorted(also):
        column = np.asarray(also[name])
        digest.update(f"\1{name} {column.shape}\1".encode())
        if column.dtype.kind in "iu":
            digest.update(column.astype("<i8").tobytes())
        else:
            digest.update("\0".join(column.ravel().tolist()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def version_of(results: Mapping[str, Any], protocol: str) -> int:
    """In which version of a protocol results are measured; those from before versions had names say it by `rules`."""
    stored = results["protocols"].get(protocol)
    if isinstance(stored, Mapping) and "version" in stored:
        return stored["version"]
    return 2 if results.get("rules", 1) > 1 and protocol in names.IN_SECOND else 1


def title(results: Mapping[str, Any], protocol: str) -> str:
    """`pair/v2`: a protocol as these results measure it."""
    return f"{protocol}/v{version_of(results, protocol)}"


def stored_line(results: Mapping[str, Any], protocol: str) -> str:
    """The line of a protocol that results hold; "" of older ones, and of those that are still to be measured."""
    stored = results["protocols"].get(protocol)
    return stored.get("cite", "") if isinstance(stored, Mapping) else ""


def of(results: Mapping[str, Any], protocol: str) -> str:
    """The line of a protocol of results: that which they hold, else what older ones were measured on; "" if unknown."""
    stored, fingerprint = results["protocols"][protocol], results.get("data", {}).get("fingerprint")
    if "cite" in stored or not fingerprint:
        return stored.get("cite", "")
    return "" if protocol == "sampled101" else f"{title(results, protocol)} strict sha256:{fingerprint}"
