"""`caption_weights` beside `captions`: how often training draws each of them, in a JSON mapping and in shards alike."""

RULE = "it takes one number >= 0 for each of captions, not all of them 0"
LARGEST = 1e100  # larger ones have no sum


def fault_of(weights: object, count: int) -> str:
    """What is wrong with the weights of so many captions; blank if nothing is."""
    if not isinstance(weights, list):
        return "it is no list"
    if len(weights) != count:
        return f"it has {len(weights)} numbers for {count} captions"
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < LARGEST:
            return (
                f"{str(weight)[:40]} is no number >= 0"
                if isinstance(weight, int | float)
                else "it holds what is no number"
            )
    return "" if any(weights) else "all of it is 0"
