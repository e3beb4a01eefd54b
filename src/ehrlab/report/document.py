"""A report as data, and its two printed forms: one self-contained HTML page and Markdown with PNG files beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ehrlab.report.figures import Figure, stamped
from ehrlab.report.files import write_atomically


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Grid:
    """A table of plain strings; the first column holds the row names.

    `spans` is an optional upper header: (text, number of columns), together as wide as `header`.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    spans: Sequence[tuple[str, int]] = ()

    @property
    def text_columns(self) -> set[int]:
        """Columns without a number: they read better from the left."""
        columns = range(1, len(self.header))
        return {c for c in columns if not any(re.match(r"[-+–\[]?\d|–", row[c]) for row in self.rows)}

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), "a row is not as wide as its header"
        assert not self.spans or sum(span for _, span in self.spans) == len(self.header), "spans do not fit the header"


@dataclass(frozen=True)
class Picture:
    """`simulated`: the file, which may leave the page and its banner behind, says so itself."""

    figure: Figure
    caption: str
    simulated: bool


Block = Paragraph | Code | Grid | Picture


@dataclass
class Section:
    """A titled part of the page. `folded`: closed until the reader opens it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    folded: bool = False


@dataclass
class Document:
    title: str
    lead: str
    sections: list[Section]
    banner: str | None = None

    @property
    def pictures(self) -> list[Picture]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]


def to_html(document: Document) -> str:
    """One page without scripts or outside resources; every text in it is escaped."""
    return (
        _environment().get_template("page.html.j2").render(document=document, kind=lambda block: type(block).__name__)
    )


def to_markdown(document: Document) -> str:
    """The same content; pictures are links to `figures/<name>.png`."""
    parts = [f"# {_plain(document.title)}"]
    if document.banner:
        parts.append(f"> **{_plain(document.banner)}**")
    parts.append(_plain(document.lead))
    for section in document.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def write_document(document: Document, out: Path, tables: Mapping[str, str]) -> Path:
    """index.html, report.md, figures/*.png and a CSV for each of `tables` in `out`; returns the page's path.

    Pictures that an earlier rendering left in `figures/` and that are no longer part of the page are removed.
    """
    names = {f"{picture.figure.name}.png" for picture in document.pictures}
    assert len(names) == len(document.pictures), "two pictures of one name"
    for picture in document.pictures:
        png = stamped(picture.figure.png, "SIMULATED DATA") if picture.simulated else picture.figure.png
        write_atomically(out / "figures" / f"{picture.figure.name}.png", png)
    for stale in (out / "figures").glob("*.png"):
        if stale.name not in names:
            stale.unlink()
    for name, csv in tables.items():
        write_atomically(out / f"{name}.csv", csv)
    write_atomically(out / "report.md", to_markdown(document))
    return write_atomically(out / "index.html", to_html(document))


@cache
def _environment() -> Environment:
    # autoescape is on for every template: row names come from config files and folders of others.
    return Environment(
        loader=PackageLoader("ehrlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _block(block: Block) -> str:
    match block:
        case Paragraph():
            return _plain(block.text)
        case Code():
            return f"```sh\n{block.text.replace('```', '')}\n```"
        case Picture():
            caption = _plain(block.caption)
            return f"![{caption}](figures/{block.figure.name}.png)\n\n*{caption}*"
        case Grid():
            return _markdown_table(block)


def _markdown_table(grid: Grid) -> str:
    header = list(grid.header)
    if grid.spans:
        above = [text for text, span in grid.spans for _ in range(span)]
        header = [f"{top}: {below}" if top else below for top, below in zip(above, header)]
    rules = ["---" if column == 0 or column in grid.text_columns else "---:" for column in range(len(header))]
    lines = [header, rules, *grid.rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links, emphasis or broken table cells."""
    one_line = " ".join(text.split())
    escaped = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escaped)
