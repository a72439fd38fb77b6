"""`triptych chat MESSAGE --model MODEL`: answers of a language model, word by word."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import parse
from triptych.cli.output import UsageError, printable, say
from triptych.cli.places import require_file
from triptych.systems.gemma.request import Chat

if TYPE_CHECKING:
    from triptych.systems.gemma.pipeline import Said

USAGE = "triptych chat [MESSAGE] --model MODEL [OPTIONS]"
BASIC = ("model", "system", "raw", "transcript", "max_tokens", "temperature", "stop", "json")
PROMPT = "> "


@dataclass(frozen=True)
class Arguments:
    """Chat with a language model, such as a GGUF file of Gemma 3. Without a message each line that
    you type, or of the input, is one.
    """

    request: Chat
    messages: tuple[str, ...] = ()
    """What you say to the model; several are answered one after another."""
    transcript: Path | None = None
    """A .jsonl file of the chat, one turn per line: it is continued, and what is said is added."""
    json: bool = False
    """Print one JSON object per answer on stdout: text, tokens and their log-probabilities."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    raw = any(word.partition("=")[0] == "--raw" for word in arguments)
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, positional=("messages",),
        fixed={"message": "" if raw else "-"},
    )  # fmt: skip
    if raw and (parsed.messages or parsed.transcript):
        raise UsageError("--raw continues a text: it goes with no message and no --transcript")
    request, turns = parsed.request, _read_transcript(parsed)
    from triptych import loading, runtime
    from triptych.systems.gemma.pipeline import Reader, answer, dtype_of, require_language

    device = runtime.device(request.device)
    loaded = loading.load(request.model, device, dtype_of(request.precision))
    for note in loaded.notes:
        say(f"{loaded.name}: {note}")
    reader = Reader(require_language(loaded)[0])
    if raw:
        _show(parsed, answer(request, loaded, reader))
        return 0
    answers = 0
    for message in parsed.messages or _typed():
        asked = replace(request, message=message, turns=turns)
        said = _show(parsed, answer(asked, loaded, reader))
        turns += (message, said.text)
        answers += 1
        _add_to_transcript(parsed, message, said.text)
    if not answers:
        raise UsageError(f"there is no message to answer: {USAGE}")
    return 0


def _read_transcript(parsed: Arguments) -> tuple[str, ...]:
    """The turns before, from the file and the options, checked before the model is loaded.

    A system prompt in the file must be that of the request.
    """
    path, turns = parsed.transcript, tuple(parsed.request.turns)
    if path is None:
        return turns
    require_file("--transcript", path, (".jsonl",))
    if not path.exists():
        return turns
    from triptych.config import errors_about
    from triptych.text.language import read_messages

    with errors_about(path):
        messages = read_messages(path.read_text(encoding="utf-8"))
        before = messages.pop(0).text if messages and messages[0].role == "system" else ""
        if messages and before != parsed.request.system:
            raise ValueError("its chat has another --system: give the same, or another file")
        roles = [message.role for message in messages]
        if roles != ["user", "model"] * (len(roles) // 2):
            raise ValueError("its turns are no pairs of a user's message and its answer")
    return (*(message.text for message in messages), *turns)


def _add_to_transcript(parsed: Arguments, message: str, answer: str) -> None:
    """Append a message and its answer; a new file begins with the system prompt."""
    path = parsed.transcript
    if path is None:
        return
    lines = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    if parsed.request.system and not path.exists():
        lines.insert(0, {"role": "system", "content": parsed.request.system})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _typed() -> Iterator[str]:
    """The lines of the input that are not empty."""
    while True:
        if sys.stdin.isatty():
            print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _show(parsed: Arguments, answer: "Iterator[Said]") -> "Said":
    """Print an answer as it comes, or when it is complete as JSON."""
    for said in answer:
        if not parsed.json:
            sys.stdout.write("\t".join(map(printable, said.new.split("\t"))))
            sys.stdout.flush()
    if parsed.json:
        from triptych.systems.gemma.answer import to_answer

        print(json.dumps(to_answer(said, Path(parsed.request.model).name).values))
        return said
    print()
    if said.reason == "limit":
        say(f"(cut off after {len(said.tokens)} tokens: --max-tokens allows more)")
    return said
