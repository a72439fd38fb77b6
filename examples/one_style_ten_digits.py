"""Train a conditional VAE for a few seconds and draw ten digits in one handwriting.

python examples/one_style_ten_digits.py [STEPS]
"""

import sys
import tempfile
from pathlib import Path

import torch

import triptych
from triptych import runtime
from triptych.requests import TrainCvae, Training
from triptych.systems.cvae import model as cvae
from triptych.training import train
from triptych.vision.grids import labelled_grid
from triptych.vision.images import save_picture, to_pictures

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
run = Path(tempfile.mkdtemp()) / "run"
training = Training(steps=steps, schedule="cosine", warmup=min(100, steps), ema_halflife=100)
request = TrainCvae(training, latent=3, network="mlp", widths=(256, 128), learning_rate=2e-3)
for report in train(request, run):
    if report.row:
        print(f"step {report.step}: evidence lower bound {report.row['elbo']:.1f} nats")

loaded = triptych.load(str(run))
styles = runtime.noise((loaded.config.latent,), range(4))
pictures = to_pictures(cvae.shared_z(loaded.model, torch.arange(10), styles).flatten(0, 1))
grid = labelled_grid(
    pictures.reshape(4, 10, 8, 8, 1), [f"style {i}" for i in range(4)], "0123456789"
)
save_picture(Path("one-style-ten-digits.png"), grid)
print("wrote one-style-ten-digits.png")
