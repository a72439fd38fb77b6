"""`triptych caption PICTURE`: a picture described in words."""

from triptych.cli.arguments import parse
from triptych.cli.ask import Arguments, check_transcript, finish, show

USAGE = "triptych caption PICTURE --model MODEL [OPTIONS]"
BASIC = ("model", "language", "transcript", "max_tokens", "temperature", "json")


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, positional=("picture",),
        description="Describe a picture in words, by a PaliGemma.",
        fixed={"task": "caption", "question": ""},
    )  # fmt: skip
    check_transcript(parsed.transcript)
    from triptych.running import run

    said = show(run(parsed.request), parsed.json)
    finish(parsed.request, said, parsed.transcript, parsed.json)
    return 0
