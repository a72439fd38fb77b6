"""Options of `triptych serve`, and the limits of what a client may ask. No torch, no fastapi."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

KEY = "TRIPTYCH_API_KEY"
LEAST_KEY = 16
"""Characters of a key: a shorter one can be guessed."""


@dataclass(frozen=True)
class Serve:
    """Serve every model over HTTP: Triptych's own routes, OpenAI's and AUTOMATIC1111's."""

    host: str = "127.0.0.1"
    """Address to listen at. Other machines reach 0.0.0.0, which needs an API key."""
    port: int = 7860
    """Port; 0 takes a free one."""
    api_key: str = ""
    """Key that clients send as a Bearer token. Default: the environment variable TRIPTYCH_API_KEY.
    """
    models: tuple[str, ...] = ()
    """Models to offer: run folders, checkpoints, names such as sd15. Default: those in the package,
    those below `runs`, and those trained by the service.
    """
    data_root: tuple[str, ...] = ()
    """Folders whose sub-folders may be trained on and searched."""
    home: Path | None = None
    """Folder for the queue, results and uploads. Default: one in the user's data folder."""
    allow_host: tuple[str, ...] = ()
    """Further names under which this machine may be called, such as studio.example."""
    allow_origin: tuple[str, ...] = ()
    """Pages of other sites that may call the service, such as https://chat.example."""
    devices: tuple[str, ...] = ("auto",)
    """Devices that draw, one picture job at a time each, such as cuda:0 cuda:1."""
    memory: float = 0.0
    """Gigabytes that loaded models may take; 0: half of the machine's memory."""
    open: bool = False
    """Open the page in the browser of this machine."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port is 0 (any) to 65535, not {self.port}")
        if not self.memory >= 0:
            raise ValueError(f"memory is gigabytes, or 0 for half of it, not {self.memory}")
        if not self.devices:
            raise ValueError("devices: give at least one, such as auto")
        for origin in self.allow_origin:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ValueError(
                    "allow_origin is a page's scheme, host and port, such as https://chat.example, "
                    f"not {origin!r}"
                )
        if self.key and len(self.key) < LEAST_KEY:
            raise ValueError(
                f"the API key has {len(self.key)} characters; give at least {LEAST_KEY}, such as "
                "those of `python -c 'import secrets; print(secrets.token_urlsafe())'`"
            )
        if not self.key and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines: give an --api-key, or listen at "
                "127.0.0.1"
            )

    @property
    def key(self) -> str:
        """The API key, empty for none."""
        return self.api_key or os.environ.get(KEY, "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_home() -> Path:
    """The folder of the service in the user's data folder (XDG base directories)."""
    chosen = os.environ.get("XDG_DATA_HOME", "")
    root = Path(chosen) if os.path.isabs(chosen) else Path.home() / ".local" / "share"
    return root / "triptych" / "service"


@dataclass(frozen=True)
class Limits:
    """What a client may ask at most. `GET /api/limits` tells them."""

    body_bytes: int = 32 << 20
    """Of a request, all files together."""
    picture_bytes: int = 20_000_000
    pictures_per_request: int = 8
    files_per_upload: int = 512
    """Of a data set."""
    prompt_characters: int = 32_000
    n: int = 64
    steps: int = 150
    side: int = 2048
    """Pixels."""
    work: int = 10 * 50 * 1024 * 1024
    """Pictures times steps times pixels of one request: ten of 1024 x 1024 in 50 steps."""
    tokens: int = 1024
    """Of an answer."""
    messages: int = 64
    """Of a chat."""
    texts: int = 256
    """Texts to embed."""
    labels: int = 1000
    found: int = 1000
    """Pictures that a search returns."""
    waiting: int = 32
    """Jobs in the queue."""
    waiting_per_client: int = 24
    connections: int = 256
    body_idle_seconds: float = 15.0
    """Within which the head of a request, or the next part of its body, must arrive, and the next
    part of an answer be read.
    """
    body_bytes_per_second: int = 1024
    """Least speed of a body after that."""
    keep_alive_seconds: float = 15.0
    """Between two signs of life in a stream of events."""
    preview_seconds: float = 0.1
    """Least time between two previews of a job, and between two words of its progress."""
    unseen_seconds: float = 1.0
    """The same while nobody follows it: for a client that comes in the middle."""
    preview_side: int = 512


@dataclass(frozen=True)
class Places:
    """Where the service keeps what it must not lose."""

    home: Path
    database: Path = field(init=False)
    results: Path = field(init=False)
    """Pictures that were made, which can be searched."""
    shown: Path = field(init=False)
    """Pictures beside results, such as heat maps and what a search has found."""
    uploads: Path = field(init=False)
    data: Path = field(init=False)
    """Data sets made of uploaded pictures."""
    runs: Path = field(init=False)
    """Trainings."""

    def __post_init__(self) -> None:
        names = {"database": "service.sqlite"} | {
            n: n for n in ("results", "shown", "uploads", "data", "runs")
        }
        for name, file in names.items():
            object.__setattr__(self, name, self.home / file)

    def make(self) -> None:
        """Make the folders; only their owner may read them."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)
        for folder in (self.results, self.shown, self.uploads, self.data, self.runs):
            folder.mkdir(exist_ok=True)
