"""The parts of an HTML page that needs nothing beside itself: no script, style, font or picture from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def escape(text: Any) -> str:
    """Any value as text that HTML shows as it is."""
    return html.escape(str(text))


def element(tag: str, content: str, cls: str = "", **attributes: Any) -> str:
    """An element around HTML content. Attributes: `_` becomes `-`; True stands alone, None and False are left out."""
    given = {"class": cls or None, **attributes}
    marks = "".join(
        f" {name.replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for name, value in given.items()
        if value is not None and value is not False
    )
    return f"<{tag}{marks}>{content}</{tag}>"


def page(title: str, body: str) -> str:
    """A whole page around HTML content."""
    style, script = ((_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A part of the page under a heading; nothing where there is no content."""
    return element("section", element("h2", escape(title)) + content) if content else ""


def folded(title: str, content: str) -> str:
    """A part of the page that is closed at first."""
    return element("details", element("summary", escape(title)) + content)


def tiles(figures: Mapping[str, str]) -> str:
    """The main figures, large: name to value."""
    return element(
        "dl",
        "".join(
            element("div", element("dt", escape(name)) + element("dd", escape(value)))
            for name, value in figures.items()
        ),
        cls="tiles",
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str = "", last: int = 0) -> str:
    """A table; first column text, the others figures. The `last` rows at the end stand apart, as means do."""
    cells = [_row("td", row) for row in rows]
    head = element("thead", _row("th", header))
    body = element("tbody", "".join(cells[: len(cells) - last]))
    foot = element("tfoot", "".join(cells[len(cells) - last :])) if last else ""
    title = element("caption", escape(caption)) if caption else ""
    inner = element("table", title + head + body + foot)
    return element("div", inner, cls="scroll", tabindex="0", role="region", aria_label=caption or header[0])


def facts(values: Mapping[str, Any]) -> str:
    """Names and values as a plain table."""
    return table(("name", "value"), [(name, value) for name, value in values.items()])


def figure(picture: str, text: str) -> str:
    """A picture (a data URI) with what it shows, for the eye and for those who do not see it."""
    return element("figure", f'<img src="{picture}" alt="{escape(text)}">' + element("figcaption", escape(text)))


def number(value: Any, digits: int = 3) -> str:
    """A figure for people; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before zero
    return str(value)


def _row(tag: str, values: Sequence[Any]) -> str:
    return element("tr", "".join(element(tag, escape(number(value))) for value in values))
