"""`triptych embed`: texts and pictures as vectors."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import parse
from triptych.cli.main import say
from triptych.cli.words import gathered, plain
from triptych.systems.two_towers.request import Embed

if TYPE_CHECKING:
    from triptych.systems.two_towers.pipeline import Vector

FLAGS = ("--text", "--image")
USAGE = "triptych embed --text TEXT ... --image PICTURE ... [OPTIONS]"
BASIC = ("text", "image", "model", "out", "json")
NOTHING = Embed(text=("",))  # what the parser starts from; a request is never empty


@dataclass(frozen=True)
class Arguments:
    """Write texts and pictures as vectors of one space: unit length, float32."""

    request: Embed = field(default_factory=lambda: NOTHING)
    json: bool = False
    """One JSON object an input on stdout, in the order given: kind, input, embedding."""
    out: Path | None = None
    """An .npy file for the matrix, a row an input, in the order given."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 3 where a picture could not be read."""
    rest, taken = gathered(arguments, FLAGS)
    asked = {flag: tuple(value for f, value in taken if f == flag) for flag in FLAGS}
    texts, images = asked["--text"], asked["--image"]
    help_wanted = {"--help", "-h", "--help-all"} & set(rest)
    start = NOTHING if help_wanted else Embed(text=texts, image=images)
    parsed = parse(Arguments, rest, usage=USAGE, basic=BASIC, default=Arguments(start))
    if parsed.out is not None and parsed.out.suffix != ".npy":
        raise ValueError(f"--out {parsed.out} should end in .npy")
    from triptych.running import run

    *_, result = run(parsed.request)
    of_texts, of_images = iter(result.rows[: len(texts)]), iter(result.rows[len(texts) :])
    rows = [next(of_texts if flag == "--text" else of_images) for flag, _ in taken]
    for row in rows:
        _warn(row)
    if parsed.json:
        for row in rows:
            print(json.dumps(_as_json(row)))
    bad = sum(bool(row.error) for row in rows)
    if parsed.out is not None:
        _write(parsed.out, rows, bad)
    if not parsed.json and parsed.out is None:
        for row in rows:
            if row.embedding is not None:
                head = " ".join(f"{number:+.4f}" for number in row.embedding[:4].tolist())
                print(plain(f"{row.input}: {len(row.embedding)} numbers, {head} ..."))
        say("(`--json` prints all of them, `--out FILE.npy` writes them)")
    return 3 if bad else 0


def _warn(row: "Vector") -> None:
    if row.error:
        say(plain(f"{row.input}: {row.error}"))
    if row.cut:
        say(plain(f"{row.input[:40]}...: too long for the model, which does not see {row.cut!r}"))


def _as_json(row: "Vector") -> dict[str, object]:
    notes: dict[str, object] = {"kind": row.kind, "input": row.input}
    if row.embedding is not None:
        notes["embedding"] = row.embedding.tolist()
    if row.cut:
        notes["cut"] = row.cut
    if row.error:
        notes["error"] = row.error
    return notes


def _write(path: Path, rows: "list[Vector]", bad: int) -> None:
    import numpy as np

    from triptych.atomic import replace_file

    if bad:
        print(
            f"triptych: {path} was not written: rows would not stand for the inputs "
            f"({bad} of {len(rows)} could not be read)",
            file=sys.stderr,
        )
        return
    matrix = np.stack([row.embedding.numpy() for row in rows if row.embedding is not None])
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, matrix, allow_pickle=False)
    say(f"{path}: {matrix.shape[0]} x {matrix.shape[1]} float32")
