"""Names of the built-in sources. No torch."""

SCENES = ("scenes", "scenes-one", "scenes-two")
BUILT_IN = ("digits", *SCENES)
