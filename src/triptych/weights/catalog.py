"""Published checkpoints: where they are, their digests and licences.

Every digest has the source where its publisher states it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych.weights.open_clip_names import read_repositories
from triptych.weights.short_names import SHORT_NAMES


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint."""

    name: str
    family: str
    repo: str
    """OWNER/NAME on the hub; empty if it is published elsewhere, at `source`."""
    files: tuple[str, ...]
    """Those with weights and a configuration; of a folder with several networks, the index."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """By file; only published digests."""
    licence: str = ""
    parameters: int = 0
    """Their number; 0 if unknown."""
    source: str = ""
    """Where the digests are published, or the address of the file."""


OPENAI = "https://openaipublic.azureedge.net/clip/models"
OPENAI_DIGESTS = {  # part of each file's address, in clip/clip.py of openai/CLIP
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L-14-336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}

TRANSFORMERS_CLIP = (
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    *("tokenizer.json", "vocab.json", "merges.txt"),
)
TRANSFORMERS_SIGLIP = (
    *("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"),
)

FILES_OF_FAMILY = {
    "clip": TRANSFORMERS_CLIP,
    "siglip": TRANSFORMERS_SIGLIP,
    "stable-diffusion": ("model_index.json",),
    "autoencoder": ("config.json", "diffusion_pytorch_model.safetensors"),
    "tiny-autoencoder": ("config.json", "diffusion_pytorch_model.safetensors"),
}

_ENTRIES = [
    *(
        Checkpoint(name, p.family, p.repo, FILES_OF_FAMILY[p.family], {}, p.licence)
        for name, p in SHORT_NAMES.items()
    ),
    *(
        Checkpoint(
            f"openai/{name}",
            "clip",
            "",
            (f"{name}.pt",),
            {f"{name}.pt": digest},
            "MIT",
            source=f"{OPENAI}/{digest}/{name}.pt",
        )
        for name, digest in OPENAI_DIGESTS.items()
    ),
    *(
        Checkpoint(repo, "clip", repo, TRANSFORMERS_CLIP, {}, "MIT")
        for repo in (
            "openai/clip-vit-base-patch32",
            "openai/clip-vit-base-patch16",
            "openai/clip-vit-large-patch14",
            "openai/clip-vit-large-patch14-336",
        )
    ),
    *(
        Checkpoint(repo, "siglip", repo, TRANSFORMERS_SIGLIP, {}, "Apache-2.0")
        for repo in ("google/siglip-base-patch16-224", "google/siglip-so400m-patch14-384")
    ),
]

_ENTRIES += [
    Checkpoint(
        f"{model}/{tag}",
        "siglip" if "SigLIP" in model else "clip",
        repo,
        ("open_clip_config.json", "open_clip_model.safetensors"),
        source="the list of open_clip 3.3.0",
    )
    for model, tags in read_repositories().items()
    for tag, repo in tags.items()
]

CATALOG: dict[str, Checkpoint] = {entry.name: entry for entry in _ENTRIES}
