"""The systems of the lecture, one folder each. A new system adds its folder and a line here.

Each imports only from those above it in this list, and from the engine.
"""

from typing import Any

from triptych.system import System
from triptych.systems import (
    autoencoder,
    class_to_image,
    classification,
    classifier,
    clip,
    cvae,
    detection,
    gemma,
    latent_plane,
    mask_codes,
    pali,
    paligemma,
    pixel_diffusion,
    search,
    siglip,
    stable_diffusion,
    two_towers,
    unclip,
    wgan,
    word_space,
)

SYSTEMS: dict[str, System] = {
    "cvae": cvae.SYSTEM,
    "wgan": wgan.SYSTEM,
    "pixel_diffusion": pixel_diffusion.SYSTEM,
    "classifier": classifier.SYSTEM,
    "class_to_image": class_to_image.SYSTEM,
    "latent_plane": latent_plane.SYSTEM,
    "clip": clip.SYSTEM,
    "siglip": siglip.SYSTEM,
    "gemma": gemma.SYSTEM,  # before two_towers, which reads what is left of transformers' folders
    "mask_codes": mask_codes.SYSTEM,  # before two_towers, which reads big_vision's other files
    "paligemma": paligemma.SYSTEM,
    "pali": pali.SYSTEM,
    "two_towers": two_towers.SYSTEM,
    "word_space": word_space.SYSTEM,
    "classification": classification.SYSTEM,
    "detection": detection.SYSTEM,
    "search": search.SYSTEM,
    "autoencoder": autoencoder.SYSTEM,
    "stable_diffusion": stable_diffusion.SYSTEM,
    "unclip": unclip.SYSTEM,
}

RECIPES: dict[str, System] = {
    recipe: system for system in SYSTEMS.values() for recipe in system.recipes
}
"""The systems by the names of their recipes."""

KINDS: dict[str, System] = {kind: system for system in SYSTEMS.values() for kind in system.kinds}
"""The systems by the kinds of their models."""


def find_recipe(request: object) -> str:
    """The name of the recipe that a training request belongs to.

    Raises:
        ValueError: it is no training request.
    """
    for name, system in RECIPES.items():
        if any(type(preset) is type(request) for preset in system.recipes[name].values()):
            return name
    raise ValueError(f"{request!r} is no training request; there are: {', '.join(RECIPES)}")


def find_pipeline(request: object) -> System:
    """The system that carries out a request.

    Raises:
        ValueError: none does.
    """
    for system in SYSTEMS.values():
        if type(request) in system.requests.values():
            return system
    known = [kind.__name__ for system in SYSTEMS.values() for kind in system.requests.values()]
    if isinstance(request, type) and request.__name__ in known:
        raise ValueError(f"{request.__name__} is a class: make a request, {request.__name__}(...)")
    training = [type(p) for system in RECIPES.values() for p in _presets(system)]
    if type(request) in training:
        raise ValueError(
            f"{type(request).__name__} is a request for training: give it to "
            "triptych.training.train"
        )
    raise ValueError(f"no request {repr(request)[:60]}; there are: {', '.join(known)}")


def _presets(system: System) -> list[Any]:
    return [preset for presets in system.recipes.values() for preset in presets.values()]


def find_command(command: str, kind: str) -> System | None:
    """The system whose request of a command works with models of a kind; None if there is none."""
    for system in SYSTEMS.values():
        if command in system.requests and kind in system.serves:
            return system
    return None


def summarise(layout: Any) -> Any:
    """What a checkpoint (a `triptych.weights.layouts.Layout`) is made of and lacks, by the system
    that it belongs to; None where there is nothing to say of it as a whole.
    """
    for system in SYSTEMS.values():
        if system.summary and (found := system.module("summary").summary(layout)) is not None:
            return found
    return None
