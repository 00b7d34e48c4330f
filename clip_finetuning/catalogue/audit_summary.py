"""The report of an audit in a screenful of lines."""

from collections.abc import Sequence

from clip_finetuning.catalogue.audit import EXAMPLES, EXTREME, TINY
from clip_finetuning.runtime.text import printable, text_of

SHOWN = 60  # characters of an example


def summary(report: dict) -> str:
    """The report in a screenful of lines."""
    lines = []
    for name, file in report["files"].items():
        lines.append(
            f"{name}: {file['entries']:,} entries, {file['usable']:,} usable, {file['products']:,} products, "
            f"{file['captions']:,} captions"
        )
        lines += [line(f"entries: {reason}", found, "") for reason, found in file["unusable_entries"].items()]
        lines += [f"  {remark}" for remark in file["remarks"]]
    if len(report["files"]) > 1:
        lines.append(line("LEAKAGE: products in more than one file", report["leakage"]["products"], "product_id"))
        lines.append(line("LEAKAGE: identical pictures in more than one file", report["leakage"]["pictures"], "images"))
    near = report["near_duplicates"]
    if near is None:
        lines.append("  near-duplicate pictures: not looked for (pip install ImageHash)")
    else:
        if len(report["files"]) > 1:
            lines.append(line("near-duplicate pictures across files", near["across_files"], "images"))
        lines.append(line("near-duplicate pictures of different products", near["other_product"], "images"))
        lines.append(line("near-duplicate pictures of one product", near["same_product"], "images"))
    lines += [
        line("identical pictures of different products", report["pictures_of_several_products"], "image"),
        line("pictures more than once in one file", report["repeated_pictures"], "images"),
        line("captions of different products", report["captions_of_several_products"], "caption"),
        line("captions over 77 tokens, about", report["captions_over_77_tokens"], "caption"),
        line("captions with markup", report["captions_markup"], "caption"),
        line("captions that are only a file name or an id", report["captions_only_a_name"], "caption"),
        line(
            "captions of another language than most, by script and frequent words",
            report["captions_other_language"],
            "caption",
        ),
        line(f"pictures under {TINY} pixels", report["tiny_pictures"], "image"),
        line(f"pictures longer than {EXTREME} : 1", report["extreme_pictures"], "image"),
    ]
    lines += [
        line(f"unusable pictures: {reason}", found, "") for reason, found in report["unreadable_pictures"].items()
    ]
    return "\n".join(lines + category_lines(report["categories"], len(report["files"])))


def line(title: str, found: dict, field: str) -> str:
    """One finding: its count and a few examples."""
    examples = []
    for item in found["listed"][:EXAMPLES] if found["count"] else []:
        shown = item[field] if field else item
        if isinstance(shown, dict):
            shown = [paths[0] for paths in shown.values()]
        examples.append(" = ".join(told_apart(shown)) if isinstance(shown, list) else cut_between_words(text_of(shown)))
    more = ", ..." if found["count"] > EXAMPLES else ""
    return printable(f"  {found['count']:>9,}  {title}" + (f" ({', '.join(examples)}{more})" if examples else ""))


def told_apart(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths, whole folders and names, by which they differ."""
    parts = [text_of(path).split("/") for path in dict.fromkeys(paths)]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            break
    return ends


def cut_between_words(text: str) -> str:
    """The beginning of a long text, or the end of a long path, in whole words or folders."""
    if len(text) <= SHOWN:
        return text
    if " " in text[:SHOWN]:
        return text[:SHOWN].rpartition(" ")[0] + " ..."
    end = text.split("/")
    while len(end) > 1 and len("/".join(end)) > SHOWN:
        del end[0]
    return "/".join(end)


def category_lines(categories: dict[str, dict], files: int, shown: int = 8) -> list[str]:
    """The largest categories, and how many are in some of the files only."""
    lines = [f"{len(categories):,} categories"]
    for category, counts in list(categories.items())[:shown]:
        images, products = (sum(count[key] for count in counts.values()) for key in ("images", "products"))
        lines.append(f"  {images:>9,}  {printable(category) or 'none'}, {products:,} products")
    lines += [f"  {'...':>9}"] if len(categories) > shown else []
    partial_ones = sum(len(counts) < files for counts in categories.values())
    if partial_ones:
        lines.append(f"  {partial_ones:>9,}  are not in every file")
    return lines
