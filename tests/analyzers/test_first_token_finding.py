"""``find_first_token`` on a planted mark, on models without one, in figures and from the command line."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechrep.errors import InputError
from mechrep.measures.first_token import FirstTokenParts, FirstTokenResult, find_first_token, first_token_parts
from mechrep.measures.first_token_detectors import convergence_figure, detector_figure
from mechrep.measures.first_token_heads import head_cuts_figure
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from tests.analyzers.first_token_by_hand import planted
from tests.analyzers.sinks_by_hand import check_equal
from tests.planted.texts import words


@functools.cache
def parts(family: str = "llama_gqa") -> FirstTokenParts:
    model = planted(family).model
    corpus = Corpus.from_tokens([words(60, seed=seed) for seed in range(8)], model=model, bos_policy="absent")
    return first_token_parts(model, texts=corpus, token_ids=[10, 11], prefix=[0, 20], triples=400, repeats=100)


def test_a_planted_mark_is_found_with_neuron_head_and_law(tmp_path: Path) -> None:
    result, fixture = parts().summary(), planted("llama_gqa")
    assert fixture.detector is not None and fixture.detector_head is not None
    assert result.found and result.top(1) == [fixture.detector] and result.auroc == 1.0
    assert result.heads == [list(fixture.detector_head)] and result.needs_attention
    assert max(result.null_aurocs) < 0.8 and len(result.null_aurocs) == 4 and "neurons of layer 0" in result.reason
    assert result.identity_error < 1e-4 and result.pure_deviation < 1e-3
    assert result.law == result.theory == "power" and result.agrees and result.repeats == 100
    assert result.lost_together == pytest.approx(float(result.detector_loss[2]), abs=0.01)
    table = result.to_frame()
    assert table["carries"].tolist() == [False, False, True, False] and table["head"].tolist() == [0, 1, 2, 3]
    result.save(tmp_path / "r")
    check_equal(FirstTokenResult.load(tmp_path / "r"), result)


def test_a_trained_model_without_a_sink_has_no_first_token_detector(shared: Path) -> None:
    result = find_first_token(load_model(str(shared / "models" / "stories260K")))
    assert not result.found and result.neurons == [] and result.heads == [] and "no neuron tells" in result.reason
    assert result.identity_error < 1e-4 and result.pure_deviation < 1e-4
    with pytest.raises(InputError, match="0 to 0"):
        result.top(1)


def test_figures_show_what_was_measured() -> None:
    found, head = parts(), 2
    result = found.summary()
    mass = found.mass.plot()
    assert len(mass.data) == 4 and max(mass.data[0].y) <= 1 and mass.data[0].y[0] == 0
    places = found.detectors.plot()
    assert [list(bars.x) for bars in places.data] == found.detectors.values[:, :, 0].T.tolist()
    losses = found.cuts.plot()
    assert losses.data[0].y[head] == pytest.approx(float(found.cuts.detector_loss[0, head]))
    assert head_cuts_figure(found.cuts, "norm").data[1].y[head] == pytest.approx(float(found.cuts.norm_loss[1, head]))
    copies = found.convergence.plot()
    assert torch.allclose(torch.tensor(copies.data[1].y), found.convergence.relative("layer")[1])
    assert "attention 0" in convergence_figure(found.convergence, "attention").layout.yaxis.title.text
    assert list(result.plot().data[0].text) == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="one of"):
        detector_figure(found.detectors, next(n for n in range(80) if n not in found.detectors.neurons))


def test_a_figure_of_a_norm_that_is_not_there_is_refused() -> None:
    cuts = parts("llama_gqa").cuts
    missing = torch.full_like(cuts.norm_loss, torch.nan)
    with pytest.raises(InputError, match="no norm"):
        head_cuts_figure(replace(cuts, norm_loss=missing, sink_reason="there is no norm"), "norm")
