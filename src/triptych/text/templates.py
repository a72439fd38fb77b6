"""Prompt templates: sentences that a class name is put into, for CLIP and SigLIP.

The published ones, word for word: 80 for ImageNet (Radford 2021, arXiv:2103.00020, section 3.1.4,
whose average embedding is worth about 3.5 points over one sentence), the 7 that were chosen from
them, and the 18 for CIFAR. Values from open_clip's `zero_shot_metadata.py`
(mlfoundations/open_clip at 89fb801, MIT) and, for CIFAR, LAION-AI/CLIP_benchmark at 48de38c (MIT).
"""

from collections.abc import Sequence

PHOTO = ("a photo of a {}.",)

SIMPLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

CIFAR = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
    "a photo of the {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low contrast photo of the {}.",
    "a high contrast photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of the {}.",
    "a photo of the small {}.",
    "a photo of the big {}.",
)

IMAGENET = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": PHOTO,
    "simple": SIMPLE,
    "cifar": CIFAR,
    "imagenet": IMAGENET,
    "name": ("{}",),  # the name alone, for classes that are sentences
}


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
