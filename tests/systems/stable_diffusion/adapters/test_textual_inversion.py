"""Files of a learned word, in every form that tools write."""

import pytest
import torch
from safetensors.torch import save_file

from triptych.systems.stable_diffusion.adapters.textual_inversion import parse_word, read_word

GENERATOR = torch.Generator().manual_seed(0)


def vectors(count, width):
    return torch.randn(count, width, generator=GENERATOR)


def test_automatic1111s_archive(tmp_path):
    """What its training tab saves."""
    kept = vectors(3, 768)
    path = tmp_path / "rusty.pt"
    torch.save(
        {
            "string_to_token": {"*": 265}, "string_to_param": {"*": kept}, "name": "rusty",
            "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": None,
        },
        path,
    )  # fmt: skip
    word = read_word(path, (768,))
    assert torch.equal(word[0], kept)


def test_the_papers_archive(tmp_path):
    kept = vectors(1, 768)
    path = tmp_path / "learned.pt"
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": kept}}, path)
    assert torch.equal(read_word(path, (768,))[0], kept)


@pytest.mark.parametrize("shape", [(1024,), (1, 1024), (4, 1024)])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_diffusers_file_of_a_word(tmp_path, shape, ending):
    kept = torch.randn(shape, generator=GENERATOR)
    path = tmp_path / f"learned_embeds.{ending}"
    if ending == "bin":
        torch.save({"<cat-toy>": kept}, path)
    else:
        save_file({"<cat-toy>": kept}, path)
    word = read_word(path, (1024,))
    assert torch.equal(word[0], kept.reshape(-1, 1024))


def test_automatic1111s_safetensors(tmp_path):
    kept = vectors(8, 768)
    save_file({"emb_params": kept}, tmp_path / "EasyNegative.safetensors")
    word = read_word(tmp_path / "EasyNegative.safetensors", (768,))
    assert torch.equal(word[0], kept)


def test_xl_has_vectors_for_both_encoders(tmp_path):
    kept = {"clip_g": vectors(2, 1280), "clip_l": vectors(2, 768)}
    save_file(kept, tmp_path / "style.safetensors")
    word = read_word(tmp_path / "style.safetensors", (768, 1280))
    assert torch.equal(word[0], kept["clip_l"])
    assert torch.equal(word[1], kept["clip_g"])


@pytest.mark.parametrize(
    ("tensors", "widths", "message"),
    [
        ({"emb_params": vectors(1, 768)}, (1024,), "for Stable Diffusion 1.x .* is .* 2.x"),
        ({"emb_params": vectors(1, 768)}, (768, 1280), "1.x .* this model is .* XL"),
        (
            {"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, (768,),
            r"XL \(CLIP ViT-L and OpenCLIP ViT-bigG\), but this model is .* 1.x",
        ),
        (
            {"clip_l": vectors(1, 768), "clip_g": vectors(2, 1280)}, (768, 1280),
            "different numbers of vectors",
        ),
        ({"a": vectors(1, 768), "b": vectors(1, 768)}, (768,), "two words"),
        ({"conv.weight": torch.zeros(4, 4, 3, 3)}, (768,), "not a textual inversion"),
        ({f"l{i}": vectors(2, i + 1) for i in range(9)}, (768,), "among 9 tensors"),
        ({}, (768,), "a word for nothing"),
    ],
)  # fmt: skip
def test_what_is_no_word_for_this_model_is_refused(tensors, widths, message):
    with pytest.raises(ValueError, match=message):
        parse_word(tensors, widths)
