"""`triptych embed`: texts and pictures as vectors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import find_options, parse, split_words
from triptych.cli.output import printable, say
from triptych.cli.places import require_file
from triptych.systems.two_towers.request import Embed

if TYPE_CHECKING:
    from triptych.systems.two_towers.pipeline import Vector

USAGE = "triptych embed --text TEXT ... --image PICTURE ... [OPTIONS]"
BASIC = ("text", "image", "model", "out", "json")


@dataclass(frozen=True)
class Arguments:
    """Embed texts and pictures as vectors of one space: unit length, float32."""

    request: Embed
    json: bool = False
    """Print one JSON object per input on stdout, in their order: kind, input, embedding."""
    out: Path | None = None
    """An .npy file to write: the embeddings, one row per input, in their order."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 3 where a picture could not be read."""
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC)
    request = parsed.request
    if parsed.out is not None:
        require_file("--out", parsed.out, (".npy",))
    from triptych.running import run

    *_, result = run(request)
    count = len(request.text)
    by_flag = {"--text": iter(result.rows[:count]), "--image": iter(result.rows[count:])}
    _, given = split_words(arguments, {o.flag: o for o in find_options(Embed)})
    rows = [next(by_flag[flag]) for flag, values in given if flag in by_flag for _ in values]
    for row in rows:
        _warn(row)
    if parsed.json:
        from triptych.systems.two_towers.answer import describe_vector

        for row in rows:
            print(json.dumps(describe_vector(row)))
    bad = sum(bool(row.error) for row in rows)
    if parsed.out is not None:
        _write(parsed.out, rows, bad)
    if not parsed.json and parsed.out is None:
        for row in rows:
            if row.embedding is not None:
                head = " ".join(f"{number:+.4f}" for number in row.embedding[:4].tolist())
                print(printable(f"{row.input}: {len(row.embedding)} numbers, {head} ..."))
        say("(`--json` prints all of them, `--out FILE.npy` writes them)")
    return 3 if bad else 0


def _warn(row: "Vector") -> None:
    if row.error:
        say(f"{row.input}: {row.error}")
    if row.cut:
        say(f"{row.input[:40]}...: too long for the model, which ignores {row.cut!r}")


def _write(path: Path, rows: "list[Vector]", bad: int) -> None:
    import numpy as np

    from triptych.atomic import replace_file

    if bad:
        say(
            f"triptych: {path} was not written: its rows would not match the inputs "
            f"({bad} of {len(rows)} could not be read)"
        )
        return
    matrix = np.stack([row.embedding.numpy() for row in rows if row.embedding is not None])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, matrix, allow_pickle=False)
    say(f"{path}: {matrix.shape[0]} x {matrix.shape[1]} float32")
