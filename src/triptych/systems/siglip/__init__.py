"""SigLIP and SigLIP 2: every pair of a picture and a text is its own yes/no question (Zhai 2023).

In reading order: `model.py` (both towers and the loss), `published.py` (other libraries'
configurations and names of weights), `big_vision.py` (the original checkpoints). Training, loading
and the report are shared with CLIP, in `two_towers`.
"""

from triptych.system import System

SYSTEM = System("SigLIP", kinds=("siglip",), model="triptych.systems.siglip.model")
