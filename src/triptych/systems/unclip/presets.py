"""The presets of every training of a DALL-E 2: sizes that are trained here, and published ones."""

from dataclasses import replace
from typing import Any

from triptych.systems.unclip.request import (
    FOR_DECODER,
    FOR_UPSAMPLER,
    TRAINING,
    TrainUnclip,
    TrainUnclipAutoregressive,
    TrainUnclipDecoder,
    TrainUnclipPrior,
    TrainUnclipUpsampler,
)

PRESETS: dict[str, dict[str, Any]] = {
    "unclip": {"tiny": TrainUnclip()},
    "unclip-prior": {
        "tiny": TrainUnclipPrior(),
        "karlo": TrainUnclipPrior(
            replace(TRAINING, batch_size=1024, steps=600_000, ema_halflife=7000),
            width=2048,
            layers=20,
            heads=32,
            guidance=4.0,
            candidates=1,
            learning_rate=1.1e-4,
        ),
    },
    "unclip-autoregressive": {"tiny": TrainUnclipAutoregressive()},
    "unclip-decoder": {
        "tiny": TrainUnclipDecoder(),
        "pictures": TrainUnclipDecoder(
            replace(FOR_DECODER, size=64, batch_size=128, steps=200_000, ema_halflife=2000),
            context=512,
            widths=(128, 256, 384, 512),
            blocks=2,
            attention=(1, 2, 3),
            head_width=64,
            time_width=512,
            patch=1,
            groups=32,
            learning_rate=2e-4,
        ),
    },
    "unclip-upsampler": {
        "x2": TrainUnclipUpsampler(),
        "x2-second": TrainUnclipUpsampler(
            replace(FOR_UPSAMPLER, size=128),
            small=64,
            degradation="hard",
            noise_schedule="linear",
            sampling_steps=15,
        ),
        "x4": TrainUnclipUpsampler(
            replace(FOR_UPSAMPLER, size=256, steps=100_000),
            small=64,
            crop=64,
            widths=(64, 128, 192, 256),
            blocks=2,
            patch=1,
            sampling_steps=27,
        ),
        "x4-second": TrainUnclipUpsampler(
            replace(FOR_UPSAMPLER, size=1024, batch_size=32, steps=100_000),
            small=256,
            crop=128,
            degradation="hard",
            noise_schedule="linear",
            widths=(64, 128, 192, 256),
            blocks=2,
            patch=2,
            sampling_steps=15,
        ),
    },
}
"""The presets of each recipe, the default first."""
