"""How a corpus looks in a notebook.  Everything from texts or files is data: escaped, and cut short."""

from __future__ import annotations

import html
from collections.abc import Mapping

import pandas as pd
from jaxtyping import Int64
from torch import Tensor

_ROWS, _COLUMNS, _CHARACTERS = 5, 12, 60


def summary(lengths: Int64[Tensor, " text"], facts: Mapping[str, object]) -> str:
    """Return one line about a corpus.

    Args:
        lengths: number of ids of each text.
        facts: ``model_name``, ``tokenizer`` and ``bos_policy`` of the corpus.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    tokens = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    return (
        f"{len(lengths)} texts of {tokens} tokens, model {_short(facts['model_name'])}, "
        f"tokenizer {_short(facts['tokenizer'])}, BOS {facts['bos_policy']}"
    )


def to_html(frame: pd.DataFrame, caption: str) -> str:
    """Return the first rows of the facts as an HTML table, every cell escaped.

    Args:
        frame: the facts, one row per text.
        caption: a line above the table, as plain text.

    Example:
        >>> "<td>&lt;b&gt;</td>" in to_html(pd.DataFrame({"id": ["<b>"]}), "one text")
        True
    """
    shown = frame.iloc[:_ROWS, :_COLUMNS]
    head = "".join(f"<th>{_cell(name)}</th>" for name in shown.columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(v)}</td>' for v in row)}</tr>" for row in shown.itertuples(index=False))
    hidden = [
        f"{count} more {what}"
        for count, what in ((len(frame) - _ROWS, "rows"), (len(frame.columns) - _COLUMNS, "columns"))
        if count > 0
    ]
    foot = f"<p>and {' and '.join(hidden)}</p>" if hidden else ""
    return f"<div><p>{html.escape(caption)}</p><table><tr>{head}</tr>{body}</table>{foot}</div>"


def _short(value: object) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _cell(value: object) -> str:
    return html.escape(_short(value))
