"""Load Karlo's own checkpoints: four files and an archive of OpenAI's CLIP in one folder.

Prior, decoder, upsampler, and mean and standard deviation of the embeddings, under the names with
which they were published. Sizes are read off the tensors; the rest is what all of Karlo has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.config import errors_about
from triptych.systems.clip.model import Clip
from triptych.systems.two_towers.load_published import load_published as load_towers
from triptych.systems.unclip import published
from triptych.systems.unclip.decoder import DecoderConfig
from triptych.systems.unclip.model import Unclip, UnclipConfig
from triptych.systems.unclip.prior import BESIDE, PriorConfig
from triptych.systems.unclip.upsampler import UpsamplerConfig
from triptych.weights.files.weight_file import open_weights
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import layout
from triptych.weights.loaded import Published
from triptych.weights.skeleton import skeleton

FILES = {
    "prior": "prior-ckpt*.ckpt",
    "decoder": "decoder-ckpt*.ckpt",
    "upsampler": "improved-sr-ckpt*.ckpt",
    "statistics": "*_stats.th",
    "CLIP": "ViT-*.pt",
}
"""Of each part, the name of its file."""
LIMIT = 10.0  # at which Karlo's own program bounds x0 of the prior


def load_karlo(path: Path, dtype: torch.dtype | None) -> Published:
    """Load a folder with Karlo's own checkpoints.

    Raises:
        ValueError: a file is missing, or tensors do not fit.
    """
    with errors_about(path):
        files = {part: _find(path, part, pattern) for part, pattern in FILES.items()}
        towers = load_towers(layout(files["CLIP"]), dtype)
        clip = towers.model
        if not isinstance(clip, Clip) or clip.config.text is None or clip.config.vit is None:
            raise ValueError(f"{files['CLIP'].name} is no CLIP of two transformers")
        states = {part: open_weights(file).read(dtype) for part, file in files.items()
                  if part not in ("CLIP", "statistics")}  # fmt: skip
        decoder = read_decoder(states["decoder"])
        upsampler = read_upsampler(states["upsampler"], decoder.size)
        config = UnclipConfig(
            clip.config.dim,
            clip.config.text,
            clip.config.vit,
            prior=read_prior(states["prior"]),
            decoder=decoder,
            upsamplers=(upsampler,),
        )
        rules = {
            "prior": (published.KARLO_PRIOR, "prior."),
            "decoder": (published.karlo_decoder(decoder), "decoder."),
            "upsampler": (published.karlo_upsampler(upsampler), "upsamplers.0."),
        }
        state = {f"{tower}.{name}": value for tower in ("text", "image")
                 for name, value in clip.get_submodule(tower).state_dict().items()}  # fmt: skip
        for part, (table, prefix) in rules.items():
            with errors_about(files[part]):
                own = convert(states[part], table)
            state |= {prefix + name: value for name, value in own.items()}
        mean, std = read_statistics(files["statistics"])
        state |= {"prior.mean": mean, "prior.std": std}
        model = skeleton(lambda: Unclip(config))
        fill(model, state)
    return Published("unclip", config, model, towers.tokenizer, towers.transform)


def _find(path: Path, part: str, pattern: str) -> Path:
    found = sorted(path.glob(pattern))
    if len(found) != 1:
        what = f"are {len(found)} files" if found else "is no file"
        raise ValueError(
            f"there {what} {pattern}, Karlo's {part}: put exactly one into the folder, from where "
            "the others are"
        )
    return found[0]


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the embeddings, which the prior was trained on.

    Raises:
        ValueError: the file holds something else.
    """
    tensors = open_weights(path).read(torch.float32)
    if len(tensors) != 2 or len({value.shape for value in tensors.values()}) != 1:
        raise ValueError(f"{path.name} must hold two vectors, mean and standard deviation")
    mean, std = (tensors[name] for name in sorted(tensors))
    if mean.ndim != 1 or not bool((std > 0).all()):
        raise ValueError(f"{path.name} must hold two vectors, mean and standard deviation")
    return mean, std


def read_prior(state: Mapping[str, Tensor]) -> PriorConfig:
    """The configuration of a prior by its tensors; x0 is bounded as in Karlo's own program."""
    _require(state, "model.positional_embedding", "model.text_enc_proj.weight")
    places, width = state["model.positional_embedding"].shape[1:]
    blocks = [name for name in state if name.endswith(".attn.c_qkv.weight")]
    return PriorConfig(
        state["model.out_proj.weight"].shape[0],
        state["model.text_enc_proj.weight"].shape[1],
        places - BESIDE,
        width,
        len(blocks),
        max(1, width // published.HEAD),
        state["model.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        limit=LIMIT,
    )


def read_decoder(state: Mapping[str, Tensor]) -> DecoderConfig:
    """The configuration of a decoder by its tensors; all levels but the first have attention."""
    _require(state, "model.clip_tok_proj.weight", "model.text_seq_proj.0.weight")
    widths, blocks = _levels(state, "model.")
    return DecoderConfig(
        state["model.clip_emb.weight"].shape[1],
        state["model.text_seq_proj.0.weight"].shape[1],
        context=state["model.text_seq_proj.0.weight"].shape[0],
        tokens=state["model.clip_tok_proj.weight"].shape[0]
        // state["model.text_seq_proj.0.weight"].shape[0],
        widths=widths,
        blocks=blocks,
        attention=tuple(range(1, len(widths))),
        time_width=4 * widths[0],
        steps=50,
    )


def read_upsampler(state: Mapping[str, Tensor], small: int) -> UpsamplerConfig:
    """The configuration of an upsampler by its tensors; it makes the side four times as large."""
    widths, blocks = _levels(state, "model_first_steps.")
    return UpsamplerConfig(
        small, 4 * small, widths=widths, blocks=blocks, time_width=4 * widths[0], last=True
    )


def _levels(state: Mapping[str, Tensor], prefix: str) -> tuple[tuple[int, ...], int]:
    """Channels of the levels of a U-Net, and blocks of each: the first blocks + 1 have the channels
    of the first level, since one of them halves the side.
    """
    _require(state, f"{prefix}input_blocks.1.0.in_layers.2.weight")
    outs: list[int] = []
    while (name := f"{prefix}input_blocks.{len(outs) + 1}.0.in_layers.2.weight") in state:
        outs.append(state[name].shape[0])
    first = next((i for i, width in enumerate(outs) if width != outs[0]), len(outs) + 1)
    return tuple(outs[::first]), first - 1


def _require(state: Mapping[str, Any], *names: str) -> None:
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"a checkpoint lacks {missing[0]}: it is of another kind than Karlo's")
