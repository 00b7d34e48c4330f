"""Turn a raw catalogue into the JSON mapping that create_webdataset.py reads.

    python clip_prep.py                                  # train: full_train_info_PAI/ + extracted_train_images/
    python clip_prep.py --split valid
    python clip_prep.py --split all --data-dir /data/fashiongen

Writes `clip_dataset_{split}.json`: a list of objects with image_path, image_name, caption, category and product_id, and
subcategory and captions where there are any. The same catalogue gives the same bytes on any machine.
"""

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

import settings
from atomic_write import atomic_write
from catalogue_sources import RowError, pai_rows

SPLITS = ("train", "valid")
EXAMPLES = 3  # skipped rows shown for each reason


def create_clip_dataset(split, output, data_dir="."):
    """Write the JSON mapping of one split and return its entries.

    Raises FileNotFoundError for a missing folder and ValueError if no row can be used.
    """
    entries, skipped = [], defaultdict(list)
    for row in tqdm(pai_rows(data_dir, split), unit=" rows", desc=split, disable=None):
        if isinstance(row, tuple) and isinstance(row[-1], RowError):
            skipped[row[1].reason].append(row[0])
        else:
            entries.append(entry(row))
    print_skipped(skipped)
    if not entries:
        reasons = ", ".join(f"{len(names)} {reason}" for reason, names in skipped.items()) or "there are no pickles"
        raise ValueError(f"nothing usable for split '{split}' in {data_dir}: {reasons}")
    with atomic_write(output) as temporary:
        temporary.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print_summary(entries, output)
    return entries


def entry(row):
    """The JSON object of a row."""
    fields = {
        "image_path": row.image_path,
        "image_name": row.image_name,
        "caption": row.captions[0],
        "category": row.category,
        "product_id": row.product_id,
    }
    if row.subcategory:
        fields["subcategory"] = row.subcategory
    if len(row.captions) > 1:
        fields["captions"] = list(row.captions)
    return fields


def print_skipped(skipped):
    """One line a reason, with a few examples."""
    for reason, names in sorted(skipped.items()):
        examples = ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
        print(f"skipped {len(names):,}: {reason} ({examples})")


def print_summary(entries, output):
    """What the mapping holds."""
    views = Counter(Counter(e["product_id"] for e in entries).values())
    words = [len(e["caption"].split()) for e in entries]
    categories = Counter(e["category"] for e in entries)
    print(f"{output}: {len(entries):,} images of {sum(views.values()):,} products in {len(categories)} categories")
    print("views per product: " + ", ".join(f"{n} x {count:,}" for n, count in sorted(views.items())))
    print(f"caption length: {min(words)} to {max(words)} words, median {statistics.median(words):g}")


def main(argv=None):
    """Write the JSON mapping of one split, or of all."""
    parser = settings.Parser(__doc__, ["DATA_DIR"])
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="train", help="which split [train]")
    parser.add_argument(
        "--output", help="the JSON file, with {split} in it for --split all [clip_dataset_{split}.json]"
    )
    args = parser.parse_args(argv)
    output = args.output or "clip_dataset_{split}.json"
    if args.split == "all" and "{split}" not in output:
        parser.error(f"--output {output} would be written twice: with --split all it needs {{split}} in it")
    for split in SPLITS if args.split == "all" else (args.split,):
        create_clip_dataset(split, Path(output.replace("{split}", split)), args.data_dir)


if __name__ == "__main__":
    settings.run(main)
