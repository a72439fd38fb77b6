"""Models without numbers are the models with them.

That they cost no import of torch's compiler is in tests/cli/test_classify_command.py.
"""

import pytest
from torch import nn

from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.clip.resnet import ResNetConfig
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig
from triptych.systems.siglip.model import Siglip, SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.weights import skeleton as module
from triptych.weights.skeleton import skeleton

TEXT = TextConfig(1000, layers=1)
BUILT = {
    "vit": lambda: Clip(ClipConfig(text=TEXT, vit=VitConfig(layers=1))),
    "stem": lambda: Clip(
        ClipConfig(text=TEXT, vit=VitConfig(patch=8, layers=1, stem=(16, 32, 64)))
    ),
    "resnet": lambda: Clip(
        ClipConfig(text=TEXT, vit=None, resnet=ResNetConfig(layers=(1, 1, 1, 1)))
    ),
    "siglip": lambda: Siglip(
        SiglipConfig(SiglipImageConfig(layers=1), SiglipTextConfig(1000, layers=1))
    ),
    "unet": lambda: UNet(UNetConfig(3, 6, (32, 64))),
}


@pytest.mark.parametrize("name", BUILT)
def test_names_shapes_and_types_are_those_of_the_real_model(name):
    real, bare = BUILT[name]().state_dict(), skeleton(BUILT[name]).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in bare.items()
    }
    assert all(tensor.is_meta for tensor in bare.values())
    assert not any(t.is_meta for t in BUILT[name]().state_dict().values())  # nothing stays changed


def test_the_most_tensors_are_allowed_and_one_more_is_not(monkeypatch) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False))

    monkeypatch.setattr(module, "MOST_TENSORS", 3)
    assert len(list(skeleton(build).parameters())) == 3
    monkeypatch.setattr(module, "MOST_TENSORS", 2)
    with pytest.raises(ValueError, match="more than 2 tensors"):
        skeleton(build)
    assert len(list(build().parameters())) == 3  # the limit is over
    with pytest.raises(ValueError, match="do not fit into any memory"):
        skeleton(lambda: nn.Linear(1 << 40, 1 << 40))
