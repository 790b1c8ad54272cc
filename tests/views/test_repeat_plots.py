"""Figures of repeats show the numbers of their results, condition by condition and panel by panel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mechrep.errors import InputError
from mechrep.studies.repeat_behaviour import RepeatBehaviourResult, repeat_behaviour_figure, text_against_repeats_figure
from tests.views import study_by_hand as by_hand


def behaviour(*conditions: str, name: str = "hand") -> RepeatBehaviourResult:
    """Random numbers for six tokens and three numbers of copies."""
    generator, shape = torch.Generator().manual_seed(4), (len(conditions), 6, 3)
    return RepeatBehaviourResult(
        by_hand.provenance(name),
        conditions=list(conditions),
        token_ids=list(range(10, 16)),
        repeats=[1, 20, 300],
        new_tokens=8,
        prompt="bare",
        p_next=torch.rand(shape, generator=generator),
        top_next=torch.ones(shape),
        run=torch.randint(0, 9, shape, generator=generator).float(),
    )


@pytest.mark.parametrize("conditions", [("none",), ("none", "sink", *(f"random {i}" for i in range(9)))])
def test_both_measures_are_drawn_for_every_condition(conditions: tuple[str, ...]) -> None:
    result = behaviour(*conditions)
    figure, frame = repeat_behaviour_figure(result), result.to_frame()
    assert len(figure.data) == 2 * len(conditions)
    for place, condition in enumerate(conditions):
        rows = frame[frame["condition"] == condition]
        for line, measure in zip(figure.data[2 * place : 2 * place + 2], ("p_next", "diverged"), strict=True):
            assert line.name == condition and list(line.x) == [1, 20, 300]
            np.testing.assert_allclose(line.y, rows[measure])
            assert (np.asarray(line.error_y.array) >= 0).all() and (np.asarray(line.error_y.arrayminus) >= 0).all()
    assert [line.showlegend for line in figure.data] == [True, False] * len(conditions)
    assert "6 tokens" in figure.layout.title.subtitle.text and figure.layout.xaxis2.type == "log"
    assert json.loads(figure.to_json())


def test_names_are_data() -> None:
    figure = repeat_behaviour_figure(behaviour("none", "<b>%{y}", name="<i>"))
    assert "<i>" not in figure.layout.title.subtitle.text and figure.data[2].name == "&lt;b&gt;%{y}"
    assert "%{y}<br>" not in figure.data[2].hovertemplate.replace("%{customdata}<br>", "")


def test_text_and_repeats_have_their_own_tokens() -> None:
    text, repeats = torch.eye(3), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    figure = text_against_repeats_figure([text, repeats], [["<s>", " a", "b"], ["c", "c"]], head=(3, 1), name="<x>")
    first, second = (np.asarray(trace.z) for trace in figure.data)
    assert np.isnan(first[0, 1:]).all() and first[2].tolist() == [0.0, 0.0, 1.0]
    assert second[1].tolist() == [0.25, 0.75]
    assert list(figure.layout.xaxis.labelalias.values()) == ["&lt;s&gt;", "␣a", "b"]
    assert list(figure.layout.xaxis2.labelalias.values()) == ["c", "c"]
    assert "L3 H1" in figure.layout.title.text and "<x>" not in figure.to_json()
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="2 patterns"):
        text_against_repeats_figure([torch.eye(2)] * 2, [["a", "b"]], head=(0, 0), name="x")
    with pytest.raises(InputError, match="3 tokens"):
        text_against_repeats_figure([torch.eye(2)] * 2, [["a"] * 3] * 2, head=(0, 0), name="x")
