"""The detectors for many growing texts at once against those for one, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.text import watch_rows
from mechrep.text.watch import WATCHES, watch_for
from mechrep.text.watch_rows import RowWatches, watched_in_rows

LONGEST = 130


@st.composite
def looping_texts(draw: st.DrawFn) -> list[int]:
    """Noise, then a block over and over, now and then with an odd token in between."""
    block = draw(st.lists(st.integers(0, 3), min_size=1, max_size=24))
    text = draw(st.lists(st.integers(0, 3), max_size=40))
    while len(text) < LONGEST:
        text += block
        if draw(st.integers(0, 9)) == 0:
            text.append(draw(st.integers(0, 9)))
    return text[:LONGEST]


@settings(max_examples=25)
@given(
    texts=st.lists(looping_texts(), min_size=1, max_size=3),
    prompts=st.lists(st.integers(0, 100), min_size=3, max_size=3),
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    presets=st.sampled_from([["mechrep"], ["hiraoka2025"], ["mechrep", "hiraoka2025"]]),
    again=st.booleans(),
)
def test_a_row_fires_with_the_token_with_which_its_watch_fires(
    texts: list[list[int]], prompts: list[int], blocks: list[int], presets: list[str], again: bool
) -> None:
    ids, places = torch.tensor(texts), torch.tensor(prompts[: len(texts)])
    watches = RowWatches(presets, len(texts), LONGEST, ids.device)
    for row, length in enumerate(places.tolist()):
        if again:  # another text stood in the row before
            watches.begin(row, ids[0, :60])
        watches.begin(row, ids[row, :length])
    alone = [
        [watch_for(preset)(text[:length]) for preset in presets] for text, length in zip(texts, prompts, strict=False)
    ]
    for number in blocks:
        if int(places.max()) + number > LONGEST:
            break
        fired = watches.advance(ids, places, number)
        for row, place in enumerate(places.tolist()):
            some = texts[row][place : place + number]
            assert fired[row].tolist() == [any([one.push(token) for one in alone[row]]) for token in some]
        places = places + number


def test_long_prompts_are_looked_at_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    text = torch.arange(90) % 7
    fired = []
    for at_once in (1, 2**21):
        monkeypatch.setattr(watch_rows, "_AT_ONCE", at_once)
        watches = RowWatches(["mechrep", "hiraoka2025"], 2, 100, text.device)
        watches.begin(1, text[:-3])
        fired.append(watches.advance(text.expand(2, -1), torch.tensor([87, 87]), 3))
    assert torch.equal(*fired)
    assert fired[0][1].all() and not fired[0][0].any(), "the other row has not been told about its text"


def test_rows_that_are_kept_keep_their_state() -> None:
    texts = torch.stack([torch.arange(60) % 5, torch.arange(60), torch.arange(60) % 3])
    watches, places = RowWatches(["mechrep"], 3, 60, texts.device), torch.full((3,), 50)
    for row in range(3):
        watches.begin(row, texts[row, :50])
    watches.keep(torch.tensor([2, 1]))
    assert watches.advance(texts[[2, 1]], places[:2], 4).tolist() == [[True] * 4, [False] * 4]


def test_rules_that_were_added_later_are_asked_text_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WATCHES, "own", watch_for("mechrep"))
    monkeypatch.setitem(WATCHES, "mechrep", lambda tokens=(): watch_for("hiraoka2025")(tokens))
    assert watched_in_rows("own") and watched_in_rows("hiraoka2025")
    assert not watched_in_rows("mechrep"), "somebody has put another rule in its place"
