"""A figure's place in the report: what is drawn, how to read it, and where it misleads."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go

_TITLE = 44  # pixels of a figure's upper margin that its title takes; in the page it stands above the figure


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its place in the report.

    Attributes:
        name: id of its element; unique in the page.
        figure: the figure.
        reading: how to read it.
        pitfall: where it misleads.
    """

    name: str
    figure: go.Figure
    reading: str
    pitfall: str

    def to_html(self) -> str:
        """Heading, an empty box that the page's script draws into, and the caption."""
        layout = self.figure.to_plotly_json()["layout"]
        words = layout["title"]
        title, subtitle = words["text"], words["subtitle"]["text"]  # both were escaped when the figure was made
        return (
            f'<figure id="figure-{self.name}"><h3>{title}</h3><p class="subtitle">{subtitle}</p>'
            f'<div class="plot" id="{self.name}" style="min-height:{_height(layout)}px" role="img" '
            f'aria-label="{html.escape(html.unescape(title))}"></div>'
            f"<figcaption>{html.escape(self.reading)} <strong>Mind:</strong> "
            f"{html.escape(self.pitfall)}</figcaption></figure>"
        )


def figures_json(figures: Iterable[ReportFigure]) -> str:
    """The figures without their titles (the page sets them), as JSON that can stand inside a ``<script>`` element.

    ``<``, ``>`` and ``&`` are written as escapes, so no text from a model can end the element.

    Example:
        >>> figure = go.Figure().update_layout(title={"text": "</script>", "subtitle": {"text": ""}})
        >>> "<" in figures_json([ReportFigure("one", figure, "", "")])
        False
    """
    parts = {}
    for part in figures:
        record = json.loads(str(part.figure.to_json()))
        layout = record["layout"]
        del layout["title"]
        margin = layout.get("margin", {})
        margin["t"] = max(40, margin.get("t", 104) - _TITLE)
        layout |= {"margin": margin, "height": _height(layout)}
        parts[part.name] = record
    text = json.dumps(parts, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _height(layout: dict) -> int:
    """Pixels in the page: a figure of many panels loses the room of its title, a plain one keeps it for its data."""
    height = int(layout.get("height", 420))
    return height if height <= 420 else height - _TITLE
