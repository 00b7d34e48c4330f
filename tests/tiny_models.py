"""OpenCLIP configs so small that a test trains them in a second."""

import json

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_config(folder, name="tiny-test", **changes):
    """Write a config JSON and return its path; `changes` replace top-level entries."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**TINY, **changes}), encoding="utf-8")
    return str(path)
