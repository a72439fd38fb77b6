"""The CLIP that a DALL-E 2 is trained on: it does not change, and only its outputs are used.

Dimensions: B pictures, E width of embeddings, C channels, H height, W width.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych.diffusion.denoiser import Conditioning
from triptych.systems.clip.model import Clip, TextConfig, TextTransformer, VitConfig
from triptych.systems.unclip.draw import tokenise
from triptych.systems.unclip.model import encode_tokens
from triptych.text.tokenizer import Tokenizer
from triptych.vision.transforms import ImageTransform
from triptych.weights.digests import weights_digest
from triptych.weights.loaded import Load, Loaded


class FrozenClip:
    """Embeddings of unit length, and states of texts.

    Raises:
        ValueError: the model is no CLIP of two transformers with a vocabulary.
    """

    def __init__(self, name: str, load: Load, device: torch.device):
        if not name:
            raise ValueError("give the CLIP to train on: --clip, a run of `triptych train clip`")
        loaded = load(name, device, "float32")
        model = loaded.model
        if not isinstance(model, Clip) or model.config.vit is None or model.config.text is None:
            raise ValueError(
                f"{name} is no CLIP with a vision and a text transformer, whose states and "
                "embeddings a DALL-E 2 is trained on"
            )
        if loaded.tokenizer is None or not isinstance(loaded.transform, ImageTransform):
            raise ValueError(f"{name} has no vocabulary: its tokenizer.json is missing")
        self.loaded: Loaded = loaded
        self.model, self.device = model, device
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.transform: ImageTransform = loaded.transform
        self.dim: int = model.config.dim
        self.image: VitConfig = model.config.vit
        self.text: TextConfig = model.config.text

    @cached_property
    def digest(self) -> str:
        """Of its weights."""
        return weights_digest(self.model)

    @cached_property
    def empty(self) -> Conditioning:
        """Embedding, states and mask of the empty text, which means no text."""
        return self.encode_texts([""])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        """Embedding, states and mask of texts; the end of one that is too long is cut."""
        tower = self.model.text
        assert isinstance(tower, TextTransformer)
        tokens, mask = tokenise(self.tokenizer, texts, self.device)
        with torch.autocast(self.device.type, enabled=False):
            return encode_tokens(tower, tokens, mask, unit=True)

    @torch.no_grad()
    def embed_images(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """Embeddings of pictures in [-1, 1], of any size; grey ones are three equal channels."""
        image = image.expand(-1, 3, -1, -1)
        size = self.transform.size
        if image.shape[2:] != (size, size):
            image = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
            image = image.clamp(-1, 1)
        with torch.autocast(self.device.type, enabled=False):
            return self.model.embed_image(self.transform.normalise(image.float()))
