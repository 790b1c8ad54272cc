"""Copy suppression: targets by hand, scores against plain transformers modules, and a planted suppressor."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.measures.head_circuits import ov_scores
from mechrep.measures.head_copying import CopySuppression, CopySuppressionResult, predicted_keys
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.measures.circuits_by_hand import heads_on_text, planted, raw, without
from tests.planted import circuits
from tests.planted.workbench import BOS, CUR, OUT, Bench
from tests.tiny_models import D_VOCAB, N_HEADS, N_LAYERS, PARTS, random_tokens, tiny

SUPPRESSOR = (2, 1)


@functools.cache
def suppressing(family: str) -> Model:
    """The induction circuit, and a head of layer 2 that looks at the token it is about to say and takes it away."""
    bench = Bench(family, 3)
    circuits.plant_induction(bench, factor=1.0)
    bench.score_match(*SUPPRESSOR, OUT, CUR, 50.0)
    bench.score_key(*SUPPRESSOR, CUR + BOS, 75.0)
    bench.copy(*SUPPRESSOR, CUR, OUT, -0.5, skip=[BOS])
    return bench.finish()


def run(model: Model, corpus: Corpus, batch_size: int | str = "auto", **options: Any) -> CopySuppressionResult:
    result = CorpusCache(model, corpus, batch_size=batch_size).run(CopySuppression(model, **options))
    assert isinstance(result, CopySuppressionResult)
    return result


@given(seed=st.integers(0, 99), length=st.integers(1, 9), ranks=st.integers(1, 3), bos=st.booleans())
def test_targets_are_earlier_keys_that_hold_a_predicted_token(seed: int, length: int, ranks: int, bos: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 4, (2, 9), generator=draw)
    predicted = torch.randint(0, 4, (2, 9, ranks), generator=draw)
    mask = predicted_keys(predicted, tokens, torch.tensor([length, 9]), torch.tensor([bos, bos]))
    for row, size in enumerate((length, 9)):
        for i in range(9):
            expected = [j for j in range(int(bos), i + 1) if i < size and tokens[row, j] in predicted[row, i].tolist()]
            assert mask[row, i].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
def test_scores_are_those_of_plain_modules(family: str) -> None:
    model, m = raw(family), 6
    rows = [[0, *random_tokens(1, 20, seed=1)[0].tolist()], random_tokens(1, 14, seed=2)[0].tolist()]
    found = run(model, Corpus.from_tokens(rows, model=model), m=m)
    module: Any = copy.deepcopy(tiny(family))
    module.set_attn_implementation("eager")
    norm = module.get_submodule(PARTS[family].final_norm)
    attention, chance, queries = np.zeros((N_LAYERS, N_HEADS)), np.zeros(N_LAYERS), np.zeros(N_LAYERS)
    correlation = np.zeros((N_LAYERS, N_HEADS))
    for ids in rows:
        out = module(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        seen = heads_on_text(family, ids)
        for layer in range(N_LAYERS):
            lens = module.get_output_embeddings()(norm(out.hidden_states[layer]))[0]
            for i in range(len(ids)):
                likely = lens[i].argsort(descending=True)[:m].tolist()
                keys = [j for j in range(1 if ids[0] == 0 else 0, i + 1) if ids[j] in likely]
                if keys:
                    queries[layer] += 1
                    chance[layer] += len(keys) / (i + 1)
                    attention[layer] += out.attentions[layer][0, :, i, keys].sum(-1).double().numpy()
                    for head in range(N_HEADS):
                        said = [seen.correlation(layer, head, i, ids[j]) for j in keys]
                        correlation[layer, head] += np.mean(said)
    chance /= queries
    qk = attention / queries[:, None]
    adjusted = (qk - chance[:, None]) / (1 - chance[:, None])
    ov = ov_scores(model, embed="mlp0", draws=0).suppress_topk.numpy()
    assert list(found.n_queries) == queries.tolist()
    np.testing.assert_allclose(found.chance, chance, atol=1e-5)
    np.testing.assert_allclose(found.qk, qk, atol=1e-4)
    np.testing.assert_allclose(found.functional, -correlation / queries[:, None], atol=1e-4)
    np.testing.assert_allclose(found.ov, ov, atol=1e-6)
    np.testing.assert_allclose(found.cs, np.sqrt(np.maximum(adjusted, 0) * ov), atol=1e-3)
    alone = run(model, Corpus.from_tokens(rows, model=model), batch_size=1, m=m)
    torch.testing.assert_close(alone.qk, found.qk, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_planted_suppressor_is_pure(family: str) -> None:
    """Even words only: what follows by habit is odd, so nothing that is predicted stands before in the first copy."""
    model, n = suppressing(family), 12
    words = np.random.default_rng(0).permutation(np.arange(4, 62, 2))[:n].tolist()
    result = run(model, Corpus.from_tokens([[BOS, *words * 2]], model=model), m=1)
    assert result.n_queries[2] == n and result.top(1) == [SUPPRESSOR]
    for name in CopySuppressionResult.names:
        assert float(result.of(name)[SUPPRESSOR]) == pytest.approx(1.0, abs=1e-4)
    frame = result.to_frame()
    assert (frame["layer"][0], frame["head"][0], frame["rank"][0]) == (*SUPPRESSOR, 0)


def test_the_head_that_copies_does_not_suppress() -> None:
    circuit = planted("gpt2")
    weights = ov_scores(circuit.model, embed="mlp0", draws=0)
    assert float(weights.suppress_topk[circuit.induction]) == 0 and float(weights.top1[circuit.induction]) == 1


@pytest.mark.parametrize("settings", [{"m": 0}, {"m": D_VOCAB + 1}, {"k": 0}, {"sample": 10**6}])
def test_impossible_settings(settings: dict[str, int]) -> None:
    with pytest.raises(InputError):
        CopySuppression(raw("llama"), **settings)  # pyright: ignore[reportArgumentType]


def test_texts_in_which_nothing_predicted_stands_before_and_models_without_heads() -> None:
    with pytest.raises(NothingFoundError):
        run(suppressing("gpt2"), Corpus.from_tokens([[BOS, 4, 8]], model=suppressing("gpt2")), m=1)
    with pytest.raises(ModelError, match="without z"):
        CopySuppression(without(raw("llama"), Site.Z))
