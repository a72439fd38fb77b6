"""open_clip's names of published checkpoints of our families, and their repositories on the hub.

`open_clip_names.json` is taken from open_clip 3.3.0: repositories by model and tag. Where models
differ (QuickGELU, resizing, means), the `open_clip_config.json` of each repository says how.
"""

import json
from functools import cache
from pathlib import Path


@cache
def read_repositories() -> dict[str, dict[str, str]]:
    """Repositories by model and tag."""
    names: dict[str, dict[str, str]] = json.loads(
        Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    )
    return names


def repository(name: str) -> str:
    """The hub repository of MODEL/TAG, such as ViT-B-32/laion2b_s34b_b79k; empty for other names.

    Raises:
        ValueError: the model is known but the tag is not, or is missing.
    """
    model, _, tag = name.partition("/")
    tags = read_repositories().get(model)
    if tags is None:
        return ""
    if tag not in tags:
        names = ", ".join(f"{model}/{other}" for other in tags)
        raise ValueError(f"{name!r} is no published checkpoint of {model}; there are: {names}")
    return tags[tag]
