"""Samplers of other programs that nothing here answers to, and why.

A name that is known but means something else is not a misspelling: who asks for it hears which
family of models it belongs to, and what to use here.
"""

ORDINARY = "euler, dpmpp_2m or unipc"
_TEXT = "language models that diffuse over tokens, not pictures: no sampler of pictures replaces it"
_TOKENS = "models that predict discrete picture tokens, which are not built here"
_VIDEO = "which is not built here. Of pictures the nearest is"

FOREIGN: dict[str, str] = {
    # AUTOMATIC1111
    "DDIM CFG++": (
        "is DDIM with another guidance, which a sampler's name does not choose here: use ddim. In "
        "Python triptych.diffusion.guidance.plus_plus is that guidance"
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
        "belongs to networks that are told two times at once (flow maps): of a distilled model "
        f"use lcm, of an ordinary one {ORDINARY}"
    ),
    "PiflowScheduler": (
        "belongs to networks that answer with a whole policy for a step (pi-Flow): of a distilled "
        f"model use lcm, of an ordinary one {ORDINARY}"
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
    "UnCLIPScheduler": ("belongs to unCLIP (Karlo), whose network also tells a variance: use ddpm"),
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
"""What a sampler of another program is, and what to use: read behind its name."""
