"""Every recipe by name: the module whose `build(request)` makes a `Recipe`."""

RECIPES = {
    "cvae": "triptych.train.recipes.cvae",
    "wgan": "triptych.train.recipes.wgan",
    "classifier": "triptych.train.recipes.classifier",
}
