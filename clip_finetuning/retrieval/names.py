"""What protocols, directions and numbers are called: in result files, in tables and pages, on the command line."""

DIRECTIONS = ("text_to_image", "image_to_text")
STANDARD = ("product", "pair", "one_view", "sampled101")  # what any data set with captions can be asked
BETWEEN_IMAGES = ("image_to_image", "same_category", "same_attributes")
# Protocols whose texts are not the captions, and the kind of these texts (see `query_texts`).
QUERIES_OF = {"short_queries": "short", "category_to_product": "category", "all_captions": "wording"}
OF_CATEGORIES = "category"  # the kind of texts that belong to categories, not to products
DIRECTIONS_OF = {  # each protocol's
    **dict.fromkeys(STANDARD, DIRECTIONS),
    **dict.fromkeys(BETWEEN_IMAGES, ("image_to_image",)),
    **dict.fromkeys(QUERIES_OF, DIRECTIONS),
    "category_to_product": ("text_to_image",),
}
PROTOCOLS = tuple(DIRECTIONS_OF)
# A protocol's version changes with what counts as a hit or is asked: numbers of two versions are never compared.
IN_SECOND = ("pair", "one_view", "sampled101")
FIRST_VERSION = "the same caption of another product is a miss"  # in the first one of those
VERSIONS = dict.fromkeys(PROTOCOLS, 1) | dict.fromkeys(IN_SECOND, 2)
TRUTHS = ("strict", "tolerant", "without")  # how look-alikes of other products count; strict is the headline
KS = (1, 5, 10)  # of Recall@k, where nobody asks for others
OTHER_NUMBERS = {"median_rank": "median rank", "mrr": "MRR", "map": "mAP"}  # beside the recalls, as tables call them
WITHIN_R = {"map_at_r": "mAP@R", "r_precision": "R-precision"}


def title(direction: str) -> str:
    """A direction as one reads it: text->image."""
    return direction.replace("_to_", "->")


def label(number: str) -> str:
    """A number of a direction as one reads it: Recall@10 of `recall@10`, mAP of `map`."""
    kind, _, k = number.partition("@")
    kinds = {"recall": "Recall", "expected_recall": "expected R", "ndcg": "nDCG", "graded_ndcg": "graded nDCG"}
    return (OTHER_NUMBERS | WITHIN_R).get(number) or f"{kinds[kind]}@{k}"


def recalls(numbers: dict) -> list[str]:
    """The recalls among the numbers of a direction, or of its products: recall@1, recall@5 ..."""
    return [name for name in numbers if name.startswith("recall@")]


def beside(numbers: dict) -> list[str]:
    """What a table shows of a direction beside the recalls: of nDCG@k the largest k; expected recalls where ties matter."""
    expected = [f"expected_{name}" for name in recalls(numbers)]
    shown = [name for name in expected if abs(numbers.get(name, 0) - numbers[name.removeprefix("expected_")]) >= 5e-5]
    gains = [name for kind in ("ndcg@", "graded_ndcg@") for name in [n for n in numbers if n.startswith(kind)][-1:]]
    return [name for name in (*shown, *OTHER_NUMBERS, *WITHIN_R, *gains) if name in numbers]
