"""Attention maps show the pattern and nothing of the future; tokens are data; the colours can be read by everybody."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.figures import SHARES, attention_map_figure, attention_maps_figure, panels, shown_token, tick_step

HOSTILE = ["<script>alert(1)</script>", " the", "\n", "&amp;", "%{z}", "$x$"]
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def pattern(n: int, seed: int = 0) -> torch.Tensor:
    """A causal pattern of random numbers."""
    scores = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)


def names(axis) -> list[str]:
    """What an axis calls its places, in order."""
    return [axis.labelalias[str(place)] for place in range(len(axis.labelalias))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 7, 120])
def test_the_past_is_drawn_and_the_future_is_not(n: int, dtype: torch.dtype) -> None:
    attention = pattern(n).to(dtype)
    (trace,) = attention_map_figure(attention, ["a"] * n, title="L0H0", name="net").data
    z, future = np.asarray(trace.z), ~np.tri(n, dtype=bool)
    assert np.isnan(z[future]).all() and trace.hoverongaps is False
    np.testing.assert_array_equal(z[~future], attention.float().numpy()[~future])
    assert list(trace.x) == list(trace.y) == list(range(n))


def test_a_pattern_that_is_drawn_stays_as_it_was() -> None:
    attention = pattern(4)
    copy = attention.clone()
    attention_map_figure(attention, list("abcd"), title="", name="net")
    assert torch.equal(attention, copy)


def test_queries_run_downwards_and_keys_across_and_both_are_named() -> None:
    layout = attention_map_figure(pattern(3), ["a", "b", "c"], title="L1H2", name="net").layout
    assert list(layout.xaxis.range) == [-0.5, 2.5] and list(layout.yaxis.range) == [2.5, -0.5]
    assert "key" in layout.xaxis.title.text and "query" in layout.yaxis.title.text
    assert layout.title.text == "L1H2" and layout.title.subtitle.text == "net, 3 tokens"


def test_tokens_are_shown_as_data() -> None:
    figure = attention_map_figure(pattern(6), HOSTILE, title="<b>x", name="<i>net")
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert names(axis) == [shown_token(token) for token in HOSTILE]
    text = figure.to_json()
    assert all(mark not in text for mark in ("<script", "<b>", "<i>", "$"))
    # No token stands in a template, where it could be a variable; the axes' names reach the pointer instead.
    assert figure.data[0].hovertemplate.replace("%{z:.3f}", "").count("%{z") == 0
    assert "%{x}" in figure.data[0].hovertemplate and "%{y}" in figure.data[0].hovertemplate


def test_equal_tokens_keep_their_places() -> None:
    figure = attention_map_figure(pattern(5), ["a"] * 5, title="", name="net")
    assert names(figure.layout.xaxis) == ["a"] * 5 and np.asarray(figure.data[0].z).shape == (5, 5)


def test_a_long_text_names_all_tokens_but_writes_few() -> None:
    axis = attention_map_figure(pattern(300), [str(i) for i in range(300)], title="", name="net").layout.xaxis
    assert names(axis) == [str(i) for i in range(300)] and 300 / axis.dtick <= 48


def test_many_heads_have_a_panel_each_and_one_scale() -> None:
    patterns = {(layer, 3): pattern(4, layer) for layer in (5, 0, 2)}
    figure = attention_maps_figure(patterns, list("abcd"), name="net")
    assert [note.text for note in figure.layout.annotations] == ["L5H3", "L0H3", "L2H3"]
    for trace, attention in zip(figure.data, patterns.values(), strict=True):
        np.testing.assert_array_equal(np.tril(np.asarray(trace.z)), np.tril(attention.numpy()))
        assert trace.coloraxis == "coloraxis"
    assert len({(trace.xaxis, trace.yaxis) for trace in figure.data}) == 3
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        assert axis.title.text and names(axis) == list("abcd")
    assert json.loads(figure.to_json())


@pytest.mark.parametrize(
    ("attention", "tokens", "why"),
    [
        (pattern(3), ["a", "b"], "as many queries and keys"),
        (pattern(3)[:2], ["a", "b"], "as many queries and keys"),
        (torch.zeros(0, 0), [], "at least one"),
        (pattern(3).T.contiguous(), list("abc"), "transpose"),
        (pattern(3) * 3, list("abc"), "take patterns"),
        (pattern(3) - 1, list("abc"), "take patterns"),
        (pattern(3).masked_fill(torch.eye(3).bool(), torch.nan), list("abc"), "take patterns"),
    ],
)
def test_what_is_no_causal_attention_is_refused(attention: torch.Tensor, tokens: list[str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        attention_map_figure(attention, tokens, title="", name="net")
    with pytest.raises(InputError, match=why):
        attention_maps_figure({(0, 0): attention}, tokens, name="net")


def test_no_heads_are_refused() -> None:
    with pytest.raises(InputError, match="no attention patterns"):
        attention_maps_figure({}, ["a"], name="net")


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" cat", "␣cat"), ("\t\r\n", "⇥␍↵"), ("", "∅"), ("\x1b[0m", "\\x1b[0m"), ("\u00a0", "\\xa0"), ("Ġé漢", "Ġé漢")],
)
def test_blanks_and_controls_can_be_seen(token: str, shown: str) -> None:
    assert shown_token(token) == shown


@given(st.text(st.characters(), max_size=60))
def test_whatever_a_token_is_it_is_short_visible_text(token: str) -> None:
    shown = shown_token(token)
    plain = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&#36;", "$").replace("&amp;", "&")
    assert 1 <= len(plain) <= 16 and plain.isprintable() and " " not in plain
    assert not set("<>$") & set(shown)
    shown.encode()  # lone surrogates would fail


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", VISION)
def test_more_attention_is_lighter_for_every_eye(kind: str) -> None:
    seen = [np.clip(np.asarray(VISION[kind]) @ linear(colour), 0, 1) @ [0.2126, 0.7152, 0.0722] for colour in SHARES]
    lightness = 116 * np.cbrt(seen) - 16  # CIE L*, but for the darkest of all
    assert (np.diff(lightness) > 4).all()


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_panels_do_not_overlap(n: int) -> None:
    figure = panels([f"p{i}" for i in range(n)], 200)
    rows = {tuple(axis.domain) for axis in figure.select_yaxes()}
    inside = figure.layout.height - 200
    assert all((high - low) * inside == pytest.approx(200) for low, high in rows)
    assert len({(a.domain, b.domain) for a, b in zip(figure.select_xaxes(), figure.select_yaxes(), strict=True)}) >= n


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_ticks_are_never_more_than_asked_for(n: int, most: int) -> None:
    step = tick_step(n, most)
    assert -(-n // step) <= most
    assert step == 1 or -(-n // (step - 1)) > most
