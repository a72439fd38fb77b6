"""Schedulers of diffusers in float64, with given noise, and a network to run them on."""

import importlib
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

SHAPE = (2, 3, 4, 4)
NONE = torch.zeros(1)
SPREADS_ALL_TIMES = (
    "DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
"""Classes whose constructor spends a second on a thousand steps that nobody takes."""


class Precise:
    """A namespace in which float32 means float64."""

    def __init__(self, namespace: Any):
        self.namespace = namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self.namespace, "float64" if name == "float32" else name)


def reference(name: str, monkeypatch: pytest.MonkeyPatch, precise: bool, **settings: Any) -> Any:
    """A scheduler of diffusers, its noise taken from `draws`."""
    module_name = {
        "DDIMScheduler": "ddim", "DDIMParallelScheduler": "ddim_parallel",
        "DDPMScheduler": "ddpm", "DDPMParallelScheduler": "ddpm_parallel",
        "EulerDiscreteScheduler": "euler_discrete",
        "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
        "HeunDiscreteScheduler": "heun_discrete", "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
        "KDPM2AncestralDiscreteScheduler": "k_dpm_2_ancestral_discrete",
        "LMSDiscreteScheduler": "lms_discrete", "PNDMScheduler": "pndm",
        "DPMSolverMultistepScheduler": "dpmsolver_multistep", "LCMScheduler": "lcm",
        "UniPCMultistepScheduler": "unipc_multistep", "DEISMultistepScheduler": "deis_multistep",
        "DPMSolverSDEScheduler": "dpmsolver_sde", "EDMEulerScheduler": "edm_euler",
        "EDMDPMSolverMultistepScheduler": "edm_dpmsolver_multistep",
        "FlowMatchEulerDiscreteScheduler": "flow_match_euler_discrete",
        "FlowMatchHeunDiscreteScheduler": "flow_match_heun_discrete",
        "FlowMatchLCMScheduler": "flow_match_lcm",
        "DPMSolverSinglestepScheduler": "dpmsolver_singlestep", "IPNDMScheduler": "ipndm",
        "TCDScheduler": "tcd", "SASolverScheduler": "sasolver",
    }[name]  # fmt: skip
    if name == "DPMSolverSDEScheduler":  # its Brownian motion is replaced below
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{module_name}")
    if name == "DPMSolverSDEScheduler":
        path = iter(draws(torch.float64 if precise else torch.float32, 200))
        monkeypatch.setattr(
            module, "BrownianTreeNoiseSampler", lambda *a, **k: lambda start, end: next(path)
        )
    if precise:
        monkeypatch.setattr(module, "torch", Precise(torch))
        if hasattr(module, "np"):
            monkeypatch.setattr(module, "np", Precise(np))
    kind = getattr(module, name)
    if name not in SPREADS_ALL_TIMES:
        return kind(**settings)
    with monkeypatch.context() as constructing:
        constructing.setattr(kind, "set_timesteps", lambda self, *_: setattr(self, "sigmas", NONE))
        return kind(**settings)


def network(x: Tensor, time: Tensor) -> Tensor:
    """Smooth in x and in time, mixing pixels and channels."""
    phase = (time.to(x.dtype) / 300).view(-1, 1, 1, 1)
    return 0.6 * torch.tanh(x + torch.sin(phase)) + 0.2 * x.roll(1, 1) + 0.1 * torch.cos(2 * phase)


def start(dtype: torch.dtype) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=dtype)


def draws(dtype: torch.dtype, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(SHAPE, generator=generator, dtype=dtype) for _ in range(count)]


def theirs(
    scheduler: Any, steps: int, noises: list[Tensor], x: Tensor, scaled: bool
) -> list[Tensor]:
    """The reference's state after every call, at the scale where alpha^2 + sigma^2 = 1."""
    module = sys.modules[type(scheduler).__module__]
    queue = iter(noises)
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *a, **k: next(queue)  # restored by the fixture of the caller
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    states = []
    with_generator = "generator" in type(scheduler).step.__code__.co_varnames
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        time = torch.full((len(x),), float(t), dtype=x.dtype)
        more = {"generator": None} if with_generator else {}
        x = scheduler.step(network(seen, time), t, x, return_dict=False, **more)[0]
        factor = 1.0
        if scaled:
            sigma = float(scheduler.sigmas[scheduler.step_index])
            factor = (1 + sigma**2) ** -0.5
        states.append(x * factor)
    return states


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch):
    """What `theirs` puts into a module of the reference does not outlive the test."""
    import diffusers.schedulers as package

    before = {
        name: module.randn_tensor
        for name, module in sys.modules.items()
        if name.startswith(package.__name__) and hasattr(module, "randn_tensor")
    }
    yield
    for name, function in before.items():
        sys.modules[name].randn_tensor = function
