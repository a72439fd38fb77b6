"""What MkDocs does not do by itself for the site of `mkdocs.yml`.

It adds the pages that are not in docs/ (changelog, contributing, security) and a page of reference
for each package, points links to source files there, writes mathematics as MathML, which browsers
draw by themselves, and refuses pages that would fetch anything from elsewhere.
"""

import os
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "triptych"
GUESTS = {"CHANGELOG.md": "Changes", "CONTRIBUTING.md": "Contributing", "SECURITY.md": "Security"}
"""Pages at the root of the repository, and their names in the navigation."""
LEFT_OUT = {"__main__", "cli", "server"}
"""Modules without a reference: their interface is the command line and HTTP."""
FULL = os.environ.get("TRIPTYCH_REFERENCE", "true") != "false"
"""Whether the reference is more than its headings, which is most of the time of a build."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)\s#]*)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```)", re.S | re.M)
MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
NAME = re.compile(r"(?<!\">)<code>(triptych(?:\.\w+)+|(?:\w+/)+\w+\.py)</code>(?!</a>)")
"""A dotted name or a file of the package, other than in a link."""
LINKED: set[tuple[str, str]] = set()
"""Pages of the reference and what is linked on them."""
FETCHED = re.compile(
    r"<(?:script|img|iframe|link|source|video|audio|object|embed)\b[^>]*?"
    r"(?:src|href|data)\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)"
)


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that follow from the tree."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    project = next(entry["Project"] for entry in config.nav if "Project" in entry)
    project += [{name: guest.lower()} for guest, name in GUESTS.items()]
    project.append({"Decisions": [f"decisions/{name}" for name in decisions]})
    config.nav.append({"Reference": ["reference/index.md", *_reference_nav()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for guest in GUESTS:
        content = (ROOT / guest).read_text().replace("](docs/", "](")
        files.append(File.generated(config, guest.lower(), content=content))
    for address, (title, modules) in reference_pages().items():
        content = f"# {title}\n\n" + "\n".join(map(_directive, modules))
        files.append(File.generated(config, address, content=content))
    files.append(File.generated(config, "reference/index.md", content=_reference_index()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to source files at the reference, and read tables as GitHub does."""
    folder = PurePosixPath(page.file.src_uri).parent
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(lambda link: _follow(link, folder), part) for part in parts[::2]]
    lines = "".join(parts).splitlines()
    return "\n".join(_plain_pipes(line) if line.startswith("|") else line for line in lines)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Write mathematics; link names of the package to the reference."""
    hidden = ["navigation"] if page.parent is None else []  # it would have one entry
    hidden += [] if len(re.findall("<h[23]", html)) > 1 else ["toc"]
    page.meta["hide"] = hidden
    html = write_maths(html)
    if page.file.src_uri.startswith("reference/"):
        page.meta["search"] = {"boost": 0.5}  # after what explains
        return html
    folder = PurePosixPath(page.file.src_uri).parent
    return NAME.sub(lambda name: _link_name(name[1], folder), html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    elsewhere = fetched(output)
    if elsewhere:
        raise PluginError(f"{page.file.src_uri} would fetch {', '.join(elsewhere)}")
    return output


def on_post_build(config: Any) -> None:
    """Names that were linked must be in the reference."""
    ids = {
        address: set(re.findall(r'id="([^"]+)"', (Path(config.site_dir) / address).read_text()))
        for address in {address for address, _ in LINKED}
    }
    missing = sorted(name for address, name in LINKED if name not in ids[address])
    if missing:
        raise PluginError(f"pages name what the reference has not: {', '.join(missing)}")


def write_maths(html: str) -> str:
    """LaTeX between the marks of arithmatex as MathML.

    Raises:
        PluginError: a command is not known, which would be shown as its name.
    """

    def write(found: re.Match[str]) -> str:
        latex = found[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        display = "block" if found[1] == "div" else "inline"
        written = str(convert(latex.strip(), display=display))
        if unknown := re.findall(r"\\\w+", written):
            raise PluginError(f"the formula {latex.strip()} has unknown {', '.join(unknown)}")
        return written

    return MATHS.sub(write, html)


def fetched(html: str) -> list[str]:
    """What a browser would load from another host to show a page."""
    return FETCHED.findall(html)


@cache
def reference_pages() -> dict[str, tuple[str, list[str]]]:
    """By address: the title and the modules, in reading order, of each page of the reference."""
    pages = {}
    plain = sorted(path for path in SOURCE.glob("*.py") if path.stem not in LEFT_OUT)
    names = [_dotted(path) for path in plain if path.stem != "requests"]
    pages["reference/triptych.md"] = ("triptych", names)
    pages["reference/requests.md"] = ("Requests", ["triptych.requests"])
    folders = [path.parent for path in sorted(SOURCE.glob("*/__init__.py"))]
    folders += [path.parent for path in sorted((SOURCE / "systems").glob("*/__init__.py"))]
    for folder in folders:
        name = folder.relative_to(SOURCE).as_posix()
        if name in LEFT_OUT or name == "systems":
            continue
        pages[f"reference/{name}.md"] = (_dotted(folder), _in_reading_order(folder))
    return pages


def _in_reading_order(folder: Path) -> list[str]:
    """The modules of a package: those that its docstring names first, as it names them."""
    text = (folder / "__init__.py").read_text()
    modules = sorted(path for path in folder.rglob("*.py"))

    def place(path: Path) -> tuple[int, int, str]:
        if path.name == "__init__.py":
            return (0 if path.parent == folder else 2, 0, str(path))
        at = text.find(f"`{path.name}`")
        return (1, at, "") if at >= 0 and path.parent == folder else (2, 0, str(path))

    return [_dotted(path) for path in sorted(modules, key=place)]


def _dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _directive(module: str) -> str:
    return f"::: {module}\n" if FULL else f"## {module}\n"


def _reference_nav() -> list[Any]:
    """The pages of the reference: the package, then its parts, then the systems."""
    systems = [{name: f"reference/systems/{name}.md"} for name in _names("systems/")]
    return [
        {"triptych": "reference/triptych.md"},
        {"Requests": "reference/requests.md"},
        {"Systems": systems},
        *({name: f"reference/{name}.md"} for name in _names("")),
    ]


def _names(folder: str) -> list[str]:
    pages = [PurePosixPath(address) for address in reference_pages()]
    parent = PurePosixPath("reference") / folder
    return [p.stem for p in pages if p.parent == parent and p.stem not in ("triptych", "requests")]


def _reference_index() -> str:
    lines = []
    for address, (title, modules) in reference_pages().items():
        path = SOURCE.parent / modules[0].replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        first = re.search(r'"""(.+?)(?:\n\n|""")', file.read_text(), re.S)
        said = " ".join(first[1].split()) if first else ""
        lines.append(f"| [{title}]({address.removeprefix('reference/')}) | {said} |")
    said = "From the docstrings of the package. How it is used: [in Python](../python.md)."
    return "\n".join(["# Reference", "", said, "", "| | |", "|---|---|", *lines, ""])


def _follow(link: re.Match[str], folder: PurePosixPath) -> str:
    """A link as it is, or to the reference of the source file that it names, or only its text."""
    mark, text, target, anchor = link.groups()
    if mark or not target.startswith("../"):
        return link[0]
    whole = os.path.normpath(PurePosixPath("docs") / folder / target)
    depth = "../" * len(folder.parts)
    if whole in GUESTS:
        return f"[{text}]({depth}{whole.lower()}{anchor or ''})"
    if whole.startswith("docs/"):
        return link[0]
    module = _dotted(ROOT / whole) if whole.startswith("src/triptych/") else ""
    for address, (_, modules) in reference_pages().items():
        if module in modules:
            return f"[{text}]({depth}{address}#{module if FULL else _slug(module)})"
    return text


def _link_name(name: str, folder: PurePosixPath) -> str:
    """A name of the package as code, with a link to its place in the reference, if it has one."""
    dotted = name.replace("/", ".").removesuffix(".py") if name.endswith(".py") else name
    found = [
        (address, module)
        for address, (_, modules) in reference_pages().items()
        for module in modules
        if f"{dotted}.".startswith(f"{module}.") or module.endswith(f".{dotted}")
        if module != "triptych"
    ]
    found.sort(key=lambda place: -len(place[1]))
    code = "<code>" + re.sub(r"([./])", r"\1<wbr>", name) + "</code>"
    if not found or (name.endswith(".py") and len(found) > 1):
        return code
    address, module = found[0]
    anchor = module if name.endswith(".py") else name
    if not FULL:
        anchor = _slug(module)
    page = PurePosixPath(address).with_suffix(".html")
    LINKED.add((str(page), anchor))
    return f'<a href="{"../" * len(folder.parts)}{page}#{anchor}">{code}</a>'


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _plain_pipes(row: str) -> str:
    """`\\|` in the code of a table is a pipe: GitHub reads it so, Python-Markdown shows it."""
    return re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row)
