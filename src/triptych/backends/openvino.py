"""Networks converted for OpenVINO: once, then kept on disk and compiled from there.

A conversion is a folder of the user's cache, named by a digest of everything that it depends on:
other weights, even one LoRA, are another conversion. Folders are written atomically, so a process
may be killed at any moment.

    network.xml      the graph
    network.bin      the weights, memory-mapped when read
    conversion.json  what the digest is of, and the sizes of the files

Weights keep their dtype; the precision of the computation is chosen when compiling.
"""

import hashlib
import importlib
import inspect
import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.atomic import lock_folder, remove_temporary, replace_folder, sync
from triptych.config import read_json, to_json, write_json
from triptych.nn import attention
from triptych.weights.files.read import weights_digest

FORM = 1  # of the folder
MANIFEST = "conversion.json"
GRAPH, WEIGHTS = "network.xml", "network.bin"


class Input(NamedTuple):
    """An input tensor of a network."""

    example: Tensor
    shape: tuple[int, ...]
    """-1 for a dimension of any size."""


@dataclass(frozen=True)
class Conversion:
    """The folder of a network's conversion, which may not exist yet."""

    folder: Path
    described: dict[str, Any]

    @property
    def there(self) -> bool:
        """Whether it is complete on disk."""
        try:
            written = read_json(self.folder / MANIFEST)
            sizes = {name: (self.folder / name).stat().st_size for name in (GRAPH, WEIGHTS)}
        except (OSError, ValueError):
            return False
        return bool(written == {"of": self.described, "bytes": sizes})

    def others(self) -> tuple[int, int]:
        """The number of other conversions in the cache, and their bytes."""
        beside = [p for p in self.folder.parent.glob("*/") if p != self.folder]
        return len(beside), sum(file.stat().st_size for p in beside for file in p.glob("*"))


def require_openvino() -> Any:
    """The openvino module.

    Raises:
        ValueError: it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ValueError(
            'OpenVINO is not installed: `pip install "triptych[openvino]"`, or --backend torch'
        ) from error


def conversion_of(network: nn.Module, config: Any, name: str, **how: Any) -> Conversion:
    """The conversion of a network with its present weights, of which a digest is computed.

    `config` is the network's; `how` is whatever else a conversion depends on.

    Raises:
        ValueError: OpenVINO is not installed.
    """
    described = {
        "form": FORM,
        "network": [type(network).__name__, to_json(config), how],
        "weights": weights_digest(network),
        "code": _code_digest(network),
        "openvino": require_openvino().__version__,
        "torch": torch.__version__,
    }
    described = json.loads(json.dumps(described))  # as it is read again
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Conversion(runtime.cache_folder("openvino") / f"{name}-{digest[:16]}", described)


def convert(network: nn.Module, inputs: Sequence[Input], conversion: Conversion) -> None:
    """Writes the conversion of a network, unless it exists.

    The network is traced with the examples. Where it branches on their sizes, the conversion takes
    the same branch for all sizes, so the examples must take a branch that works for all.

    Raises:
        ValueError: OpenVINO is not installed.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    root = conversion.folder.parent
    with lock_folder(root):
        if conversion.there:  # another process wrote it meanwhile
            return
        remove_temporary(root)
        with replace_folder(conversion.folder) as folder:
            _write(network, inputs, folder)
            sizes = {file: (folder / file).stat().st_size for file in (GRAPH, WEIGHTS)}
            write_json(folder / MANIFEST, {"of": conversion.described, "bytes": sizes})


def _write(network: nn.Module, inputs: Sequence[Input], folder: Path) -> None:
    openvino = require_openvino()
    needed = sum(tensor.nbytes for tensor in network.state_dict().values())
    if (free := shutil.disk_usage(folder).free) < 1.02 * needed:
        raise OSError(
            f"{folder.parent} has {free / 1e9:.1f} GB left, and a conversion for OpenVINO takes "
            f"{needed / 1e9:.1f} GB there: make room, or set XDG_CACHE_HOME to a larger disk"
        )
    model = traced(network, inputs)
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
    openvino.Core().read_model(folder / GRAPH)  # a short file is noticed here, not by the writer
    for file in (GRAPH, WEIGHTS):
        sync(folder / file)


def traced(network: nn.Module, inputs: Sequence[Input]) -> Any:
    """OpenVINO's model of a network, its weights shared with the network's.

    Through the front end itself: `openvino.convert_model` reports every conversion to Intel's
    server of statistics without being asked to.
    """
    frontend = importlib.import_module("openvino.frontend")
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    openvino = require_openvino()
    examples = tuple(one.example for one in inputs)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of choices by size, which the caller has seen to
        graph = torch.jit.trace(network, examples, check_trace=False)
        read = decoder.TorchScriptPythonDecoder(graph)
    reader = frontend.FrontEndManager().load_by_framework("pytorch")
    model = reader.convert(reader.load(read))
    for place, one in zip(model.inputs, inputs, strict=True):
        place.get_node().set_partial_shape(openvino.PartialShape(list(one.shape)))
    model.validate_nodes_and_infer_types()
    return model


Shapes = tuple[tuple[int, ...], ...]


class Compiled:
    """A conversion ready to compute on the CPU for inputs of these shapes alone, with as many
    threads as torch has. One that takes any shape is 3 % slower (U-Net of Stable Diffusion 1.x).
    """

    def __init__(self, folder: Path, half: bool, threads: int, shapes: Shapes):
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = require_openvino().Core()
        model = core.read_model(folder / GRAPH)
        model.reshape(
            {place: list(shape) for place, shape in zip(model.inputs, shapes, strict=True)}
        )
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output for inputs on the CPU of the types that were traced; they are not copied."""
        arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
        output = self._request.infer(arrays, share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(output.copy())  # the next call writes over its memory


_kept: dict[tuple[Path, bool, int, Shapes], Compiled] = {}


def compiled(folder: Path, half: bool, threads: int, shapes: Shapes) -> Compiled:
    """A conversion, compiled to compute in bfloat16 or float32 for inputs of these shapes.

    The last one stays in memory: the next call mostly is for the same network and sizes.
    """
    key = folder, half, threads, shapes
    if key not in _kept:
        _kept.clear()  # first, since two large networks may not fit
        _kept[key] = Compiled(*key)
    return _kept[key]


def _code_digest(network: nn.Module) -> str:
    """A name for the code that says what is computed: the network's own, and all blocks."""
    files = {Path(inspect.getfile(type(part))) for part in network.modules()}
    files |= set(Path(attention.__file__).parent.glob("*.py"))
    found = hashlib.sha256()
    for content in sorted(file.read_bytes() for file in files):
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()
