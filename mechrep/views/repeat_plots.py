"""Repeated tokens: whether the model goes on with them, and what a head looks at in them, beside ordinary text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.studies.repeat_behaviour_result import RepeatBehaviourResult
from mechrep.views.attention_plots import finished, panels, place_of, shown_token, tick_step
from mechrep.views.theme import DASHES, INK, SEQUENCE, counted, plain

_SYMBOLS = ("circle", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open")
_MEASURES = {"p_next": ("p_low", "p_high"), "diverged": ("diverged_low", "diverged_high")}


def repeat_behaviour_figure(result: RepeatBehaviourResult) -> go.Figure:
    """Left: probability that the token comes once more.  Right: share of tokens that the model leaves off.

    Both against the number of copies given, one line per condition, with 95 % intervals over tokens.

    Args:
        result: what was measured.

    Example:
        >>> import mechrep
        >>> from mechrep.studies.repeat_behaviour import repeat_behaviour
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> figure = repeat_behaviour_figure(repeat_behaviour(model, [300, 301], [1, 8], new_tokens=4))
        >>> [line.name for line in figure.data], figure.layout.xaxis.type
        (['none', 'none'], 'log')
    """
    titles = ["probability of one more copy", f"share that leave off within {counted(result.new_tokens, 'token')}"]
    figure, frame = panels([plain(title) for title in titles], 300), result.to_frame()
    for place, condition in enumerate(result.conditions):
        rows = frame[frame["condition"] == condition]
        for panel, (measure, ends) in enumerate(_MEASURES.items()):
            _add_line(figure, rows, measure, ends, place, panel)
    prompts = {"bare": "copies alone", "chat": "copies in a chat"}
    subtitle = (
        f"{result.provenance.model['name']}, {counted(len(result.token_ids), 'token')}, {prompts[result.prompt]}; "
        "95 % intervals over tokens"
    )
    finished(
        figure, title="Repeating a token", subtitle=subtitle, x="copies given (logarithmic)", y="share or probability"
    )
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    return figure.update_xaxes(type="log", dtick=1, tickformat=",").update_yaxes(range=[-0.03, 1.03])


def _add_line(
    figure: go.Figure, rows: pd.DataFrame, measure: str, ends: tuple[str, str], place: int, panel: int
) -> None:
    colour = INK if place == 0 else SEQUENCE[(place - 1) % len(SEQUENCE)]
    value, name = rows[measure], plain(rows["condition"].iloc[0])
    low, high = (value - rows[ends[0]]).clip(lower=0), (rows[ends[1]] - value).clip(lower=0)
    figure.add_scatter(
        x=rows["repeats"].to_numpy(),
        y=value.to_numpy(),
        error_y={"array": high.to_numpy(), "arrayminus": low.to_numpy(), "thickness": 1, "width": 3},
        name=name,
        legendgroup=str(place),
        showlegend=panel == 0,
        mode="lines+markers",
        line={"color": colour, "dash": DASHES[place % len(DASHES)], "width": 3 if place < 2 else 1.6},
        marker={"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 7},
        customdata=[name] * len(rows),  # never inside the template, where a name could be taken for a variable
        hovertemplate="%{customdata}<br>%{x:,} copies: %{y:.3f}<extra></extra>",
        **place_of(panel),
    )


def text_against_repeats_figure(
    patterns: Sequence[Float[Tensor, "_ _"]],
    tokens: Sequence[Sequence[str]],
    *,
    head: tuple[int, int],
    name: str,
    titles: Sequence[str] = ("text", "one token, repeated"),
) -> go.Figure:
    """What one head looks at in ordinary text and in repeats, side by side on one scale from 0 to 1.

    Args:
        patterns: attention on each text.
        tokens: of each text, decoded one by one.
        head: the ``(layer, head)``.
        name: of the model.
        titles: of the panels.

    Raises:
        InputError: not one list of tokens and one title per pattern, or a pattern of another length than its tokens.

    Source: Yona et al. 2025 (arXiv 2503.08908) draw scores before the softmax, averaged over heads; this is one head,
    after it.

    Example:
        >>> patterns = [torch.eye(2), torch.tensor([[1.0, 0.0], [0.5, 0.5]])]
        >>> figure = text_against_repeats_figure(patterns, [["a", "b"], ["a", "a"]], head=(1, 0), name="mechrep-tiny")
        >>> figure.layout.title.text, figure.data[1].z[1].tolist()
        ('What L1 H0 looks at', [0.5, 0.5])
    """
    if not len(patterns) == len(tokens) == len(titles) >= 1:
        raise InputError(
            f"{len(patterns)} patterns, {len(tokens)} lists of tokens, {len(titles)} titles", "one each", "correct them"
        )
    figure = panels([plain(title) for title in titles], 380)
    for panel, (pattern, words) in enumerate(zip(patterns, tokens, strict=True)):
        n = len(words)
        if tuple(pattern.shape) != (n, n):
            raise InputError(
                f"a pattern of {tuple(pattern.shape)} with {counted(n, 'token')}", "one query per token", "correct it"
            )
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        figure.add_heatmap(
            x=list(range(n)),
            y=list(range(n)),
            z=pattern.detach().cpu().float().masked_fill(future, torch.nan).numpy(),
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="query %{y:d}: %{y}<br>key %{x:d}: %{x}<br>attention %{z:.3f}<extra></extra>",
            **place_of(panel),
        )
    lengths = ", ".join(counted(len(words), "token") for words in tokens)
    title = f"What L{head[0]} H{head[1]} looks at"
    finished(figure, title=title, subtitle=f"{name}; {lengths}", x="key (token)", y="query (token)", share="attention")
    for panel, words in enumerate(tokens):
        names, where = {str(place): shown_token(token) for place, token in enumerate(words)}, place_of(panel)
        axis = {"labelalias": names, "tickformat": "d", "tick0": 0, "dtick": tick_step(len(words), 24)}
        figure.update_xaxes(
            axis | {"range": [-0.5, len(words) - 0.5], "tickangle": -90}, row=where["row"], col=where["col"]
        )
        figure.update_yaxes(axis | {"range": [len(words) - 0.5, -0.5]}, row=where["row"], col=where["col"])
    return figure
