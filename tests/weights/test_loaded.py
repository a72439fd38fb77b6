"""A loaded model moves between devices and precisions as torch's modules do."""

from pathlib import Path

import pytest
import torch

import triptych
from tests.systems.class_to_image.test_pipeline import loaded as tiny_cvae
from tests.systems.clip import tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion
from triptych.weights.loaded import Loaded


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return tiny_clip.saved(tiny_clip.tiny_clip(), tmp_path_factory.mktemp("runs") / "clip")


@pytest.fixture(scope="module")
def prompt_folder(tmp_path_factory) -> Path:
    return tiny_stable_diffusion.saved(tmp_path_factory.mktemp("runs") / "text-to-image")


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return loaded.model.state_dict()


def same(one: Loaded, other: Loaded) -> bool:
    pairs = zip(weights(one).items(), weights(other).items(), strict=True)
    return all(a[0] == b[0] and a[1].dtype == b[1].dtype and a[1].equal(b[1]) for a, b in pairs)


@pytest.mark.parametrize("kind", ["clip_folder", "prompt_folder"])
@pytest.mark.parametrize("precision", ["bfloat16", torch.bfloat16, torch.float16])
def test_to_a_precision_is_loading_in_it(kind: str, precision, request) -> None:
    folder = request.getfixturevalue(kind)
    read = triptych.load(folder, precision=precision)
    model = triptych.load(folder, "cpu", "float32")
    assert not same(model, read)
    assert model.to("cpu", precision) is model and same(model, read)
    again = triptych.load(folder, precision="float32")
    if isinstance(precision, torch.dtype):
        assert again.to(precision) is again and same(again, read)
    again.to(precision="float32")
    assert not any(
        tensor.dtype in (torch.float16, torch.bfloat16) for tensor in weights(again).values()
    )


def test_a_temperature_keeps_its_precision(clip_folder: Path) -> None:
    clip = triptych.load(clip_folder, precision="float32")
    before = weights(clip)["logit_scale"].clone()
    clip.to(torch.bfloat16)
    assert torch.equal(weights(clip)["logit_scale"], before)
    assert next(clip.model.get_submodule("image").parameters()).dtype == torch.bfloat16
    assert clip.embed_text(["two cats"]).dtype == torch.float32


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_to_a_device_moves_all_weights(clip_folder: Path, device) -> None:
    clip = triptych.load(clip_folder)
    assert clip.to(device) is clip
    assert {tensor.device.type for tensor in weights(clip).values()} == {"meta"}


def test_what_is_not_there_is_refused_and_changes_nothing(clip_folder: Path) -> None:
    clip = triptych.load(clip_folder, precision="float32")
    for arguments, words in (
        (("gpu",), "no device 'gpu' on this machine: choose one of auto, cpu"),
        (("cpu", "half"), "precision is float32, bfloat16, float16, not 'half'"),
        ((torch.int8,), "precision is .* not 'int8'"),
        (("nowhere", "bfloat16"), "no device 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=words):
            clip.to(*arguments)
    assert same(clip, triptych.load(clip_folder, precision="float32"))
    with pytest.raises(ValueError, match="no device 'gpu'"):
        triptych.load(clip_folder, "gpu")
    with pytest.raises(ValueError, match=r"precision is .*stored or auto, not 'half'"):
        triptych.load(clip_folder, precision="half")
    with pytest.raises(ValueError, match="named by a text or a path, not None"):
        triptych.load(None)


def test_models_that_compute_in_float32_say_so() -> None:
    model = tiny_cvae()
    with pytest.raises(ValueError, match="cvae is a cvae, whose weights stay in float32"):
        model.to("cpu", "bfloat16")
    assert model.to("cpu", "float32") is model


@pytest.mark.gpu
def test_every_kind_draws_and_reads_on_an_accelerator(
    clip_folder: Path, prompt_folder: Path
) -> None:
    from triptych.requests import Classify, ClassToImage, TextToImage

    clip = triptych.load(clip_folder, precision="float32")
    pixels = [tiny_clip.picture(0), torch.rand(3, 20, 20, device="cuda")]
    *_, expected = triptych.run(Classify(pixels, ["cat", "dog"]), clip)
    *_, found = triptych.run(Classify(pixels, ["cat", "dog"]), clip.to("cuda"))
    torch.testing.assert_close(found.cosines(), expected.cosines(), atol=1e-3, rtol=0)
    *_, drawn = triptych.run(ClassToImage(n=2, seed=0), tiny_cvae().to("cuda"))
    assert len(drawn.images) == 2
    model = triptych.load(prompt_folder, precision="float32").to("cuda")
    request = TextToImage(["a cat", "a dog"], seed=0, steps=2, precision="float32")
    *_, drawn = triptych.run(request, model)
    assert drawn.latents.device.type == "cpu" and len(drawn.images) == 2
    *_, again = triptych.run(request, model.to("cpu"))
    torch.testing.assert_close(again.latents, drawn.latents, atol=0.05, rtol=0.05)
