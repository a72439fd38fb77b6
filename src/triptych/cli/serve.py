"""`triptych serve`: every model over HTTP."""

from dataclasses import replace
from pathlib import Path

from triptych.cli.arguments import parse
from triptych.cli.output import UsageError, say
from triptych.cli.places import require_folder
from triptych.server.settings import Serve, default_home

USAGE = "triptych serve [--host ADDRESS] [--port N] [OPTIONS]"
BASIC = (
    "host",
    "port",
    "api_key",
    "models",
    "data_root",
    "home",
    "allow_host",
    "allow_origin",
    "open",
)
TOPICS = {
    "address": ("host", "port", "allow_host", "allow_origin", "open"),
    "access": ("api_key",),
    "content": (),
    "computing": ("devices", "memory"),
}


def main(arguments: list[str]) -> int:
    settings = parse(Serve, arguments, usage=USAGE, basic=BASIC, topics=TOPICS)
    home = settings.home or default_home()
    require_folder("--home", home)
    for root in settings.data_root:
        if not Path(root).is_dir():
            raise UsageError(f"--data-root {root} is no folder")
    try:
        from triptych.server.start import start
    except ImportError as error:
        raise RuntimeError(
            f"the service needs the package {error.name}: pip install 'triptych[server]'"
        ) from None
    return start(replace(settings, home=home), say)
