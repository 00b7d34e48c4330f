"""Both losses against open_clip's where all products differ, and against their formulas, term by term, where not."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from clip_finetuning.training.losses import clip_loss, siglip_loss

N, D = 12, 16
PRODUCTS = torch.tensor([5, 5, 5, 1, 2, 2, 9, 7, 7, 7, 7, 0])
SCALE, BIAS = torch.tensor(14.0), torch.tensor(-10.0)


def embeddings(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, N, D, generator=generator)
    return [r.requires_grad_() for r in torch.nn.functional.normalize(rows, dim=-1)]


@pytest.mark.parametrize(("ours", "theirs"), [(clip_loss, ClipLoss()), (siglip_loss, SigLipLoss())])
def test_distinct_products_give_open_clips_loss_and_gradients(ours, theirs):
    found, expected = embeddings(), embeddings()
    scales = [SCALE.clone().requires_grad_() for _ in range(2)]
    value = ours(*found, torch.arange(N), scales[0], BIAS)
    reference = theirs(*expected, scales[1], BIAS)
    torch.testing.assert_close(value, reference, atol=1e-6, rtol=0)
    value.backward()
    reference.backward()
    for tensor, other in zip([*found, scales[0]], [*expected, scales[1]]):
        torch.testing.assert_close(tensor.grad, other.grad, atol=1e-6, rtol=0)


def test_clip_loss_is_its_formula():
    images, texts = embeddings()
    logits = (SCALE * images @ texts.T).tolist()
    total = 0.0
    for i in range(N):
        views = [p for p in range(N) if PRODUCTS[p] == PRODUCTS[i]]
        for row in (logits[i], [logits[j][i] for j in range(N)]):
            log_denominator = math.log(sum(math.exp(x) for x in row))
            total -= sum(row[p] - log_denominator for p in views) / len(views) / N / 2
    assert clip_loss(images, texts, PRODUCTS, SCALE).item() == pytest.approx(total, abs=1e-5)


def test_siglip_loss_is_its_formula():
    images, texts = embeddings()
    logits = (SCALE * images @ texts.T + BIAS).tolist()
    total = 0.0
    for i in range(N):
        for j in range(N):
            sign = 1 if PRODUCTS[i] == PRODUCTS[j] else -1
            total += math.log1p(math.exp(-sign * logits[i][j])) / N
    assert siglip_loss(images, texts, PRODUCTS, SCALE, BIAS).item() == pytest.approx(total, abs=1e-4)


# Product, the caption whose embedding it is, the picture's other captions (its own again where there are none).
IDENTITIES = torch.tensor(
    [[1, 10, 10], [1, 11, 11], [2, 10, 10], [3, 12, 13], [4, 13, 13], [5, 14, 12], [6, 15, 15], [7, 16, 16], [8, 16, 1]]
)


def is_right(i, j):
    """Text j for image i: of one product, or one of the very captions of i."""
    return IDENTITIES[i, 0] == IDENTITIES[j, 0] or IDENTITIES[j, 1] in IDENTITIES[i, 1:]


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_a_caption_is_no_negative_of_any_picture_that_it_describes(loss):
    """A gradient step moves a text away from the images that it is wrong for, and images alike.

    It moves towards all others in the softmax, towards those of its own product with the sigmoid.
    """
    count = len(IDENTITIES)
    points = torch.eye(count)
    images, texts = (points.clone().requires_grad_() for _ in range(2))
    loss(images, texts, IDENTITIES, torch.tensor(1.0), torch.tensor(0.0)).backward()
    right = torch.tensor([[bool(is_right(i, j)) for j in range(count)] for i in range(count)])
    assert right.sum() == count + 8 and (right != right.T).any()
    towards = right if loss is clip_loss else IDENTITIES[:, None, 0] == IDENTITIES[:, 0]
    for step in (-images.grad, -texts.grad.T):
        assert (step[towards] > 0).all()
        assert (step[right & ~towards] == 0).all()
        assert (step[~right] < 0).all()


def test_losses_with_shared_captions_are_their_formulas():
    count = len(IDENTITIES)
    images, texts = (rows[:count].detach() for rows in embeddings())
    logits = (SCALE * images @ texts.T).tolist()
    total = 0.0
    for i in range(count):
        for row, own in (
            (logits[i], [p for p in range(count) if is_right(i, p)]),
            ([logits[j][i] for j in range(count)], [p for p in range(count) if is_right(p, i)]),
        ):
            total -= sum(row[p] - math.log(sum(math.exp(x) for x in row)) for p in own) / len(own) / count / 2
    assert clip_loss(images, texts, IDENTITIES, SCALE).item() == pytest.approx(total, abs=1e-5)
    sigmoid = 0.0
    for i in range(count):
        for j in range(count):
            if IDENTITIES[i, 0] == IDENTITIES[j, 0]:
                sigmoid += math.log1p(math.exp(10 - logits[i][j])) / count
            elif not is_right(i, j):
                sigmoid += math.log1p(math.exp(logits[i][j] - 10)) / count
    assert siglip_loss(images, texts, IDENTITIES, SCALE, BIAS).item() == pytest.approx(sigmoid, abs=1e-4)


def test_equal_captions_change_nothing_in_a_softmax():
    """Equal texts have equal logits, so that it makes no difference to which of them an image belongs."""
    images, texts = (rows.detach() for rows in embeddings())
    captions = torch.arange(N) // 2
    value = clip_loss(images, texts[captions], torch.stack([torch.arange(N), captions], 1), SCALE)
    torch.testing.assert_close(value, clip_loss(images, texts[captions], torch.arange(N), SCALE))


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
@pytest.mark.parametrize("captions", [1, 3])
def test_where_no_caption_is_shared_the_loss_is_that_of_the_products_alone_bit_by_bit(loss, captions):
    alone, both = embeddings(), embeddings()
    others = torch.arange(100, 100 + 3 * N).reshape(N, 3)[:, :captions]
    values = [loss(*rows, given, SCALE, BIAS) for rows, given in
              [(alone, PRODUCTS), (both, torch.cat([PRODUCTS[:, None], others], 1))]]  # fmt: skip
    assert torch.equal(*values)
    for value in values:
        value.backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(alone, both))


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_views_of_one_product_are_pulled_together_not_apart(loss):
    """A gradient step moves every image towards all texts of its own product and away from all others."""
    points = torch.nn.functional.one_hot(PRODUCTS, D).float()
    moved = points.clone().requires_grad_()
    loss(moved, points, PRODUCTS, torch.tensor(1.0), torch.tensor(0.0)).backward()
    step = -moved.grad @ points.T
    same = PRODUCTS[:, None] == PRODUCTS[None]
    assert (step[same] > 0).all()
    assert (step[~same] < 0).all()


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_half_precision_embeddings_under_autocast_are_contrasted_in_float32(loss):
    images, texts = embeddings()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(images, texts, PRODUCTS, SCALE, BIAS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(images, texts, PRODUCTS, SCALE, BIAS), atol=0, rtol=0)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_the_order_of_the_batch_does_not_matter(loss):
    images, texts = embeddings()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    value = loss(images[order], texts[order], PRODUCTS[order], SCALE, BIAS)
    torch.testing.assert_close(value, loss(images, texts, PRODUCTS, SCALE, BIAS), atol=1e-5, rtol=1e-6)
