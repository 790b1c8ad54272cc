"""``RepeatNorms``: crossings and moves by hand, merging, and pure repeats in models with and without positions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.sink_norms import RepeatNormResult, RepeatNorms, repeat_grid
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from tests.analyzers.sinks_by_hand import PROVENANCE, anatomy, check_equal, observed
from tests.tiny_models import random_tokens, tiny

N = 40
CURVES = {5: lambda n: 1.0 * n, 6: lambda n: 3.0, 7: lambda n: 100.0 / n}  # norm after the layer, by token


def tables(tokens: list[int], *, bos: float | None = 16.0, n: int = N) -> dict[tuple[Site, int], list[Tensor]]:
    """One layer: norm 1 before it; after it BOS (if any) and a curve per token, all along the first dimension."""
    length = n + (bos is not None)
    after = []
    for token in tokens:
        norms = [*([] if bos is None else [bos]), *(CURVES[token](i) for i in range(1, n + 1))]
        after.append(torch.tensor(norms)[:, None] * torch.eye(8)[0])
    before = torch.eye(8)[0].expand(length, 8)
    return {(Site.RESID_PRE, 0): [before] * len(tokens), (Site.RESID_POST, 0): after}


def frame(tokens: list[int], *, bos: bool = True, n: int = N) -> pd.DataFrame:
    """The facts of such texts."""
    return pd.DataFrame({"id": [f"r{t}" for t in tokens], "token_id": tokens, "repeats": n, "bos": bos})


def measured(tokens: list[int], **options: float | None) -> RepeatNormResult:
    """The result on texts of these tokens."""
    facts = frame(tokens, bos=options.get("bos", 16.0) is not None)
    return observed(RepeatNorms(), tables(tokens, **options), anatomy(1), frame=facts, batch_size=2).result(PROVENANCE)  # pyright: ignore


def test_the_grid_is_logarithmic_and_holds_both_ends() -> None:
    for n in (1, 2, 24, 1500):
        grid = repeat_grid(n)
        assert grid[0] == 1 and grid[-1] == n and grid == sorted(set(grid))
    assert repeat_grid(10) == list(range(1, 11))
    steps = np.diff(np.log(repeat_grid(2000)))
    assert steps.max() < 0.75 and len(repeat_grid(2000)) <= 24


def test_norms_and_crossings_by_hand() -> None:
    result = measured([5, 6, 7])
    assert result.token_ids == [5, 6, 7] and result.repeats == repeat_grid(N) and result.bos
    for text, token in enumerate(result.token_ids):
        np.testing.assert_allclose(result.norm[text, 1], [CURVES[token](n) for n in result.repeats], rtol=1e-6)
    assert result.bos_norm.tolist() == [1.0, 16.0]
    # 16 tau = 4, 8, 12: token 5 passes them at exactly so many copies, on the grid or not; 6 never; 7 at once.
    assert result.reached[:, 1].tolist() == [[4.0, 8.0, 12.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    table = result.to_frame()
    assert table["n_0.5"].isna().tolist() == [False, True, False] and set(table["n_max"]) == {N}
    assert table["n_0.5"].dropna().tolist() == [8, 1]
    assert result.top(2) == [5, 6] and result.top(1, 0) == [5]


def test_the_move_is_the_share_of_the_way_on_the_log_scale() -> None:
    result = measured([5, 6, 7])
    typical = torch.tensor([1.0, 2.0])
    moved = result.moved(0, typical)
    expected = [[math.log(CURVES[t](n) / 2) / math.log(8) for n in result.repeats] for t in result.token_ids]
    np.testing.assert_allclose(moved.values, expected, rtol=1e-5, atol=1e-6)
    last = [row[-1] for row in expected]  # 40/2, 3/2 and 2.5/2 of 8, on the log scale
    assert last[0] > 1 > 0.5 > last[1] and moved.share == pytest.approx(1 / 3) and moved.reason == ""
    half = measured([6], bos=4.5)  # 3 is half-way between 2 and 4.5: exactly moved
    assert half.moved(0, typical).values[0, 0] == pytest.approx(0.5, abs=1e-6)


def test_where_bos_is_not_clearly_above_there_is_no_move() -> None:
    result = measured([5, 6, 7])
    for typical, answered in ((7.99, True), (8.01, False), (20.0, False), (math.nan, False)):
        moved = result.moved(0, torch.tensor([1.0, typical]))
        assert moved.values.isfinite().all() == answered == (moved.reason == "")
        assert math.isnan(moved.share) != answered and moved.values.isnan().all() != answered
    assert result.moved(0, torch.tensor([1.0, 20.0])).reason == "BOS is not large"


def test_without_bos_the_first_copy_is_the_first_position_and_nothing_is_crossed() -> None:
    result = measured([5, 7], bos=None)
    np.testing.assert_allclose(result.norm[0, 1], [float(n) for n in result.repeats], rtol=1e-6)
    assert result.bos_norm.isnan().all() and not result.reached.any()
    moved = result.moved(0, torch.tensor([1.0, 0.001]))
    assert moved.values.isnan().all() and math.isnan(moved.share) and moved.reason == "no BOS"


def test_workers_with_other_tokens_are_appended_and_with_the_same_added() -> None:
    whole = measured([5, 6, 7])
    parts = [observed(RepeatNorms(), tables(t), anatomy(1), frame=frame(t)) for t in ([5], [6, 7])]
    parts[0].merge(parts[1])
    check_equal(parts[0].result(PROVENANCE), whole)
    tokens = [5, 6, 7]
    halves = [
        observed(RepeatNorms(), tables(tokens), anatomy(1), frame=frame(tokens), texts=texts) for texts in ([2], [0, 1])
    ]
    halves[0].merge(halves[1])
    check_equal(halves[0].result(PROVENANCE), whole)
    for other in (
        observed(RepeatNorms(), tables([6, 5]), anatomy(1), frame=frame([6, 5])),
        observed(RepeatNorms([0.1]), tables([7]), anatomy(1), frame=frame([7])),
        observed(RepeatNorms(), tables([7], n=N - 1), anatomy(1), frame=frame([7], n=N - 1)),
    ):
        one = observed(RepeatNorms(), tables([5]), anatomy(1), frame=frame([5]))
        with pytest.raises(InputError):
            one.merge(other)
        assert one.state["norm"].shape[0] == 1


def test_other_texts_are_refused() -> None:
    mixed = pd.concat([frame([5]), frame([6], n=3)])
    for facts in (frame([5]).drop(columns="bos"), mixed, pd.concat([frame([5]), frame([6], bos=False)])):
        with pytest.raises(InputError, match="repeated_tokens"):
            RepeatNorms().prepare(anatomy(1), facts)
    for taus in ([], [0.5, 0.0], [-1.0]):
        with pytest.raises(InputError, match="taus"):
            RepeatNorms(taus)
    result = measured([5])
    with pytest.raises(InputError, match="layer 1"):
        result.moved(1, torch.ones(2))
    with pytest.raises(InputError, match="3 typical norms"):
        result.moved(0, torch.ones(3))


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "gpt2"])
def test_pure_repeats_without_bos_are_one_state_unless_positions_are_learned(family: str) -> None:
    model = load_model(tiny(family))
    corpus = repeated_tokens(model, [7, 30], 24, bos=False)
    spread = []
    for layer in range(3):
        states = CorpusCache(model, corpus).get(Site.RESID_POST, layers=[layer])[0]  # [text pos d_model]
        spread.append(float((states - states[:, :1]).abs().max() / states.abs().max()))
    assert (max(spread) < 1e-5) == (family != "gpt2") and (min(spread) > 0.05) == (family == "gpt2")
    result = CorpusCache(model, corpus).run(RepeatNorms())
    alone = CorpusCache(model, repeated_tokens(model, [7, 30], 1, bos=False)).run(RepeatNorms())
    torch.testing.assert_close(alone.norm[:, :, 0], result.norm[:, :, 0], rtol=1e-5, atol=1e-5)
    if family != "gpt2":
        torch.testing.assert_close(result.norm, alone.norm.expand_as(result.norm), rtol=1e-4, atol=1e-4)


def test_real_norms_are_those_of_the_states(tmp_path: Path) -> None:
    model = load_model(tiny("llama"))
    corpus = repeated_tokens(model, [7, 30, 9], 30)
    result = CorpusCache(model, corpus, batch_size=2).run(RepeatNorms())
    states = CorpusCache(model, corpus).get(Site.RESID_POST).double().norm(dim=-1)  # [layer text pos]
    for layer in range(3):
        torch.testing.assert_close(
            result.norm[:, layer + 1].double(), states[layer][:, result.repeats], rtol=1e-4, atol=1e-4
        )
        assert result.bos_norm[layer + 1] == pytest.approx(float(states[layer, 0, 0]), rel=1e-4)
    result.save(tmp_path / "r")
    check_equal(RepeatNormResult.load(tmp_path / "r"), result)
    with pytest.raises(InputError, match="repeated_tokens"):
        CorpusCache(model, Corpus.from_tokens(random_tokens(2, 5), model=model)).run(RepeatNorms())
