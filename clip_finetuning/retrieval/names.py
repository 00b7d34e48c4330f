"""What protocols, directions and numbers are called: in result files, in tables and pages, on the command line."""

DIRECTIONS = ("text_to_image", "image_to_text")
DIRECTIONS_OF = dict.fromkeys(("product", "pair", "one_view", "sampled101"), DIRECTIONS)  # each protocol's
PROTOCOLS = tuple(DIRECTIONS_OF)
# A protocol's version changes with what counts as a hit or is asked: numbers of two versions are never compared.
IN_SECOND = ("pair", "one_view", "sampled101")
FIRST_VERSION = "the same caption of another product is a miss"  # in the first one of those
VERSIONS = dict.fromkeys(PROTOCOLS, 1) | dict.fromkeys(IN_SECOND, 2)
TRUTHS = ("strict", "tolerant", "without")  # how look-alikes of other products count; strict is the headline
KS = (1, 5, 10)  # of Recall@k, where nobody asks for others
OTHER_NUMBERS = {"median_rank": "median rank", "mrr": "MRR", "map": "mAP"}  # beside the recalls, as tables call them


def title(direction: str) -> str:
    """A direction as one reads it: text->image."""
    return direction.replace("_to_", "->")


def label(number: str) -> str:
    """A number of a direction as one reads it: Recall@10 of `recall@10`, mAP of `map`."""
    return OTHER_NUMBERS.get(number) or f"Recall{number.removeprefix('recall')}"


def recalls(numbers: dict) -> list[str]:
    """The recalls among the numbers of a direction, or of its products: recall@1, recall@5 ..."""
    return [name for name in numbers if name.startswith("recall@")]
