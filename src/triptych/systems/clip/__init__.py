"""CLIP: pictures and texts in one space, by a softmax over the pairs of a batch (Radford 2021).

In reading order: `model.py` (both towers and the loss), `resnet.py` (the modified ResNet),
`configs.py` (other libraries' configurations as ours, and back), `published.py` (their names of
weights). Training, loading and the report are shared with SigLIP, in `two_towers`.
"""

from triptych.system import System

SYSTEM = System("CLIP", kinds=("clip",), model="triptych.systems.clip.model")
