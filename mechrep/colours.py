"""Colours, lines and fonts that figures and still pictures share."""

from __future__ import annotations

INK = "#747c88"  # text, axes and reference lines
GRID = "rgba(116,124,136,0.22)"
PAPER = "#20242b"  # background of hover labels, which lie over the page
PAPER_INK = "#f2f3f5"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HEIGHT = 420

ACCENT = "#e8420f"
# One colour per neuron, where several neurons are drawn; line styles differ too.
SEQUENCE = (ACCENT, "#3b82c4", "#b0862a", "#c455b8", "#5d8a3a", "#7a74e6")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
