"""Prompt templates: sentences that a class name is put into, for CLIP and SigLIP.

The published ones, word for word: 80 for ImageNet (Radford 2021, arXiv:2103.00020, section 3.1.4,
whose average embedding is worth about 3.5 points over one sentence), the 7 that were chosen from
them, and the 18 for CIFAR, in `templates.json`. Values from open_clip's `zero_shot_metadata.py`
(mlfoundations/open_clip at 89fb801, MIT) and, for CIFAR, LAION-AI/CLIP_benchmark at 48de38c (MIT).
"""

import json
from collections.abc import Sequence
from pathlib import Path

TEMPLATES: dict[str, tuple[str, ...]] = {
    name: tuple(templates)
    for name, templates in json.loads(Path(__file__).with_suffix(".json").read_text()).items()
}
"""The sets by name; `name` is the name alone, for classes that are sentences."""


def template_set(name: str) -> tuple[str, ...]:
    """The templates of a published set.

    Raises:
        ValueError: there is no set of this name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"templates must be one of {', '.join(TEMPLATES)}, not {name!r}")
    return TEMPLATES[name]


def prompts(name: str, templates: Sequence[str]) -> list[str]:
    """One sentence per template about `name`; `{}` in a template stands for the name.

    Braces in the name itself are plain characters.

    Raises:
        ValueError: a template without `{}`, or no template at all.
    """
    if isinstance(templates, str):
        raise ValueError(f"templates must be a list of sentences, not the string {templates!r}")
    if not templates:
        raise ValueError("no templates: give at least one, such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the name: add one")
    return [template.replace("{}", name) for template in templates]
