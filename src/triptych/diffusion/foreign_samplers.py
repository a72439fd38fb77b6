"""Samplers of other programs that are not supported, and what to use instead.

Such a name is not a misspelling, so the error says which models it belongs to.
"""

ORDINARY = "euler, dpmpp_2m or unipc"
_TEXT = "language models that diffuse over tokens, not pictures: no sampler of pictures replaces it"
_TOKENS = "models that predict discrete picture tokens, which are not built here"
_VIDEO = "which is not built here. Of pictures the nearest is"

FOREIGN: dict[str, str] = {
    # AUTOMATIC1111
    "DDIM CFG++": (
        "is DDIM with another guidance, which the name of a sampler does not choose here: use "
        "ddim. In Python that guidance is triptych.diffusion.guidance.cfg_plus_plus"
    ),
    # diffusers: other directions, and other ends
    "DDIMInverseScheduler": (
        "goes from a picture to its noise: diffusion.samplers.deterministic.invert does that. "
        "To draw, use ddim"
    ),
    "DPMSolverMultistepInverseScheduler": (
        "goes from a picture to its noise: diffusion.samplers.deterministic.invert does that. "
        "To draw, use dpmpp_2m"
    ),
    "RePaintScheduler": (
        "paints a hole of a picture (RePaint): give a picture and a mask, with any sampler"
    ),
    "ConsistencyDecoderScheduler": (
        "belongs to OpenAI's consistency decoder, which stands in for an autoencoder's: to draw, "
        f"use {ORDINARY}"
    ),
    # diffusers: other families of continuous models
    "CMStochasticIterativeScheduler": (
        "belongs to OpenAI's consistency models, trained in EDM's form: lcm is that algorithm for "
        "latent consistency models"
    ),
    "SCMScheduler": (
        "belongs to SANA-Sprint, whose network is trained on angles (TrigFlow): lcm is the like "
        "for latent consistency models"
    ),
    "FlowMapEulerDiscreteScheduler": (
        "belongs to networks that take two timesteps (flow maps): for a distilled model "
        f"use lcm, for another {ORDINARY}"
    ),
    "PiflowScheduler": (
        "belongs to networks that predict a policy for a step (pi-Flow): for a distilled "
        f"model use lcm, for another {ORDINARY}"
    ),
    "KarrasVeScheduler": (
        "is the stochastic sampler of EDM's paper for its own models: heun is its ODE, and "
        "dpm2_ancestral and dpmpp_sde add noise"
    ),
    "ScoreSdeVeScheduler": (
        "belongs to score networks that are trained with exploding variance (NCSN++): use "
        "euler_ancestral"
    ),
    "ScoreSdeVpScheduler": (
        "belongs to score networks of continuous time (DDPM++): use euler_ancestral"
    ),
    "UnCLIPScheduler": (
        "belongs to unCLIP (Karlo), whose network also predicts a variance: use ddpm"
    ),
    "DDPMWuerstchenScheduler": (
        "belongs to Würstchen and Stable Cascade, whose time is a ratio of a cosine: use ddpm"
    ),
    "CosineDPMSolverMultistepScheduler": (
        "belongs to Stable Audio, which draws sound: of pictures use dpmpp_2m_sde"
    ),
    "RFD4ProteinaScheduler": (
        "belongs to RFdiffusion 4, which draws proteins: no sampler of pictures replaces it"
    ),
    # diffusers: video
    "CogVideoXDDIMScheduler": f"belongs to CogVideoX, a model of video, {_VIDEO} ddim",
    "CogVideoXDPMScheduler": f"belongs to CogVideoX, a model of video, {_VIDEO} dpmpp_2m_sde",
    "HeliosScheduler": f"belongs to Helios, a model of video, {_VIDEO} unipc",
    "HeliosDMDScheduler": f"belongs to Helios, a distilled model of video, {_VIDEO} lcm",
    "LTXEulerAncestralRFScheduler": (
        f"belongs to LTX-Video, a model of video, {_VIDEO} euler_ancestral"
    ),
    "MiniMaxH3Scheduler": f"belongs to MiniMax-H3, a model of video and sound, {_VIDEO} euler",
    # diffusers: tokens
    "VQDiffusionScheduler": f"belongs to VQ-Diffusion: {_TOKENS}; of others use {ORDINARY}",
    "AmusedScheduler": f"belongs to aMUSEd: {_TOKENS}; of others use {ORDINARY}",
    "BlockRefinementScheduler": f"belongs to {_TEXT}",
    "DiscreteDDIMScheduler": f"belongs to {_TEXT}",
    "EntropyBoundScheduler": f"belongs to {_TEXT}",
}
"""Name to the rest of a sentence: what the sampler is, and what to use instead."""
