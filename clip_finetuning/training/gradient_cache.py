"""The gradient of one contrastive batch, also where the batch is larger than the device's memory.

A contrastive loss needs all embeddings at once but not all activations (GradCache, Gao et al. 2021, arXiv:2101.06983):
embed slice after slice without a graph, take the loss and its gradient with respect to the embeddings, then embed each
slice again with a graph and push its part of that gradient through. The price is one extra forward pass.
"""

from collections.abc import Callable

import torch

from clip_finetuning.runtime import device as devices
from clip_finetuning.runtime import distributed

Embed = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[..., torch.Tensor]


def backward(
    embed: Embed,
    loss: Loss,
    images: torch.Tensor,
    tokens: torch.Tensor,
    products: torch.Tensor,
    parameters: list[torch.nn.Parameter],
    *,
    micro_batch_size: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    teach: Embed | None = None,
) -> torch.Tensor:
    """Set `.grad` of all `parameters` to the gradient of the loss over the batches of all ranks -> loss (0-d, detached).

    embed(images, tokens) -> (image_embeddings, text_embeddings), each (n, D), under its own autocast.
    loss(image_embeddings, text_embeddings, products, *taught) -> scalar, over the rows of all ranks.
    images (N, ...), tokens (N, L) and products (N, ...) are this rank's; N is the same on every rank.
    micro_batch_size: samples embedded at once; None or N and more take the direct path, one forward and no more.
    scaler: a GradScaler whose scale the gradients then carry.
    teach(images, tokens) -> embeddings (n, D) of a teacher, which the loss then gets too; no gradient goes there.

    Dropout draws the same masks in both passes. A BatchNorm in training mode sees each micro-batch for itself, and
    twice. Raises torch.OutOfMemoryError, with all gradients None again, on every rank if on any.
    """
    for parameter in parameters:
        parameter.grad = None
    try:
        if micro_batch_size is None or micro_batch_size >= len(images):
            value = _direct(embed, loss, images, tokens, products, scaler, teach)
        else:
            parts = list(zip(images.split(micro_batch_size), tokens.split(micro_batch_size)))
            value = _sliced(embed, loss, parts, products, scaler, teach)
        # With the loss, so that whether a step is finite is seen alike everywhere.
        distributed.average([*(p.grad for p in parameters if p.grad is not None), value])
    except torch.OutOfMemoryError:
        for parameter in parameters:
            parameter.grad = None
        raise
    return value


def backward_with_retry(
    embed: Embed,
    loss: Loss,
    images: torch.Tensor,
    tokens: torch.Tensor,
    products: torch.Tensor,
    parameters: list[torch.nn.Parameter],
    *,
    micro_batch_size: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    teach: Embed | None = None,
    say: Callable[[str], None] = print,
) -> tuple[torch.Tensor, int | None]:
    """`backward`, but out of memory it halves the micro-batch and redoes the step -> (loss, micro-batch size that fits).

    Each attempt starts from the same random state, so that its dropout masks do not depend on the failures before it.
    """
    random_state = devices.random_state(images.device)
    while True:
        size = min(micro_batch_size or len(images), len(images))
        try:
            value = backward(
                embed, loss, images, tokens, products, parameters,
                micro_batch_size=micro_batch_size, scaler=scaler, teach=teach,
            )  # fmt: skip
            return value, micro_batch_size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise torch.OutOfMemoryError(
                    "not even one sample at a time fits the device's memory: try GRAD_CHECKPOINTING, or a smaller model"
                ) from error
        # Here, not in the handler, whose traceback would hold the activations of the failed attempt.
        devices.empty_cache(images.device)
        micro_batch_size = (size + 1) // 2
        say(f"out of memory: MICRO_BATCH_SIZE goes from {size} to {micro_batch_size}, the step is done again")
        devices.set_random_state(images.device, random_state)


def _direct(embed, loss, images, tokens, products, scaler, teach):
    gathered = _gathered(lambda: embed(images, tokens), lambda: [products, *_taught(teach, [(images, tokens)])])
    return _loss_and_backward(loss, gathered, scaler)


def _taught(teach, parts):
    """The teacher's embeddings of all parts, [images (N, D), texts (N, D)]; [] without a teacher."""
    return [] if teach is None else [torch.cat(rows) for rows in zip(*(teach(*part) for part in parts))]


def _sliced(embed, loss, parts, products, scaler, teach):
    device = products.device
    random_states, embeddings = [], []

    def embed_without_graph():
        embedded = []
        with torch.no_grad():
            for part in parts:
                random_states.append(devices.random_state(device))
                embedded.append(embed(*part))
        embeddings[:] = [torch.cat(rows).requires_grad_() for rows in zip(*embedded)]
        return embeddings

    def push_through(gradients):
        for part, random_state, *gradient in zip(parts, random_states, *gradients):
            devices.set_random_state(device, random_state)
            # A tower without trainable weights has no graph to go back through.
            pairs = [(e, g) for e, g in zip(embed(*part), gradient) if e.requires_grad]
            torch.autograd.backward([e for e, _ in pairs], [g for _, g in pairs])

    gathered = _gathered(embed_without_graph, lambda: [products, *_taught(teach, parts)])
    torch.clear_autocast_cache()  # under an autocast around both passes, the second would reuse weights without a graph
    value = _loss_and_backward(loss, gathered, scaler)
    sizes = [len(images) for images, _ in parts]
    distributed.on_all_ranks(lambda: push_through([rows.grad.split(sizes) for rows in embeddings]))
    return value


def _gathered(embed, know):
    """(image embeddings, text embeddings, *known) of all ranks, from embed() and know() of this one.

    No gradient goes to what is known. No rank may be missing here.
    """

    def embedded_with_room():
        known = know()  # before the graph takes its memory
        own = [rows.contiguous() for rows in (*embed(), *known)]
        return own, [distributed.room_for(rows) for rows in own]

    (images, texts, *known), rooms = distributed.on_all_ranks(embedded_with_room)
    return (
        distributed.gather_with_gradient(images, rooms[0]),
        distributed.gather_with_gradient(texts, rooms[1]),
        *map(distributed.gather, known, rooms[2:]),
    )


def _loss_and_backward(loss, gathered, scaler):
    """The loss (0-d, detached), after its backward pass."""

    def loss_and_backward():
        value = loss(*gathered)
        (value if scaler is None else scaler.scale(value)).backward()
        return value.detach()

    return distributed.on_all_ranks(loss_and_backward)
