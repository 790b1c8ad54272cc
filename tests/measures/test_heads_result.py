"""``HeadScoreResult``: ranking, tables, the disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mechrep.errors import InputError
from mechrep.measures.head_scores import HeadScoreResult
from tests.analyzers.by_hand import PROVENANCE
from tests.measures.heads_by_hand import NAMES, induction_key, mixed_texts, repeated, result_of, text

IDS = repeated(range(3, 23))


def test_a_result_ranks_saves_and_lists_its_heads(tmp_path: Path) -> None:
    texts = mixed_texts(seed=8)
    result = result_of(texts, variants=["tl_mul", "tl_abs"])
    result.save(tmp_path / "result")
    again = HeadScoreResult.load(tmp_path / "result")
    assert torch.equal(again.scores, result.scores) and torch.equal(again.variants, result.variants)
    assert again.to_frame().equals(result.to_frame()) and again.missing == result.missing
    for name in (*NAMES, "tl_mul"):
        best = int(result.of(name).argmax())
        assert result.top(1, name) == [(best // 2, best % 2)]
        frame = result.to_frame(name)
        assert len(frame) == 4 and (frame[name].diff().dropna() <= 0).all() and frame["rank"].tolist() == [0, 1, 2, 3]
        row = frame.iloc[0]
        assert row[name] == pytest.approx(result.of(name).max().item())
    row = result.to_frame().set_index(["layer", "head"]).loc[(1, 0)]
    assert row["induction_error"] == pytest.approx(result.standard_errors[0, 1, 0].item())
    assert torch.equal(result.of("self_finding"), result.duplicate_token), "the paper's name"
    assert row["duplicate_token_adjusted"] == pytest.approx(result.adjusted[1, 1, 0].item())
    assert row["previous_token_without_sink"] == pytest.approx(result.without_sink[2, 1, 0].item())
    assert row["unexplained"] == pytest.approx(result.unexplained[1, 0].item())
    with pytest.raises(InputError, match="score='copying'"):
        result.of("copying")
    with pytest.raises(InputError, match="k = 5"):
        result.top(5)
    assert math.isclose(result.adjusted[0, 0, 0], (result.scores[0, 0, 0] - result.chance[0]) / (1 - result.chance[0]))


def test_one_text_has_scores_and_no_errors() -> None:
    result = result_of([text(IDS, induction_key(IDS))])
    assert result.standard_errors.isnan().all() and result.induction[0, 0] == 1
    three = result_of([text(IDS, induction_key(IDS))] * 3)
    assert (three.standard_errors == 0).all()  # texts that agree exactly
    assert three.provenance == PROVENANCE
