"""Tables as text: for `print`, a terminal or a pipe; names in them may hold any characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

UNBOUNDED = 100_000  # a width at which nothing is folded


def printable(text: str) -> str:
    """The text with control characters and line breaks escaped: a tensor's name may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def table(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, totals: Sequence[str] = ()
) -> Table:
    """A table whose first `words` columns hold text, folded where it is too long, and the others numbers.

    `totals`: a last row below a rule.
    """
    title = printable(title)
    result = Table(title=Text(title, "italic"), min_width=len(title), show_footer=bool(totals))
    for i, header in enumerate(headers):
        footer = totals[i] if totals else ""
        if i < words:
            result.add_column(header, footer, overflow="fold")
        else:
            result.add_column(header, footer, justify="right", no_wrap=True)
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result


def as_text(parts: Iterable[RenderableType], width: int = 120) -> str:
    """Tables and lines as plain text, at most `width` characters wide."""
    text = StringIO()
    console = Console(file=text, width=width)
    console.print(*parts, sep="\n", soft_wrap=False)
    return text.getvalue().rstrip()
