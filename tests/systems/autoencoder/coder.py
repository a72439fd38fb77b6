"""An autoencoder of some hundred random weights in a run folder."""

from pathlib import Path

import torch

from triptych.fields import to_json
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.train.checkpoint import export
from triptych.weights.loaded import Card


def saved_autoencoder(folder: Path, config: AutoencoderConfig) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    export(folder, Autoencoder(config), to_json(Card("autoencoder", to_json(config))))
    return folder
