"""Whether two results can be compared: the same data, and protocols that both measured in one version."""

from typing import Any

from clip_finetuning.retrieval import citation, names
from clip_finetuning.runtime.text import printable


def check(first: dict[str, Any], second: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(protocols in which two results can be compared, why others are left out). Raises ValueError if none can be.

    Of a result that is still to be measured, its name, the fingerprint of its data, and its protocols with their versions
    are enough.
    """
    called = [printable(results["name"]) for results in (first, second)]
    if not same_data(first, second):
        raise ValueError(f"{called[0]} and {called[1]} are results of different data and cannot be compared")
    if judgements_of(first) != judgements_of(second):
        raise ValueError(f"{called[0]} and {called[1]} go by other judgements; measure both with the same ones")
    protocols = [results.get("protocols", {}) for results in (first, second)]
    shared = [name for name in protocols[0] if name in protocols[1]]
    if not shared:
        raise ValueError(f"{called[0]} and {called[1]} have no protocol in common")
    different = [name for name in shared if not _same_rules(first, second, name)]
    reasons = _why_different(first, second, different)
    if different == shared:
        raise ValueError("; ".join(reasons))
    for own, others, lacking in zip(protocols, protocols[::-1], called[::-1]):
        if missing := [name for name in own if name not in others]:
            reasons.append(f"{', '.join(missing)}: {lacking} lacks {'it' if len(missing) == 1 else 'them'}")
    return [name for name in shared if name not in different], reasons


def comparable(first: dict[str, Any], second: dict[str, Any], protocol: str) -> bool:
    """Whether two results are of the same data and count hits alike in a protocol, which both have."""
    shared = all(protocol in results["protocols"] for results in (first, second))
    alike = same_data(first, second) and judgements_of(first) == judgements_of(second)
    return shared and alike and _same_rules(first, second, protocol)


def same_data(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two results are known to be of the same samples."""
    fingerprints = [results.get("data", {}).get("fingerprint") for results in (first, second)]
    return fingerprints[0] is not None and fingerprints[0] == fingerprints[1]


def judgements_of(results: dict[str, Any]) -> str:
    """Which judgements of people a result goes by, blank for none."""
    return results.get("judgements", {}).get("fingerprint", "")


def _same_rules(first, second, protocol):
    return (
        _same_version(first, second, protocol)
        and _same_captions(first, second)
        and _same_questions(first, second, protocol)
    )


def _same_version(first, second, protocol):
    return citation.version_of(first, protocol) == citation.version_of(second, protocol)


def _same_captions(first, second):
    """Whether both take captions in two spellings for one, as results from before there were rules do not."""
    return first.get("num_captions") == second.get("num_captions")


def _same_questions(first, second, protocol):
    """Whether both ask the same texts, or for the same kinds, as far as they say so: of the same samples they need not."""
    if protocol in names.STANDARD:
        return True
    lines = [citation.stored_line(results, protocol) for results in (first, second)]
    return "" in lines or lines[0] == lines[1]


def _why_different(first, second, protocols):
    """A sentence for each way in which protocols that both have differ."""
    reasons, pairs = [], [(first, second), (second, first)]
    for older, newer in pairs:
        mine = [name for name in protocols if citation.version_of(older, name) < citation.version_of(newer, name)]
        if mine:
            versions = [", ".join(citation.title(results, name) for name in mine) for results in (older, newer)]
            oldest = any(citation.version_of(older, name) == 1 for name in mine)
            why = f" ({names.FIRST_VERSION})" if oldest else ""
            called = printable(older["name"])
            reasons.append(
                f"{called} measures {versions[0]}{why}, {printable(newer['name'])} {versions[1]}; measure {called} anew"
            )
    others = [name for name in protocols if not _same_questions(first, second, name)]
    if others:
        reasons.append(f"{', '.join(others)}: the two ask other texts, or their categories or attributes are others")
    mine = [name for name in protocols if _same_version(first, second, name) and not _same_captions(first, second)]
    if mine:
        older = max(first, second, key=lambda results: results.get("num_captions", 0))
        reasons.append(
            f"{printable(older['name'])} counts a caption in two spellings as two in {', '.join(mine)}; measure it anew"
        )
    return reasons
