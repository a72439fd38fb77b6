"""Make the manifests of this folder: names and shapes of published models, as the reference
libraries build them on the meta device from the published configurations. Run once, by hand:

    TRIPTYCH_DATA=... python tests/manifests/make.py

A manifest maps a configuration's name to its tensors: `template: [layers, shape]`, where `{}`
stands for a number, and every number up to the count occurs; of U-Nets, whose levels differ, as few
numbers as needed are kept. What no family of ours is, is left
out.
"""

import json
import os
import re
import sys
from pathlib import Path

import torch

for operator in ("nms", "qnms"):  # torchvision's are missing on CPU builds of torch
    torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")

import diffusers  # noqa: E402
import open_clip  # noqa: E402
import transformers  # noqa: E402
from open_clip.model import CLIP, CustomTextCLIP  # noqa: E402

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
HERE = Path(__file__).parent
FAMILIES = re.compile(r"(RN50|RN101|ViT-(?!amin))")


def collapsed(state: dict[str, torch.Tensor]) -> dict[str, list]:
    """Names with numbers replaced where all their tensors have one shape."""
    groups: dict[str, dict[str, list[int]]] = {}
    for name, tensor in state.items():
        groups.setdefault(NUMBER.sub("{}", name), {})[name] = list(tensor.shape)
    manifest: dict[str, list] = {}
    for template, members in sorted(groups.items()):
        shapes = list(members.values())
        if all(shape == shapes[0] for shape in shapes):
            manifest[template] = [len(shapes), shapes[0]]
        else:
            manifest |= {name: [1, shape] for name, shape in members.items()}
    return manifest


def nested(state: dict[str, torch.Tensor], keep: int = 0) -> dict[str, list]:
    """Names with numbers replaced, but for the fewest at the front that one shape needs."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        numbers = iter(NUMBER.findall(name)[:keep])
        template = NUMBER.sub(lambda _: next(numbers, "{}"), name)  # noqa: B023
        groups.setdefault(template, {})[name] = tensor
    result: dict[str, list] = {}
    for template, members in groups.items():
        shapes = {tuple(tensor.shape) for tensor in members.values()}
        if len(shapes) == 1:
            result[template] = [len(members), list(shapes.pop())]
        else:
            result |= nested(members, keep + 1)
    return result


def open_clip_manifests(folder: Path) -> dict[str, dict]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        model = json.loads(path.read_text())
        vision = model.get("vision_cfg") or {}
        if not FAMILIES.match(path.stem) or "hf_model_name" in (model.get("text_cfg") or {}):
            continue
        if "naflex" in path.stem:  # this open_clip is older than its configuration
            vision.pop("image_seq_len", None)
        settings = {k: v for k, v in model.items() if k != "custom_text"}
        with torch.device("meta"):
            made = (CustomTextCLIP if model.get("custom_text") else CLIP)(**settings)
        found[path.stem] = collapsed(made.state_dict())
        print(path.stem, len(found[path.stem]), file=sys.stderr)
    return found


def transformers_manifests(folder: Path) -> dict[str, dict]:
    config = json.loads((folder / "clip-vit-base-patch32" / "config.json").read_text())
    with torch.device("meta"):
        clip = transformers.CLIPModel(transformers.CLIPConfig(**config))
        siglip = transformers.SiglipModel(transformers.SiglipConfig())
        naflex = transformers.Siglip2Model(transformers.Siglip2Config())
    models = {"clip-vit-base-patch32": clip, "siglip default": siglip, "siglip2 default": naflex}
    return {name: collapsed(model.state_dict()) for name, model in models.items()}


def unet_manifests(folder: Path) -> dict[str, dict]:
    """The U-Nets that read a text; one on pixels and transformers are other families."""
    found = {}
    for path in sorted(folder.glob("*/unet/config.json")):
        settings = json.loads(path.read_text())
        if settings["_class_name"] == "UNet2DConditionModel":
            with torch.device("meta"):
                made = diffusers.UNet2DConditionModel.from_config(settings)
            found[path.parent.parent.name] = nested(made.state_dict())
    return found


def text_encoder_manifests(folder: Path) -> dict[str, dict]:
    """The text towers of diffusers' folders; T5, which SD 3 and FLUX also read, is left out."""
    kinds = {
        kind.__name__: kind
        for kind in (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    }
    found = {}
    for path in sorted(folder.glob("*/text_encoder*/config.json")):
        stored = json.loads(path.read_text())
        if stored["model_type"] != "clip_text_model":
            continue
        with torch.device("meta"):
            made = kinds[stored["architectures"][0]](transformers.CLIPTextConfig(**stored))
        found[str(path.parent.relative_to(folder))] = collapsed(made.state_dict())
    return found


def autoencoder_manifests(folder: Path) -> dict[str, dict]:
    """By folder, such as `stable-diffusion-v1-5/vae`; tiny ones by their latent channels."""
    found = {}
    for path in sorted(folder.glob("*/vae*/config.json")):
        settings = json.loads(path.read_text())
        if settings["_class_name"] == "AutoencoderKL":
            with torch.device("meta"):
                made = diffusers.AutoencoderKL.from_config(settings)
            found[str(path.parent.relative_to(folder))] = nested(made.state_dict())
    for channels in (4, 16):
        with torch.device("meta"):
            tiny = diffusers.AutoencoderTiny(latent_channels=channels)
        found[f"tiny, {channels} channels"] = nested(tiny.state_dict())
    return found


def write(name: str, library: str, manifests: dict[str, dict]) -> None:
    made = {"made by": library, "device": "meta", "models": manifests}
    (HERE / f"{name}.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    data = Path(os.environ["TRIPTYCH_DATA"]) / "configs"
    write(
        "open_clip",
        f"open_clip {open_clip.__version__} from its published configurations",
        open_clip_manifests(data / "open_clip"),
    )
    write(
        "transformers",
        f"transformers {transformers.__version__} from published or default configurations",
        transformers_manifests(data),
    )
    write(
        "diffusers_unets",
        f"diffusers {diffusers.__version__} from published configurations",
        unet_manifests(data / "diffusers"),
    )
    write(
        "text_encoders",
        f"transformers {transformers.__version__} from the published configurations of diffusers",
        text_encoder_manifests(data / "diffusers"),
    )
    write(
        "autoencoders",
        f"diffusers {diffusers.__version__} from published configurations; tiny ones from defaults",
        autoencoder_manifests(data / "diffusers"),
    )
