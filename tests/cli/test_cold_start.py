"""What the first picture of a session waits for: no more is imported than drawing needs."""

import json
import sys
from pathlib import Path

from tests.test_architecture import probe
from tests.weights.test_bundled_models import place

LIBRARIES = {
    "docstring_parser",
    "jaxtyping",
    "PIL",
    "safetensors",
    "tokenizers",
    "tyro",
    "typeguard",
}
"""Beside torch and what it imports itself; typeguard and docstring_parser are tyro's."""
NOT_FOR_DRAWING = (
    "data", "doctor", "export", "scenes", "scores", "server", "train.loop",
    "training",
)  # fmt: skip
MOST_MODULES = 174  # the request of each system among them


def test_a_picture_imports_only_what_drawing_needs(tmp_path: Path) -> None:
    """In a new interpreter, since only that has imported nothing yet: seconds, most of them torch.

    With the bytecode on disk, `import torch` takes two thirds of the imports.
    """
    place(tmp_path / "box")
    code = f"""
import sys, json, torch, numpy
before = set(sys.modules)
from pathlib import Path
from triptych.weights import bundled_models
bundled_models.FOLDER = Path({str(tmp_path / "box")!r})
import contextlib, io
from triptych.cli.main import run
with contextlib.redirect_stderr(io.StringIO()):
    code = run(["generate", "a red cat", "--model", "small", "--steps", "1", "--out", "out"])
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""
    (tmp_path / "home").mkdir()
    status, modules = json.loads(probe(code, tmp_path / "home"))
    assert status == 0
    tops = {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    others = {name for name in tops - {"triptych", "torch", "numpy"} if not name.startswith("_")}
    assert others <= LIBRARIES
    ours = [name.removeprefix("triptych.") for name in modules if name.startswith("triptych.")]
    needless = [
        name for name in ours
        if name.split(".")[0] in NOT_FOR_DRAWING or name in NOT_FOR_DRAWING
        or name.split(".")[-1] in ("recipe", "report", "lora_files", "published")
    ]  # fmt: skip
    assert needless == []
    assert len(ours) <= MOST_MODULES, "import what few pictures need where they need it"
