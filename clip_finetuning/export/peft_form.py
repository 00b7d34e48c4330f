"""The form `peft`: the LoRA additions of a checkpoint as an adapter to transformers' CLIPModel or SiglipModel."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from clip_finetuning.export.folder import whole_folder
from clip_finetuning.model import lora_file, peft_layout

NAME = "peft"


def write(checkpoint: Mapping[str, Any], path: object, output: str) -> list[str]:
    """Write adapter_config.json, adapter_model.safetensors and README.md of what `read_checkpoint` returned -> what to say.

    Raises ValueError for a checkpoint without additions, and for additions to what transformers has no module for.
    """
    if "lora" not in checkpoint:
        raise ValueError(
            f"--form {NAME} needs a checkpoint of TUNE=lora, such as final_lora.pt; {path} has no additions"
        )
    saved = lora_file.read(path, checkpoint)
    config, tensors = peft_layout.adapter(saved, path)
    with whole_folder(output) as folder:
        (folder / peft_layout.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / peft_layout.WEIGHTS, metadata={"format": "pt"})
        (folder / "README.md").write_text(_page(Path(output).resolve().name, saved.base), encoding="utf-8")
        written = load_file(folder / peft_layout.WEIGHTS)
        if written.keys() != tensors.keys() or not all(torch.equal(written[key], tensors[key]) for key in tensors):
            raise ValueError(f"{output}: what was written is not what was to be written; check the disk")
    return [
        f"{len(tensors) // 2} pairs of rank {saved.settings.rank}, to {saved.base.name} with {saved.base.pretrained}",
        "left out, since PEFT has no place for it and embeddings do not need it: the temperature of the loss",
    ]


def _page(name: str, base: Any) -> str:
    return f"""\
# {name}

A LoRA adapter for {base.name} with the weights {base.pretrained} (SHA-256 of these: {base.fingerprint}).
Its base in the form of transformers is what `python export_clip.py --form transformers` writes of these weights:

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("base-clip-hf"), {name!r})
```
"""
