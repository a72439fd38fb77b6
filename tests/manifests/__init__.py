"""Names and shapes of the published checkpoints, made by the reference libraries (`make.py`)."""

from pathlib import Path

FOLDER = Path(__file__).parent
