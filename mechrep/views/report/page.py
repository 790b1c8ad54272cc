"""The frame of the report: one file that holds its style, its script and plotly, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources

from mechrep.views.report.section import Section, badges_html
from mechrep.views.theme import GRID, INK, PAPER, PAPER_INK

escape = html.escape


def header_html(model_name: str, sections: Sequence[Section]) -> str:
    """The title, and every section's finding with a link to it."""
    findings = "".join(
        f'<li><a href="#{escape(section.anchor)}">{escape(section.title)}</a>'
        f"<p>{escape(section.finding)}</p>{badges_html(section.badges)}</li>"
        for section in sections
    )
    return (
        f'<header id="top"><p class="kicker">Repetition in <span class="model">{escape(model_name)}</span></p>'
        f'<h1>Why does {escape(model_name)} repeat itself?</h1><ol class="findings">{findings}</ol></header>'
    )


def navigation_html(sections: Sequence[Section]) -> str:
    """Links to all sections, which stay in sight."""
    anchors = [("top", "Findings"), *((section.anchor, section.label) for section in sections)]
    links = "".join(f'<a href="#{escape(anchor)}">{escape(label)}</a>' for anchor, label in anchors)
    return f'<nav aria-label="sections">{links}<a href="#provenance">Provenance</a></nav>'


def page_html(title: str, navigation: str, body: str, figures: str, plotly: str) -> str:
    """The whole page.  A content security policy forbids every request, and every script but two by their hashes.

    Args:
        title: plain text.
        navigation: HTML.
        body: HTML.
        figures: of :func:`mechrep.views.report.figures.figures_json`.
        plotly: the library's source.
    """
    # Line ends are those of HTML, because the hashes are taken after they are read.
    script, plotly = (text.replace("\r\n", "\n").replace("\r", "\n") for text in (_asset("report.js"), plotly))
    hashes = " ".join(_hash(text) for text in (plotly, script))
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    colours = json.dumps({"ink": INK, "grid": GRID, "paper": PAPER, "paper-ink": PAPER_INK})
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mechrep">
<title>{escape(title)}</title>
<style>
{_asset("report.css")}</style>
</head>
<body>
<button id="theme" type="button" aria-label="switch between light and dark">◐</button>
{navigation}
<main>
{body}
<noscript><p class="note">The figures are drawn by a script inside this file; this browser runs none.</p></noscript>
</main>
<script type="application/json" id="figures">{figures}</script>
<script type="application/json" id="colours">{colours}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("mechrep.views").joinpath("page", name).read_text(encoding="utf-8")
