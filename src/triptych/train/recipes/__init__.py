"""Every recipe by name: the module whose `build(request)` makes a `Recipe`."""

RECIPES = {
    "cvae": "triptych.train.recipes.cvae",
    "wgan": "triptych.train.recipes.wgan",
    "pixel-diffusion": "triptych.train.recipes.pixel_diffusion",
    "classifier": "triptych.train.recipes.classifier",
    "clip": "triptych.train.recipes.contrastive",
    "siglip": "triptych.train.recipes.contrastive",
    "word-space": "triptych.train.recipes.word_space",
    "autoencoder": "triptych.train.recipes.autoencoder",
    "text-to-image": "triptych.train.recipes.text_to_image",
}
