"""The fields of diffusers' schedulers that can be read, with each class's defaults."""

import math
from typing import Any

Fields = dict[str, Any]

_BETAS: Fields = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_STABLE_DIFFUSION: Fields = {"beta_start": 0.00085, "beta_end": 0.012}
_LEADING: Fields = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE: Fields = {"timestep_spacing": "linspace", "steps_offset": 0}
_SIGMAS: Fields = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_CLIP: Fields = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD: Fields = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_FLOW_SIGMAS: Fields = {"use_flow_sigmas": False, "flow_shift": 1.0}
_TIME_SHIFT: Fields = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_ZERO_SNR: Fields = {"rescale_betas_zero_snr": False}
_CLIPPED_LAMBDA: Fields = {"lambda_min_clipped": -math.inf, "variance_type": None}
_FLOW: Fields = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    **_SIGMAS,
    **_TIME_SHIFT,
}
_DDIM: Fields = _BETAS | _LEADING | _CLIP | _THRESHOLD | _ZERO_SNR | {"set_alpha_to_one": True}
_DDPM: Fields = (
    _BETAS | _LEADING | _CLIP | _THRESHOLD | _ZERO_SNR | {"variance_type": "fixed_small"}
)
_K_DIFFUSION: Fields = _BETAS | _STABLE_DIFFUSION | _SIGMAS | _LINSPACE
_DISTILLED: Fields = (
    _DDIM
    | _STABLE_DIFFUSION
    | {"beta_schedule": "scaled_linear", "clip_sample": False}
    | {"original_inference_steps": 50, "timestep_scaling": 10.0}
)
_SOLVER: Fields = (
    _BETAS
    | _SIGMAS
    | _THRESHOLD
    | _FLOW_SIGMAS
    | _TIME_SHIFT
    | {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"}
)

FIELDS: dict[str, Fields] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "EulerDiscreteScheduler": _BETAS
    | _SIGMAS
    | _LINSPACE
    | _ZERO_SNR
    | {"interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero"}
    | {"sigma_min": None, "sigma_max": None},
    "EulerAncestralDiscreteScheduler": _BETAS | _LINSPACE | _ZERO_SNR,
    "HeunDiscreteScheduler": _K_DIFFUSION | _CLIP | {"clip_sample": False},
    "KDPM2DiscreteScheduler": _K_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION,
    "DPMSolverSDEScheduler": _K_DIFFUSION | {"noise_sampler_seed": None},
    "LMSDiscreteScheduler": _BETAS | _SIGMAS | _LINSPACE,
    "PNDMScheduler": _BETAS | _LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "DPMSolverSinglestepScheduler": _SOLVER
    | _CLIPPED_LAMBDA
    | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": False},
    "DPMSolverMultistepScheduler": _SOLVER
    | _LINSPACE
    | _CLIPPED_LAMBDA
    | _ZERO_SNR
    | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    | {"euler_at_final": False, "use_lu_lambdas": False},
    "UniPCMultistepScheduler": _SOLVER
    | _LINSPACE
    | _ZERO_SNR
    | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None}
    | {"sigma_min": None, "sigma_max": None, "shift_terminal": None},
    "DEISMultistepScheduler": {
        name: value for name, value in _SOLVER.items() if name != "final_sigmas_type"
    }
    | _LINSPACE
    | {"algorithm_type": "deis", "solver_type": "logrho"},
    "SASolverScheduler": _BETAS
    | _SIGMAS
    | _LINSPACE
    | _THRESHOLD
    | _FLOW_SIGMAS
    | _CLIPPED_LAMBDA
    | {"algorithm_type": "data_prediction", "lower_order_final": True}
    | {"predictor_order": 2, "corrector_order": 2, "tau_func": None},
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "FlowMatchEulerDiscreteScheduler": _FLOW | {"stochastic_sampling": False},
    "FlowMatchLCMScheduler": _FLOW | {"scale_factors": None, "upscale_mode": "bicubic"},
}
"""Class to field to default, as in diffusers 0.42."""
