"""Facts, the whole chain and the causal check on real models: bare Hugging Face code beside mechrep's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechrep
from mechrep.ablation.masking import _log_probabilities, _masked, information_masking, paired_tokens
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.measures.token_facts import GROUPS, lowest, token_facts, token_surprisal
from mechrep.measures.token_information import token_information
from mechrep.run import Run
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from mechrep.text.windows import windows_of_text
from tests.tiny_models import random_tokens, tiny


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def loops(model: mechrep.Model) -> Corpus:
    """Six texts: a beginning, a cycle three times and a bit of a fourth."""
    rng = np.random.default_rng(0)
    rows, frame = [], []
    for text in range(6):
        start, period = 5 + text, 6 + text
        ids = rng.choice(np.arange(20, model.anatomy.d_vocab), start + period, replace=False).tolist()
        cycle = ids[start:]
        rows.append([model.bos_id, *ids[1:start], *cycle * 3, *cycle[:2]])
        name = "natural" if text % 2 else "induced"
        frame.append({"start": start, "onset": start + period, "period": period, "prompt_length": 3, "condition": name})
    return Corpus.from_tokens(rows, model=model, frame=pd.DataFrame(frame))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])  # the last caps its logits
def test_surprisal_is_the_models_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = tiny(family)
    monkeypatch.setattr("mechrep.measures.token_facts._LOGITS", 4 * module.config.vocab_size)  # 4 positions at a time
    tokens = random_tokens(2, 9)
    corpus = Corpus.from_tokens([tokens[0].tolist(), tokens[1, :6].tolist()])
    found = token_surprisal(mechrep.load_model(module), corpus)
    for text, length in enumerate((9, 6)):
        logits = module(tokens[text : text + 1, :length]).logits[0].double()
        for j in range(1, length):
            expected = -float(logits[j - 1].log_softmax(-1)[tokens[text, j]])
            assert float(found[text, j]) == pytest.approx(expected, abs=1e-4)
        assert math.isnan(float(found[text, 0]))
    assert bool(found[1, 6:].isnan().all())


def test_logits_are_never_made_of_a_whole_text(model: mechrep.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, rows = Corpus.from_tokens([list(range(3, 90))] * 3, model=model), []
    plain: Any = model.plain
    whole = token_surprisal(model, corpus)
    monkeypatch.setattr("mechrep.measures.token_facts._LOGITS", 7 * model.anatomy.d_vocab)
    hook = plain.lm_head.register_forward_hook(lambda _m, _a, out: rows.append(out.numel() // out.shape[-1]))
    parts = token_surprisal(model, corpus)
    hook.remove()
    assert max(rows) <= 7 and sum(rows) == 3 * 86
    torch.testing.assert_close(parts, whole, equal_nan=True, atol=1e-4, rtol=1e-4)


def test_every_copy_has_the_surprisal_of_the_first(model: mechrep.Model, loops: Corpus) -> None:
    facts = token_facts(model, loops, reference=loops)
    own = token_surprisal(model, loops)
    for text, (start, period) in enumerate(loops.frame[["start", "period"]].itertuples(index=False)):
        for j in range(1, int(loops.lengths[text])):
            place = j if j < start + period else start + (j - start) % period
            assert float(facts.values[0, text, j]) == float(own[text, place])
            assert int(facts.source[text, j]) == place
        queries = np.flatnonzero(facts.queries[text])
        assert queries[0] == start + period and queries[-1] == int(loops.lengths[text]) - 1
        ends = [start + k * period - 1 for k in (1, 2, 3)]
        assert np.flatnonzero(facts.ends[text]).tolist() == ends
        low = facts.groups[GROUPS.index("low_surprisal"), text, 1 : start + period]
        assert int(low.sum()) == pytest.approx((start + period - 1) / 4, abs=1)


def test_without_a_cycle_the_continuation_asks(model: mechrep.Model) -> None:
    corpus = Corpus.from_texts(["The sea was calm and the wind was still."], model=model)
    whole = token_facts(model, corpus, reference=corpus)
    assert whole.queries[0].sum() == corpus.lengths[0] - 1
    part = token_facts(model, corpus.with_columns(prompt_length=[4]), reference=corpus)
    assert np.flatnonzero(part.queries[0])[0] == 4
    assert bool((part.source[0] == torch.arange(int(corpus.lengths[0]))).all())


def test_the_lowest_quartile_counts_a_cycle_once() -> None:
    values = torch.tensor([[math.nan, 1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0]])
    source = torch.tensor([[0, 1, 2, 3, 4, 1, 1, 1]])
    assert lowest(values, source, 0.25)[0].tolist() == [False, True, False, False, False, True, True, True]
    with pytest.raises(InputError, match="share"):
        lowest(values, source, 1.0)


def test_the_whole_chain(model: mechrep.Model, loops: Corpus, tmp_path: Any) -> None:
    reference = windows_of_text(model, "The sea was calm. " * 60, length=48, limit=3)
    result = token_information(model, loops, reference=reference, store=tmp_path)
    assert result.attended.shape[:3] == (6, model.anatomy.n_layers, model.anatomy.n_heads)
    # Classes part the visible keys, so their shares add up to 1 on both sides.
    n_classes = len(GROUPS) - 2
    for share in (result.share_att(), result.share_vis(), result.share_vis(matched=True)):
        np.testing.assert_allclose(share[..., :n_classes].sum(-1), 1.0, rtol=1e-6)
    # Position 0 by bare Hugging Face code.
    plain: Any = model.plain
    on_first = torch.zeros(model.anatomy.n_layers, model.anatomy.n_heads, dtype=torch.float64)
    before = plain.config._attn_implementation
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        for text in range(6):
            ids = torch.tensor([loops.row(text)])
            for layer, pattern in enumerate(plain(ids, output_attentions=True).attentions):
                on_first[layer] += pattern[0, :, int(loops.frame["onset"][text]) :, 0].double().sum(-1)
    plain.set_attn_implementation(before)
    np.testing.assert_allclose(result.on_first.sum(0), on_first, rtol=1e-4)
    published = token_information(model, loops, reference=reference, preset="mahaut2025")
    assert bool((published.queries.sum(0) == 18).all())  # three ends of copies in each of six texts


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@torch.no_grad()
def test_hidden_keys_are_those_of_one_large_mask(family: str) -> None:
    """The whole text in one pass without a cache, under a mask of every query and key written out by hand."""
    module: Any = tiny(family)
    row, first = random_tokens(1, 14)[0], 10
    hidden = torch.zeros(3, 14, dtype=torch.bool)
    hidden[1, [2, 5]], hidden[2, [1, 8]] = True, True
    found = _masked(mechrep.load_model(module), row, hidden, first)
    for number in range(3):
        mask = torch.zeros(1, 1, 14, 14)
        for query in range(14):
            for key in range(14):
                if key > query or (query >= first - 1 and hidden[number, key]):
                    mask[0, 0, query, key] = torch.finfo(torch.float32).min
        logits = module(row[None], attention_mask=mask, use_cache=False).logits[0, first - 1 : -1]
        told = logits.log_softmax(-1).gather(-1, row[first:, None])[:, 0].double()
        torch.testing.assert_close(found[number], told, rtol=1e-4, atol=1e-4)
    assert float((found[1] - found[0]).abs().max()) > 0.001


def test_partners_are_near_of_the_same_part_and_used_once() -> None:
    low = np.zeros(40, dtype=bool)
    low[[3, 4, 5, 20, 22, 30]] = True
    pairs = paired_tokens(low, 12, np.random.default_rng(1))
    assert sorted(pairs[:, 0].tolist()) == [3, 4, 5, 20, 22, 30]
    assert len(set(pairs[:, 1].tolist())) == 6 and not low[pairs[:, 1]].any()
    assert bool((((pairs[:, 0] < 12) == (pairs[:, 1] < 12)) & (np.abs(pairs[:, 0] - pairs[:, 1]) <= 16)).all())
    assert 0 not in pairs
    crowded = paired_tokens(np.array([False, True, True, True, False]), 5, np.random.default_rng(0))
    assert len(crowded) == 1


@pytest.mark.parametrize("way", ["mask", "swap"])
def test_low_tokens_are_compared_with_as_many_others(
    model: mechrep.Model, loops: Corpus, way: Any, tmp_path: Any
) -> None:
    facts = token_facts(model, loops, reference=loops)
    effects = information_masking(model, loops, facts, way=way, draws=2, run=Run(store=tmp_path))
    assert len(effects.units[0]) + effects.notes["left_out"] == 6
    assert effects.notes["pairs"] >= 1 and effects.notes["distance"] <= 16
    assert [c.selection for c in effects.conditions] == ["baseline", "ablation", *["nearest other tokens"] * 2]
    assert (np.abs(effects.effect_of()[1:]) > 1e-4).any()
    again = information_masking(model, loops, facts, way=way, draws=2, run=Run(store=tmp_path))
    assert torch.equal(effects.values, again.values)


def test_the_baseline_is_the_texts_own_log_probability(model: mechrep.Model, loops: Corpus) -> None:
    effects = information_masking(model, loops, token_facts(model, loops, reference=loops), draws=1)
    own = -token_surprisal(model, loops)
    for place, name in enumerate(effects.units[0]):
        text = loops.frame["id"].tolist().index(name)
        start, period = int(loops.frame["start"][text]), int(loops.frame["period"][text])
        last = own[text, start + 2 * period : start + 3 * period].double().mean()
        assert effects.of()[0, place] == pytest.approx(float(last), abs=1e-4)


@pytest.mark.parametrize("way", ["mask", "swap"])
def test_a_row_by_itself_gives_what_the_batch_gives(model: mechrep.Model, loops: Corpus, way: Any) -> None:
    rows = loops.tokens[:1, : int(loops.lengths[0])].repeat(4, 1)
    hidden, first = torch.zeros(rows.shape, dtype=torch.bool), rows.shape[1] - 6
    if way == "mask":
        hidden[1, 3], hidden[2, 5] = True, True
    else:
        rows[1, 3], rows[2, first + 1] = 7, 8
    together = _log_probabilities(model, rows, hidden, first, way)
    for row in range(4):
        alone = _log_probabilities(model, rows[[row]], hidden[[row]], first, way)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
    own = model.plain_logits(rows[:1])[0, first - 1 : -1].log_softmax(-1).gather(-1, rows[0, first:, None])[:, 0]
    torch.testing.assert_close(together[[0, 3]], own.double().expand(2, -1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[1], together[0], atol=1e-3)


def test_what_cannot_be_masked(model: mechrep.Model) -> None:
    corpus = random_repeats(model, n=1, copies=4, sequences=2)  # a loop of one token has no other tokens
    facts = token_facts(model, corpus, reference=corpus)
    with pytest.raises(NothingFoundError, match="partner"):
        information_masking(model, corpus, facts, draws=1)
    with pytest.raises(InputError, match="draw"):
        information_masking(model, corpus, facts, draws=0)
    one_view = mechrep.load_model("mechrep-tiny")
    one_view.plain = None
    with pytest.raises(ModelError, match="plain view"):
        information_masking(one_view, corpus, facts, draws=1)
