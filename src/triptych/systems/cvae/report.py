"""What `triptych evaluate` reports of a conditional VAE: likelihood, leak and figures."""

from collections.abc import Generator
from typing import Any

from triptych.config import write_json
from triptych.fields import to_json
from triptych.scores.environment import environment
from triptych.systems.cvae.figures import draw_figures
from triptych.systems.cvae.likelihood import evaluate_vae
from triptych.systems.cvae.model import Cvae
from triptych.systems.cvae.request import EvaluateVae, TrainCvae
from triptych.train.conditioning import choose_condition
from triptych.train.evaluation import TrainedRun, indent


def evaluate(options: EvaluateVae, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Likelihood, leak and figures of a run; yields messages and returns the numbers."""
    model, request = run.loaded.model, run.request
    assert isinstance(model, Cvae) and isinstance(request, TrainCvae)
    get_condition = choose_condition(request.condition, run.train, quadrants=request.quadrants).of
    report, codes = yield from indent(
        evaluate_vae(
            model,
            run.train,
            run.test,
            get_condition,
            samples=options.likelihood_samples,
            nll_limit=options.likelihood_pictures,
            seed=run.seed,
        )
    )
    draw_figures(model, run.test, get_condition, codes, run.folder, seed=run.seed)
    numbers: dict[str, Any] = to_json(report)
    write_json(run.folder / "vae.json", {"environment": environment(run.command)} | numbers)
    terms = f"-({report.reconstruction:.2f} + {report.kl:.2f})"
    yield f"evidence lower bound {report.elbo:.2f} = {terms} nats"
    yield f"-log likelihood {report.nll:.2f} nats ({report.nll_samples} samples)"
    for name, leak in (("means", report.leak_means), ("samples", report.leak_samples)):
        if leak:
            yield f"class read from posterior {name}: {leak.value:.1%}, chance {leak.chance:.1%}"
    return {"vae": numbers}
