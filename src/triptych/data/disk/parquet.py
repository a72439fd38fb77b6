"""pyarrow, which reads and writes Parquet, where it is needed."""

import importlib
from typing import Any


def require_pyarrow() -> Any:
    """The module, with `parquet`.

    Raises:
        ValueError: it is not installed, with the command that installs it.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ValueError(
            'Parquet needs pyarrow, which is not installed: `pip install "triptych[scale]"`'
        ) from error
