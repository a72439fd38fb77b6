"""Every recipe by name: the module whose `build(request)` makes a `Recipe`."""

RECIPES = {
    "cvae": "triptych.systems.cvae.recipe",
    "wgan": "triptych.systems.wgan.recipe",
    "pixel-diffusion": "triptych.systems.pixel_diffusion.recipe",
    "classifier": "triptych.systems.classifier.recipe",
    "clip": "triptych.systems.two_towers.recipe",
    "siglip": "triptych.systems.two_towers.recipe",
    "word-space": "triptych.systems.word_space.recipe",
    "autoencoder": "triptych.systems.autoencoder.recipe",
    "text-to-image": "triptych.systems.stable_diffusion.recipe",
}
