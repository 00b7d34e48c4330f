"""Our numbers beside others' on the same data: CLIP_benchmark, open_clip, ranx, torchmetrics, scikit-learn.

    pip install clip-benchmark==1.6.2 ranx==0.3.21 torchmetrics==1.9.0 scikit-learn "open_clip_torch[training]==3.3.0"
    python benchmarks/agreement.py                # some minutes; the exit code is 1 if something disagrees
    python benchmarks/agreement.py --work FOLDER  # keep the catalogue, the model and the results

A small model is trained from scratch on a drawn catalogue. First both go the whole way from the same shards: evaluate_clip.py,
and CLIP_benchmark's own loader, preprocessing and `evaluate`. Then all get the same float32 embeddings: as the model makes
them, and with rows so coarse that equal scores are frequent and exact. A line says ours, theirs, the difference, and
whether they agree to 1e-6; where a definition differs it says which, and a second line shows what makes both equal.
"""

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import peers
from agreement_data import CONFIG, coarse, lay_out, make_data
from agreement_rows import CLOSE, Both, Row, apart, compare, print_row, print_summary
from evaluation import in_turns as median_seconds
from peers import KS

from clip_finetuning.retrieval import embeddings, metrics, protocols, ranking, sampled101
from clip_finetuning.retrieval.names import DIRECTIONS, title
from clip_finetuning.retrieval.pairs import pair_values
from clip_finetuning.retrieval.positives import by_group, from_pairs


def main():
    """Measure, print, and leave with 1 if something disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", metavar="FOLDER", help="keep what is made here")
    parser.add_argument("--products", type=int, default=100, help="of the drawn catalogue [100]")
    parser.add_argument("--orders", type=int, default=100, help="random orders of equal scores [100]")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed figures [3]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(options.work or folder).resolve()
        if not (work / "ours.json").exists():
            make_data(work, options.products)
        rows = []
        for row in all_rows(work, options.orders):
            print_row(row, rows[-1] if rows else None)
            rows.append(row)
    print_summary(rows)
    print_speed(options.rounds)
    sys.exit(0 if all(row.is_right() for row in rows) else 1)


# ------------------------------------------------------------------------------------------------------ all that is compared


def all_rows(work: Path, orders: int) -> Iterable[Row]:
    """Every comparison but speed."""
    e = embeddings.load(work / "embeddings.npz")
    yield from from_shards_on(work, e)
    yield from on_embeddings("as the model makes them", e, sampled101.read_or_draw(work / "candidates.npz", e, 0))
    rough = dataclasses.replace(
        e, image_embeddings=coarse(e.image_embeddings[:]), text_embeddings=coarse(e.text_embeddings[:])
    )
    yield from on_equal_scores(rough, orders)
    yield from in_every_order()


# ----------------------------------------------------------------------------------------------------- from the shards on


def from_shards_on(work: Path, e: embeddings.Embeddings) -> Iterable[Row]:
    """evaluate_clip.py's result file beside CLIP_benchmark's own way through the same shards."""
    data, peer = "from the shards on", "CLIP_benchmark"
    ours = json.loads((work / "ours.json").read_text())["protocols"]
    model, transform, tokenizer = peers.load_clip(CONFIG, work / "checkpoints" / "final_checkpoint.pt")
    model = Watched(model)
    folder = lay_out(work, "all_views", False)
    pair = peers.evaluate(model, peers.batches(folder, transform), tokenizer)
    # Its pictures are made smaller by Pillow, ours by torchvision: scores move by as much as the embeddings do.
    moved = float((torch.cat(model.images) - torch.tensor(e.image_embeddings)).norm(dim=1).max())
    assert torch.allclose(torch.cat(model.texts), torch.tensor(e.text_embeddings[e.image_text]), atol=CLOSE)
    one_view = peers.evaluate(model, peers.batches(lay_out(work, "first_views", True), transform), tokenizer)
    product = swapped(peers.evaluate(*peers.roles_swapped(model, folder, transform, tokenizer)))
    for protocol, theirs in (("pair", pair), ("one_view", one_view), ("product", product)):
        for way, (scores, right) in scored(e, protocol).items():
            best = scores.where(right, -torch.inf).amax(1, keepdim=True)
            near = ((scores - best).abs() <= 2 * moved) & ~right
            rule = f"resized by Pillow, embeddings move by {moved:.0e}"
            same_caption = protocol == "pair" and way == "image_to_text"
            how = apart("equal captions as they come; expected here") if same_caption else apart(rule, share_of(near))
            yield from compare(data, peer, protocol, ours[protocol], {way: theirs[way]}, **how)


class Watched:
    """A model that keeps the unit embeddings which it gave."""

    def __init__(self, model) -> None:
        self.model, self.images, self.texts = model, [], []

    def encode_image(self, pictures):
        """As the model's."""
        rows = self.model.encode_image(pictures)
        self.images.append(torch.nn.functional.normalize(rows, dim=-1))
        return rows

    def encode_text(self, tokens):
        """As the model's."""
        rows = self.model.encode_text(tokens)
        self.texts.append(torch.nn.functional.normalize(rows, dim=-1))
        return rows


def share_of(marked: torch.Tensor) -> float:
    """The share of queries with a mark."""
    return float(marked.any(1).double().mean())


def swapped(numbers: Both) -> Both:
    """The directions' numbers exchanged."""
    return dict(zip(numbers, reversed(numbers.values())))


# ---------------------------------------------------------------------------------------------------- the same embeddings


def scored(e: embeddings.Embeddings, protocol: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{direction: (scores (Q, G), which are right (Q, G))}, made the plain way."""
    if protocol == "pair":
        scores = torch.tensor(e.text_embeddings[e.image_text]) @ torch.tensor(e.image_embeddings).T
        right = torch.eye(len(scores), dtype=torch.bool)
        return {"text_to_image": (scores, right), "image_to_text": (scores.T, right)}
    product_of = {
        "text_to_image": (e.text_product, e.image_product),
        "image_to_text": (e.image_product, e.text_product),
    }
    made = {}
    for way, task in protocols.tasks(e, protocol).items():
        asked, answered = product_of[way]
        right = asked[task.query_items][:, None] == answered[task.gallery_items]
        made[way] = torch.tensor(task.queries) @ torch.tensor(task.gallery).T, torch.tensor(right.astype(bool))
    return made


def scored_lists(
    e: embeddings.Embeddings, lists: dict[str, np.ndarray]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same of `sampled101`, whose draws are one below the other; a candidate that is not there scores less than any."""
    images, texts = e.image_embeddings, e.text_embeddings[e.image_text]
    made = {}
    for way, (asked, answered) in {"text_to_image": (texts, images), "image_to_text": (images, texts)}.items():
        rows = lists[way].reshape(-1, lists[way].shape[-1])
        scores = torch.tensor(np.einsum("qcd,qd->qc", answered[rows], asked[rows[:, 0]]))
        right = torch.zeros(scores.shape, dtype=torch.bool)
        right[:, 0] = True
        made[way] = scores.where(torch.tensor(rows >= 0), -2.0), right
    return made


def on_embeddings(data: str, e: embeddings.Embeddings, candidates: sampled101.Candidates) -> Iterable[Row]:
    """All four protocols, where equal scores come from equal captions alone."""
    ours = {
        name: protocols.evaluate(e, name, KS, 0, candidates) for name in ("product", "pair", "one_view", "sampled101")
    }
    for protocol in ("product", "one_view"):
        theirs = swapped(peers.evaluate_rows(*captions_with_views(e, protocol)))
        yield from compare(data, "CLIP_benchmark", protocol, ours[protocol], theirs)
        yield from others(data, protocol, ours[protocol], scored(e, protocol))
    yield from on_pairs(data, e, ours["pair"])
    yield from on_candidates(data, e, candidates)
    yield from others(data, "sampled101", ours["sampled101"], scored_lists(e, candidates.lists))
    (scores, right), way = scored(e, "product")["text_to_image"], "text_to_image"
    share, above_0 = peers.ranx_recall(scores, right)
    yield from compare(
        data,
        "ranx recall",
        "product",
        ours["product"],
        {way: share},
        **apart("share of the positives found, not a hit or none"),
    )
    yield from compare(data, "ranx recall > 0", "product", ours["product"], {way: above_0})
    below = {name: value for name, value in peers.torchmetrics(scores - 1, right).items() if name in ("mrr", "map")}
    yield from compare(
        data,
        "torchmetrics, scores - 1",
        "product",
        ours["product"],
        {way: below},
        **apart("a positive that scores 0 or less is none to it"),
    )


def captions_with_views(e, protocol):
    """(captions, images, the images of each caption), for CLIP_benchmark: it knows several texts of one picture alone."""
    task = protocols.tasks(e, protocol)["text_to_image"]
    of = e.image_product[task.gallery_items]
    views = [np.flatnonzero(of == product).tolist() for product in e.text_product[task.query_items]]
    return torch.tensor(task.queries), torch.tensor(task.gallery), views


def others(data, protocol, ours, tables, **how):
    """ranx, torchmetrics and scikit-learn on scores, whatever they are of."""
    for peer in ("ranx", "torchmetrics", "scikit-learn"):
        theirs = {way: peers.ANY_SCORES[peer](*table) for way, table in tables.items()}
        yield from compare(data, peer, protocol, ours, theirs, **how)


def on_pairs(data, e, ours):
    """Each picture and its own caption. Those who share a caption, in turns: the mean of that is what we say at once."""
    images, texts = torch.tensor(e.image_embeddings), torch.tensor(e.text_embeddings[e.image_text])
    turns = list(in_turns(e.image_text))
    expected = f"mean of {len(turns)} caption orders"
    for peer, measured in PAIRS.items():
        first, *rest = (measured(images[turn], texts[turn]) for turn in turns)
        yield from compare(data, peer, "pair", ours, {DIRECTIONS[0]: first[DIRECTIONS[0]]})
        back = {DIRECTIONS[1]: first[DIRECTIONS[1]]}
        yield from compare(data, peer, "pair", ours, back, **apart("equal captions as they come; expected here"))
        mean = {
            name: statistics.fmean(numbers[DIRECTIONS[1]][name] for numbers in (first, *rest))
            for name in first[DIRECTIONS[1]]
        }
        yield from compare(data, f"{peer}, {expected}", "pair", ours, {DIRECTIONS[1]: mean})


def evaluate_pairs(images: torch.Tensor, texts: torch.Tensor) -> Both:
    """CLIP_benchmark's `evaluate` of (N, D) images and their (N, D) texts."""
    return peers.evaluate_rows(images, texts, [[number] for number in range(len(images))])


PAIRS = {"CLIP_benchmark": evaluate_pairs, "get_clip_metrics": peers.get_clip_metrics}


def in_turns(text_of: np.ndarray) -> Iterable[np.ndarray]:
    """Orders of the samples in which each of those with one caption stands in each of their places equally often."""
    places = [np.flatnonzero(text_of == text) for text in np.unique(text_of)]
    for turn in range(math.lcm(*map(len, places))):
        order = np.arange(len(text_of))
        for group in places:
            order[group] = np.roll(group, turn)
        yield order


def on_candidates(data, e, candidates):
    """CLIP_benchmark's `evaluate` once for each list of the first draw, as a data set of its own."""
    lists = {way: rows[:1] for way, rows in candidates.lists.items()}
    ours = protocols.evaluate(e, "sampled101", KS, 0, sampled101.Candidates(lists, 0))
    images, texts = torch.tensor(e.image_embeddings), torch.tensor(e.text_embeddings[e.image_text])
    for way, (asked, answered) in {"text_to_image": (texts, images), "image_to_text": (images, texts)}.items():
        hits = []
        for row in lists[way][0]:
            row = row[row >= 0]
            # The query is ten texts of the positive, the first "picture": it wants the ten best texts of each one too.
            query_of = [[0] * max(KS)] + [[]] * (len(row) - 1)
            hits.append(peers.evaluate_rows(answered[row], asked[row[:1]], query_of)["text_to_image"])
        theirs = {name: statistics.fmean(hit[name] for hit in hits) for name in hits[0]}
        yield from compare(data, "CLIP_benchmark, first draw", "sampled101", ours, {way: theirs})


# ------------------------------------------------------------------------------------------------------------ equal scores


def on_equal_scores(e: embeddings.Embeddings, orders: int) -> Iterable[Row]:
    """The product protocol where many scores are equal: theirs as it comes, in our order, and in random orders."""
    data, ours = "many equal scores", protocols.evaluate(e, "product", KS, 0)
    tables = scored(e, "product")
    lower_end = {"rule": "equal scores in its own order; ours is the lower end", "allowed": (-CLOSE, math.inf)}
    for peer, measured in peers.ANY_SCORES.items():
        # Above 0, where torchmetrics counts all of them; sixteenths stay exact.
        raw = {way: measured(scores + 2, right) for way, (scores, right) in tables.items()}
        yield from compare(data, peer, "product", ours, raw, **lower_end)
        for way, numbers in raw.items() if peer == "scikit-learn" else ():
            # Its ndcg takes the mean over equal scores, which at k = 1 is a share of hits.
            measure = f"{title(way)} expected_recall@1"
            yield Row(data, f"{peer}, ndcg@1", "product", measure, ours[way]["expected_recall@1"], numbers["ndcg@1"])
        in_ours = {way: measured(against_the_model(*table), table[1]) for way, table in tables.items()}
        yield from compare(data, f"{peer}, our order", "product", ours, in_ours)
    for way, (scores, right) in tables.items():
        drawn = [
            peers.clip_benchmark(scores[:, order], right[:, order]) for order in random_orders(scores.shape[1], orders)
        ]
        yield from compare_orders(data, "CLIP_benchmark", "product", way, ours[way], drawn)
    pair = protocols.evaluate(e, "pair", KS, 0)
    images, texts = torch.tensor(e.image_embeddings), torch.tensor(e.text_embeddings[e.image_text])
    for peer, measured in PAIRS.items():
        drawn = [measured(images[order], texts[order]) for order in random_orders(len(images), orders)]
        for way in DIRECTIONS:
            recalls = [{name: value for name, value in numbers[way].items() if "rank" not in name} for numbers in drawn]
            yield from compare_orders(data, peer, "pair", way, pair[way], recalls)


def against_the_model(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Scores without equals, in our order: of equal ones the right items come last. All are above 0."""
    order = right.int().argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return scores.shape[1] - order.argsort(dim=1).float()


def random_orders(count: int, orders: int) -> Iterable[torch.Tensor]:
    """Random orders of so many items."""
    random = torch.Generator().manual_seed(0)
    return (torch.randperm(count, generator=random) for _ in range(orders))


def compare_orders(data, peer, protocol, way, ours, drawn):
    """The mean of random orders beside our expected recall, and the lowest of them beside our recall.

    Not the lowest in `pair`: there ours is already an expected value among samples with one caption.
    """
    for name in drawn[0]:
        values = [numbers[name] for numbers in drawn]
        error = 4 * statistics.stdev(values) / len(values) ** 0.5
        how = apart(f"within 4 standard errors, {error:.1e}", error)
        peer_mean, measure = f"{peer}, mean of {len(values)} orders", f"{title(way)} expected_{name}"
        yield Row(data, peer_mean, protocol, measure, ours[f"expected_{name}"], statistics.fmean(values), **how)
        if protocol == "product":
            how = {"rule": "ours is the lower end", "allowed": (-CLOSE, math.inf)}
            peer_lowest = f"{peer}, lowest of {len(values)} orders"
            yield Row(data, peer_lowest, protocol, f"{title(way)} {name}", ours[name], min(values), **how)


def in_every_order() -> Iterable[Row]:
    """Six items, eight queries with 1 to 5 positives, scores of three values: all 720 orders, so nothing is left to chance."""
    random = np.random.default_rng(0)
    scores = random.integers(1, 4, (8, 6)).astype(np.float32)
    right = random.permuted(np.arange(6) < random.integers(1, 6, (8, 1)), axis=1)
    query, item = np.nonzero(right)
    positives = from_pairs(query, item, len(right))
    ours = metrics.summarize(ranking.rank_positives(scores, np.eye(6, dtype=np.float32), positives), KS)
    orders = np.array(list(itertools.permutations(range(6))))
    tables = [torch.tensor(np.concatenate([table[:, order] for order in orders])) for table in (scores, right)]
    for peer in ("CLIP_benchmark", "ranx", "torchmetrics"):
        theirs = peers.ANY_SCORES[peer](*tables)
        for k in (1, 5):
            yield Row(
                "every order of six items",
                peer,
                "any",
                f"expected_recall@{k}",
                ours[f"expected_recall@{k}"],
                theirs[f"recall@{k}"],
            )


# ------------------------------------------------------------------------------------------------------------------- speed


def print_speed(rounds: int, images: int = 2000, dimensions: int = 128) -> None:
    """Seconds from embeddings to numbers, in turns; ratios are of medians."""
    random = torch.Generator().manual_seed(0)
    product = torch.arange(images) // 4
    pictures = torch.nn.functional.normalize(torch.randn(images, dimensions, generator=random), dim=1)
    positives, right = by_group(product.numpy(), product.numpy()), product[:, None] == product
    text_of, contenders = (
        np.arange(images),
        {
            "ours": lambda: metrics.summarize(ranking.rank_positives(pictures, pictures, positives), KS),
            "CLIP_benchmark's recall_at_k": lambda: peers.clip_benchmark(pictures @ pictures.T, right),
            "ranx, of arrays that NumPy sorts": lambda: peers.ranx_sorted(pictures @ pictures.T, right),
            "torchmetrics": lambda: peers.torchmetrics(pictures @ pictures.T, right),
            "ours, pair in both directions": lambda: pair_values(pictures, pictures, text_of, KS),
            "get_clip_metrics": lambda: peers.get_clip_metrics(pictures, pictures),
        },
    )
    contenders["ranx, of arrays that NumPy sorts"]()  # it compiles at first
    seconds = median_seconds(contenders, rounds)
    print(f"\n{images:,} queries x {images:,} items of {dimensions} numbers, four right ones each; {rounds} rounds")
    base = ""
    for name, median in seconds.items():
        base = name if name.startswith("ours") else base
        print(f"  {name:34}{median:9.3f} s{median / seconds[base]:9.1f} times {base}")


if __name__ == "__main__":
    main()
