"""Convert networks for OpenVINO once, cache them on disk, and compile them from there.

A conversion is a folder in the user's cache, named by a digest of everything that it depends on:
with other weights, even one LoRA, it is another conversion. It is written atomically, so a process
may be killed at any moment.

    network.xml      the graph
    network.bin      the weights, memory-mapped
    conversion.json  what the digest covers, and the sizes of the files

It does not depend on the precision, which is chosen when it is compiled; weights keep their type.
"""

import hashlib
import importlib
import inspect
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.atomic import lock_folder, remove_temporary, replace_folder, sync
from triptych.config import read_json, write_json
from triptych.fields import to_json
from triptych.nn import attention
from triptych.weights.digests import weights_digest

STATISTICS = "openvino_telemetry"  # the package by which OpenVINO sends them

FORM = 1  # version of the folder's layout
MANIFEST = "conversion.json"
GRAPH, WEIGHTS = "network.xml", "network.bin"


class Input(NamedTuple):
    """One input of a network."""

    example: Tensor
    shape: tuple[int, ...]
    """-1 for a dimension of any size."""


@dataclass(frozen=True)
class Conversion:
    """A conversion of a network, written or not."""

    folder: Path
    key: dict[str, Any]
    """What it depends on."""

    @property
    def exists(self) -> bool:
        """Whether it is on disk and complete."""
        try:
            written = read_json(self.folder / MANIFEST)
            sizes = {name: (self.folder / name).stat().st_size for name in (GRAPH, WEIGHTS)}
        except (OSError, ValueError):
            return False
        return bool(written == {"of": self.key, "bytes": sizes})

    def others(self) -> tuple[int, int]:
        """The number of other conversions in the cache, and their bytes."""
        beside = [p for p in self.folder.parent.glob("*/") if p != self.folder]
        return len(beside), sum(file.stat().st_size for p in beside for file in p.glob("*"))


def require_openvino() -> Any:
    """Import openvino, without its statistics: its first import would send one without asking.

    Raises:
        ValueError: it is not installed, with the command that installs it.
    """
    missing = object()
    before = sys.modules.get(STATISTICS, missing)
    sys.modules[STATISTICS] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ValueError(
            'OpenVINO is not installed: `pip install "triptych[openvino]"`, or --backend torch'
        ) from error
    finally:
        if before is missing:
            del sys.modules[STATISTICS]
        else:
            sys.modules[STATISTICS] = before  # type: ignore[assignment]


def find_conversion(network: nn.Module, config: Any, name: str, **settings: Any) -> Conversion:
    """The conversion of a network with its current weights, all of which are read.

    `config` is the network's, and `settings` are what else conversions depend on.

    Raises:
        ValueError: OpenVINO is not installed.
    """
    key = {
        "form": FORM,
        "network": [type(network).__name__, to_json(config), settings],
        "weights": weights_digest(network),
        "code": _code_digest(network),
        "openvino": require_openvino().__version__,
        "torch": torch.__version__,
    }
    key = json.loads(json.dumps(key))  # lists for tuples, as when it is read from the disk
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return Conversion(runtime.cache_folder("openvino") / f"{name}-{digest[:16]}", key)


def convert(network: nn.Module, inputs: Sequence[Input], conversion: Conversion) -> None:
    """Write the conversion of a network, unless it exists.

    The network is traced with the example inputs. A branch that depends on their sizes is fixed by
    them, so the examples must take the branch that works for all sizes.

    Raises:
        ValueError: OpenVINO is not installed.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    root = conversion.folder.parent
    with lock_folder(root):
        if conversion.exists:  # another process wrote it meanwhile
            return
        remove_temporary(root)
        with replace_folder(conversion.folder) as folder:
            _write(network, inputs, folder)
            sizes = {file: (folder / file).stat().st_size for file in (GRAPH, WEIGHTS)}
            write_json(folder / MANIFEST, {"of": conversion.key, "bytes": sizes})


def _write(network: nn.Module, inputs: Sequence[Input], folder: Path) -> None:
    openvino = require_openvino()
    needed = sum(tensor.nbytes for tensor in network.state_dict().values())
    if (free := shutil.disk_usage(folder).free) < 1.02 * needed:
        raise OSError(
            f"{folder.parent} has {free / 1e9:.1f} GB left, and a conversion for OpenVINO takes "
            f"{needed / 1e9:.1f} GB there: make room, or set XDG_CACHE_HOME to a larger disk"
        )
    model = trace(network, inputs)
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
    openvino.Core().read_model(folder / GRAPH)  # a short file is noticed here, not by the writer
    for file in (GRAPH, WEIGHTS):
        sync(folder / file)


def trace(network: nn.Module, inputs: Sequence[Input]) -> Any:
    """OpenVINO's model of a network, which shares its weights.

    This calls the front end directly, since `openvino.convert_model` sends telemetry to Intel.
    """
    frontend = importlib.import_module("openvino.frontend")
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    openvino = require_openvino()
    examples = tuple(one.example for one in inputs)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of branches that depend on sizes; see `convert`
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
    """A conversion compiled for the CPU and for inputs of fixed shapes.

    Dynamic shapes are 3 % slower (U-Net of Stable Diffusion 1.x).
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
        return torch.from_numpy(output.copy())  # the next call overwrites its memory


_cache: dict[tuple[Path, bool, int, Shapes], Compiled] = {}


def compile_network(folder: Path, half: bool, threads: int, shapes: Shapes) -> Compiled:
    """Compile a conversion for bfloat16 or float32 and inputs of these shapes.

    The last one is kept, since the next call is mostly for the same network and sizes.
    """
    key = folder, half, threads, shapes
    if key not in _cache:
        _cache.clear()  # before compiling, since two large networks may not fit
        _cache[key] = Compiled(*key)
    return _cache[key]


def _code_digest(network: nn.Module) -> str:
    """The digest of the source files of a network's modules and of all of `nn`."""
    files = {Path(inspect.getfile(type(part))) for part in network.modules()}
    files |= set(Path(attention.__file__).parent.glob("*.py"))
    digest = hashlib.sha256()
    for content in sorted(file.read_bytes() for file in files):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
