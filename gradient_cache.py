"""The gradient of one contrastive batch, also where the batch is larger than the device's memory.

A contrastive loss needs all embeddings at once but not all activations (GradCache, Gao et al. 2021, arXiv:2101.06983):
embed slice after slice without a graph, take the loss and its gradient with respect to the embeddings, then embed each
slice again with a graph and push its part of that gradient through. The price is one extra forward pass.
"""

import torch

import distributed


def backward(embed, loss, images, tokens, products, parameters, *, micro_batch_size=None, scaler=None):
    """Set `.grad` of all `parameters` to the gradient of the loss over the batches of all ranks -> loss (0-d, detached).

    embed(images, tokens) -> (image_embeddings, text_embeddings), each (n, D), under its own autocast.
    loss(image_embeddings, text_embeddings, products) -> scalar, over the rows of all ranks.
    images (N, ...), tokens (N, L) and products (N, ...) are this rank's; N is the same on every rank.
    micro_batch_size: samples embedded at once; None or N and more take the direct path, one forward and no more.
    scaler: a GradScaler whose scale the gradients then carry.

    Dropout draws the same masks in both passes. A BatchNorm in training mode sees each micro-batch for itself, and
    twice. Raises torch.OutOfMemoryError, with all gradients None again, on every rank if on any.
    """
    for parameter in parameters:
        parameter.grad = None
    try:
        if micro_batch_size is None or micro_batch_size >= len(images):
            value = _direct(embed, loss, images, tokens, products, scaler)
        else:
            parts = list(zip(images.split(micro_batch_size), tokens.split(micro_batch_size)))
            value = _sliced(embed, loss, parts, products, scaler)
    except torch.OutOfMemoryError:
        for parameter in parameters:
            parameter.grad = None
        raise
    distributed.average_gradients(parameters)
    return value


def backward_with_retry(
    embed, loss, images, tokens, products, parameters, *, micro_batch_size=None, scaler=None, say=print
):
    """`backward`, but out of memory it halves the micro-batch and redoes the step -> (loss, micro-batch size that fits).

    Each attempt starts from the same random state, so that its dropout masks do not depend on the failures before it.
    """
    random_state = _random_state(images.device)
    while True:
        size = min(micro_batch_size or len(images), len(images))
        try:
            value = backward(
                embed, loss, images, tokens, products, parameters, micro_batch_size=micro_batch_size, scaler=scaler
            )
            return value, micro_batch_size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise torch.OutOfMemoryError(
                    "not even one sample at a time fits the device's memory: try GRAD_CHECKPOINTING, or a smaller model"
                ) from error
        # Here, not in the handler, whose traceback would hold the activations of the failed attempt.
        if images.device.type != "cpu":
            torch.accelerator.empty_cache()
        micro_batch_size = (size + 1) // 2
        say(f"out of memory: MICRO_BATCH_SIZE goes from {size} to {micro_batch_size}, the step is done again")
        _set_random_state(images.device, random_state)


def _direct(embed, loss, images, tokens, products, scaler):
    gathered = _gathered(_on_all_ranks(lambda: embed(images, tokens)), products)
    value = _on_all_ranks(lambda: loss(*gathered))
    _on_all_ranks(lambda: _scaled(value, scaler).backward())
    return value.detach()


def _sliced(embed, loss, parts, products, scaler):
    device = products.device
    random_states = []

    def embed_without_graph():
        embedded = []
        with torch.no_grad():
            for part in parts:
                random_states.append(_random_state(device))
                embedded.append(embed(*part))
        return [torch.cat(rows) for rows in zip(*embedded)]

    def push_through(gradients):
        for part, random_state, *gradient in zip(parts, random_states, *gradients):
            _set_random_state(device, random_state)
            # A tower without trainable weights has no graph to go back through.
            pairs = [(e, g) for e, g in zip(embed(*part), gradient) if e.requires_grad]
            torch.autograd.backward(*zip(*pairs))

    embeddings = [rows.requires_grad_() for rows in _on_all_ranks(embed_without_graph)]
    torch.clear_autocast_cache()  # under an autocast around both passes, the second would reuse weights without a graph
    gathered = _gathered(embeddings, products)
    value = _on_all_ranks(lambda: loss(*gathered))
    _on_all_ranks(lambda: _scaled(value, scaler).backward())
    sizes = [len(images) for images, _ in parts]
    _on_all_ranks(lambda: push_through([rows.grad.split(sizes) for rows in embeddings]))
    return value.detach()


def _gathered(embeddings, products):
    """(image embeddings, text embeddings, products) of all ranks; no rank may be missing here."""
    return *map(distributed.gather_with_gradient, embeddings), distributed.gather(products)


def _scaled(value, scaler):
    return value if scaler is None else scaler.scale(value)


def _on_all_ranks(stage):
    """stage(), with torch.OutOfMemoryError on every rank if on any: a rank left alone in a collective would hang."""
    result, failure = None, ""
    try:
        result = stage()
    except torch.OutOfMemoryError as error:
        failure = str(error) or "out of memory"  # not the error itself, whose traceback would hold the activations
    if distributed.any_rank(bool(failure)):
        raise torch.OutOfMemoryError(failure or "another rank ran out of memory")
    return result


def _random_state(device):
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state()]


def _set_random_state(device, states):
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])
