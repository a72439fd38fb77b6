"""The words of a command line: their order, and which text is safe to print."""

from collections.abc import Collection


def gathered(
    arguments: list[str], lists: Collection[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the values of some flags out, each with its flag, in the order in which they stand.

    A flag takes all words up to the next flag and may be given again; `--flag=word` takes one. The
    parser sees the rest: it would keep only the last of them, and forget the order.
    """
    rest: list[str] = []
    taken: list[tuple[str, str]] = []
    current = ""
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag in lists:
            current = "" if equals else flag
            if equals:
                taken.append((flag, value))
        elif word.startswith("--") or word == "-h":
            current = ""
            rest.append(word)
        elif current:
            taken.append((current, word))
        else:
            rest.append(word)
    return rest, taken


def parted(arguments: list[str], switches: Collection[str]) -> tuple[list[str], list[str]]:
    """Bare words, and flags with their values: a parser that has met a flag takes no more words.

    Every flag is taken to have one value, except the `switches`, which have none.
    """
    words: list[str] = []
    flags: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("--") and word != "-h":
            words.append(word)
            continue
        value = None
        if word != "-h" and "=" not in word and word not in switches:
            value = next(rest, None)
        flags.append(word if value is None else f"{word}={value}")  # a value may begin with -
    return words, flags


def plain(text: str) -> str:
    """Without the control characters that a file name could send to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
