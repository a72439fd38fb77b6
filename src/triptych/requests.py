"""Every request there is, on one page: what one can ask of a model, and what one can train.

A request is a Python argument, a set of command-line flags, a JSON body, and the record stored
inside its result. Nothing here imports torch, so `--help` is quick.
"""

from triptych.systems.autoencoder.request import TrainAutoencoder
from triptych.systems.class_to_image.request import ClassToImage, EvaluateClasses
from triptych.systems.classification.request import Classify
from triptych.systems.classifier.request import TrainClassifier
from triptych.systems.cvae.request import EvaluateVae, TrainCvae
from triptych.systems.detection.request import Detect
from triptych.systems.gemma.request import Chat, Decoding, TrainLanguage
from triptych.systems.latent_plane.request import LatentPlane
from triptych.systems.mask_codes.request import TrainMaskCodes
from triptych.systems.pali.request import TrainPali
from triptych.systems.paligemma.request import Answers, Ask, TrainVlm
from triptych.systems.pixel_diffusion.request import TrainPixelDiffusion
from triptych.systems.search.request import Search
from triptych.systems.stable_diffusion.request import (
    EvaluateTextToImage,
    TextToImage,
    TrainTextToImage,
)
from triptych.systems.two_towers.request import (
    Embed,
    Towers,
    TrainClip,
    TrainSiglip,
)
from triptych.systems.unclip.request import (
    TrainUnclip,
    TrainUnclipAutoregressive,
    TrainUnclipDecoder,
    TrainUnclipPrior,
    TrainUnclipUpsampler,
    UnclipPictures,
)
from triptych.systems.wgan.request import TrainWgan
from triptych.systems.word_space.request import TrainWordSpace
from triptych.train.settings import Training, TrainRequest

__all__ = [
    "Answers",
    "Ask",
    "Chat",
    "ClassToImage",
    "Classify",
    "Decoding",
    "Detect",
    "Embed",
    "EvaluateClasses",
    "EvaluateTextToImage",
    "EvaluateVae",
    "LatentPlane",
    "Search",
    "TextToImage",
    "Towers",
    "TrainAutoencoder",
    "TrainClassifier",
    "TrainClip",
    "TrainCvae",
    "TrainLanguage",
    "TrainMaskCodes",
    "TrainPali",
    "TrainPixelDiffusion",
    "TrainRequest",
    "TrainSiglip",
    "TrainTextToImage",
    "TrainUnclip",
    "TrainUnclipAutoregressive",
    "TrainUnclipDecoder",
    "TrainUnclipPrior",
    "TrainUnclipUpsampler",
    "TrainVlm",
    "TrainWgan",
    "TrainWordSpace",
    "Training",
    "UnclipPictures",
]  # fmt: skip
