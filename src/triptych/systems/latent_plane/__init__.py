"""A plane through the latent space of a conditional VAE or GAN: a picture for each point of it.

The plane is spanned by the two directions in which pictures change most (Kingma & Welling 2013,
figure 4, draws it for a latent of two numbers). In reading order: `request.py` (the request),
`pipeline.py` (finds the directions, draws the points), `answer.py` (pictures with their points).
"""

from triptych.system import System
from triptych.systems.latent_plane.request import LatentPlane

SYSTEM = System(
    "a plane of latent codes",
    requests={"plane": LatentPlane},
    serves=("cvae", "wgan"),
    pipeline="triptych.systems.latent_plane.pipeline",
    answer="triptych.systems.latent_plane.answer",
)
