"""The environment that a measured number depends on."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment(command: str) -> dict[str, Any]:
    """Command, versions and processor, to be reported beside a number."""
    return {
        "command": command,
        "triptych": version("triptych"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor_name() -> str:
    """The processor's model name, or its architecture if the system does not know it."""
    table = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", table.read_text()) if table.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()
