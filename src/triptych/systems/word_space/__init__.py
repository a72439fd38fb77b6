"""Before CLIP: classes without training pictures, by word vectors (Socher 2013, DeViSE 2013).

In reading order: `request.py` (settings, presets), `word_vectors.py` (files of word vectors),
`model.py` (both methods), `recipe.py` (how they are trained), `report.py` (accuracy on seen and
unseen classes).
"""

from triptych.system import System
from triptych.systems.word_space.request import PRESETS

SYSTEM = System(
    "word vectors (Socher 2013, DeViSE)",
    kinds=("word-space",),
    recipes={"word-space": PRESETS},
    model="triptych.systems.word_space.model",
    recipe="triptych.systems.word_space.recipe",
)
