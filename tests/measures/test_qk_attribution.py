"""Attribution of attention scores: their sums, what cutting a part removes, and planted causes."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.measures.qk_attribution import Edge, QKAttributionResult, component_names, qk_attribution, target_edges
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.measures.circuits_by_hand import planted, processed, raw, without
from tests.planted.texts import repeats
from tests.planted.workbench import FAMILIES as PLANTED
from tests.planted.workbench import ROTARY
from tests.tiny_models import D_MODEL, D_VOCAB, N_HEADS, SLIDING_WINDOW, families, fresh, random_tokens, tiny

D_HEAD = D_MODEL // N_HEADS
EDGES: list[Edge] = [(0, 9, 2), (0, 9, 9), (1, 7, 0), (0, 4, 3), (1, 6, 5)]


def corpus_for(model: Model) -> Corpus:
    return Corpus.from_tokens(random_tokens(2, 11, seed=4).tolist(), model=model)


@functools.cache
def scores(model: Model, layer: int) -> Tensor:
    """``[text head query_pos key_pos]`` as the model has them."""
    name = model.anatomy.hook_name(Site.SCORES, layer)
    with torch.no_grad():
        return model.run_with_cache(corpus_for(model).tokens, names_filter=name)[1][name]


# -- identities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families("llama", "llama_gqa", "gpt2", "gpt_neox", "qwen2", "gemma", "mistral"))
def test_contributions_add_up_to_the_models_own_scores(family: str) -> None:
    model = raw(family)
    for layer, head in ((0, 1), (1, 3), (2, 0), (2, 2)):
        own = scores(model, layer)[:, head].double()
        for edges in (EDGES, EDGES[:1]):
            result = qk_attribution(model, corpus_for(model), (layer, head), edges)
            expected = torch.stack([own[edge] for edge in edges]).float()
            torch.testing.assert_close(result.scores, expected, atol=1e-4, rtol=1e-5)
            for table in (result.by_query, result.by_key):
                torch.testing.assert_close(table.sum(1), expected, atol=1e-4, rtol=1e-5)
                assert table[:, -1].abs().max() < 1e-4  # nothing remains that is not a component
            assert float(result.pairs.sum()) == pytest.approx(float(expected.mean()), abs=1e-4)
            torch.testing.assert_close(result.pairs.sum(1), result.by_query.mean(0), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(result.pairs.sum(0), result.by_key.mean(0), atol=1e-4, rtol=1e-4)
            rows = [(own[t, i, : i + 1], k) for t, i, k in edges]  # but for what sliding windows hide
            others = [torch.stack([s for j, s in enumerate(row) if j != k and s > -1e30]).mean() for row, k in rows]
            contrast = (expected - torch.stack(others)).float()
            for table in (result.by_query_contrast, result.by_key_contrast):
                torch.testing.assert_close(table.sum(1), contrast, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
def test_folded_weights_give_the_same_scores_in_sum(family: str) -> None:
    model = processed(family)
    result = qk_attribution(model, corpus_for(model), (2, 1), EDGES)
    expected = torch.stack([scores(model, 2)[text, 1, query, key] for text, query, key in EDGES])
    torch.testing.assert_close(result.by_key.sum(1), expected, atol=1e-4, rtol=1e-4)
    assert result.by_key[:, -1].abs().max() < 1e-4


def key_weights(family: str, layer: int, head: int) -> tuple[Tensor, Tensor, int]:
    """Gain of the norm, ``W_K`` ``[d_model d_head]`` and number of the key head, from the module's own parameters."""
    module: Any = tiny(family)
    if family == "gpt2":
        block = module.transformer.h[layer]
        columns = slice(D_MODEL + head * D_HEAD, D_MODEL + (head + 1) * D_HEAD)
        return block.ln_1.weight, block.attn.c_attn.weight[:, columns], head
    if family == "gpt_neox":
        block = module.gpt_neox.layers[layer]
        rows = slice((3 * head + 1) * D_HEAD, (3 * head + 2) * D_HEAD)
        return block.input_layernorm.weight, block.attention.query_key_value.weight[rows].T, head
    block, kv = module.model.layers[layer], head // 2
    return block.input_layernorm.weight, block.self_attn.k_proj.weight[kv * D_HEAD : (kv + 1) * D_HEAD].T, kv


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_a_component_is_what_the_score_loses_without_it(family: str) -> None:
    """The component is taken out of the keys before they are turned; the model does the rest."""
    model, (layer, head) = raw(family), (2, 3)
    tokens = corpus_for(model).tokens
    _, cache = model.run_with_cache(tokens)
    results = cache.stack_head_results(layer=layer, apply_ln=False)  # [layer*head text pos d_model]
    parts = {f"L{n // N_HEADS}H{n % N_HEADS}": part for n, part in enumerate(results)}
    parts |= {f"MLP{earlier}": cache[model.anatomy.hook_name(Site.MLP_OUT, earlier)] for earlier in range(layer)}
    token = cache[model.anatomy.hook_name(Site.EMBED, 0)]
    parts["embed"] = token
    if family == "gpt2":
        parts["pos_embed"] = cache[model.anatomy.hook_name(Site.RESID_PRE, 0)] - token
    gain, weight, kv = key_weights(family, layer, head)
    found = qk_attribution(model, corpus_for(model), (layer, head), EDGES)
    assert set(parts) | {"bias", "remainder"} == set(found.components)
    for name, part in parts.items():
        centred = part if family == "llama_gqa" else part - part.mean(-1, keepdim=True)
        removed = (centred * gain / cache[f"blocks.{layer}.ln1.hook_scale"]) @ weight

        def cut(key: Tensor, hook: Any, removed: Tensor = removed) -> Tensor:
            changed = key.clone()
            changed[:, :, kv] -= removed
            return changed

        kept: dict[str, Tensor] = {}
        places = [
            (model.anatomy.hook_name(Site.K, layer), cut),
            (model.anatomy.hook_name(Site.SCORES, layer), lambda s, hook, kept=kept: kept.update(scores=s.clone())),
        ]
        model.run_with_hooks(tokens, fwd_hooks=places)
        lost = (scores(model, layer) - kept["scores"])[:, head]
        expected = torch.stack([lost[edge] for edge in EDGES])
        by_key = found.by_key[:, list(found.components).index(name)]
        torch.testing.assert_close(by_key, expected, atol=1e-4, rtol=1e-3, msg=name)


# -- planted -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families(*PLANTED))
def test_the_planted_induction_head_attends_because_of_the_previous_token_head(family: str) -> None:
    circuit = planted(family)
    corpus = Corpus.from_tokens([repeats(12, seed=seed) for seed in (0, 1)], model=circuit.model)
    edges = target_edges(corpus, bos_id=0)
    assert len(edges) == 24 and all(query - key == 11 for _, query, key in edges)
    result = qk_attribution(circuit.model, corpus, circuit.induction, edges)
    cause = "L{}H{}".format(*circuit.previous_token)
    for side, component in (("key", cause), ("query", "embed")):
        frame = result.marginals(side)  # pyright: ignore[reportArgumentType]
        assert frame["component"][0] == component
        assert frame["share"][0] > 0.99 and frame["contribution"][0] > 0.99 * float(result.scores.mean())
    assert result.top(1) == [("embed", cause)]
    first = result.to_frame().iloc[0]
    assert (first["component_query"], first["component_key"]) == ("embed", cause)


@pytest.mark.parametrize("family", families(*PLANTED))
def test_the_planted_previous_token_head_attends_because_of_positions(family: str) -> None:
    circuit = planted(family)
    corpus = Corpus.from_tokens([repeats(12)], model=circuit.model)
    edges: list[Edge] = [(0, query, query - 1) for query in range(3, 24)]
    frame = qk_attribution(circuit.model, corpus, circuit.previous_token, edges).marginals("key")
    expected = "embed" if family in ROTARY else "pos_embed"  # constants that are turned, or learned cos and sin
    assert frame["component"][0] == expected and frame["share"][0] > 0.99


# -- edges -------------------------------------------------------------------------------------------------------------


def test_edges_are_targets_by_id() -> None:
    model = raw("llama")
    texts = [[0, 7, 8, 7, 8, 7], [9, 9]]
    corpus = Corpus.from_tokens(texts, model=model)
    pairs: dict[str, set[Edge]] = {"self_finding": set(), "induction": set()}
    for text, ids in enumerate(texts):
        for i, j in itertools.combinations(range(len(ids)), 2):
            if ids[i] == ids[j] != 0:
                pairs["self_finding"].add((text, j, i))
                pairs["induction"].add((text, j, i + 1))
    assert set(target_edges(corpus, "self_finding", bos_id=0, copies="all")) == pairs["self_finding"]
    assert set(target_edges(corpus, bos_id=0, copies="all")) == pairs["induction"]
    assert target_edges(corpus, bos_id=0) == [(0, 3, 2), (0, 4, 3), (0, 5, 4), (1, 1, 1)]
    assert target_edges(corpus, bos_id=0, per_text=1) == [(0, 3, 2), (1, 1, 1)]
    with pytest.raises(NothingFoundError):
        target_edges(Corpus.from_tokens([[0, 7, 8]], model=model), bos_id=0)


def test_an_edge_counts_once_and_the_first_token_has_no_contrast(tmp_path: Path) -> None:
    model = raw("gpt2")
    once = qk_attribution(model, corpus_for(model), (1, 0), [(0, 5, 2)])
    twice = qk_attribution(model, corpus_for(model), (1, 0), [(0, 5, 2)] * 2)
    assert torch.equal(once.pairs, twice.pairs) and len(twice.scores) == 1
    alone = qk_attribution(model, corpus_for(model), (1, 0), [(0, 0, 0)])
    assert alone.by_key_contrast.isnan().all() and not alone.by_key.isnan().any()
    once.save(tmp_path / "edges")
    again = QKAttributionResult.load(tmp_path / "edges")
    np.testing.assert_array_equal(again.pairs, once.pairs)
    assert list(again.components) == component_names(model, 1)


@pytest.mark.parametrize(
    ("head", "edges", "message"),
    [
        ((3, 0), [(0, 5, 2)], "layer 3"),
        ((1, 4), [(0, 5, 2)], "head 4"),
        ((1, 0), [], "no edges"),
        ((1, 0), [(2, 5, 2)], "corpus of 2 texts"),
        ((1, 0), [(0, 11, 2)], "11 tokens"),
        ((1, 0), [(0, 5, -1)], "11 tokens"),
        ((1, 0), [(0, 5, 2), (0, 2, 5)], "query before"),
    ],
)
def test_heads_and_edges_that_do_not_exist(head: tuple[int, int], edges: list[Edge], message: str) -> None:
    model = raw("llama")
    with pytest.raises(InputError, match=message):
        qk_attribution(model, corpus_for(model), head, edges)


def test_a_masked_key_is_no_edge_and_counts_in_no_contrast() -> None:
    model = raw("mistral")
    tokens = random_tokens(1, 20, seed=5).tolist()
    corpus = Corpus.from_tokens(tokens, model=model)
    with pytest.raises(InputError, match="lets the query see"):
        qk_attribution(model, corpus, (1, 0), [(0, 19, 19 - SLIDING_WINDOW)])
    result = qk_attribution(model, corpus, (1, 0), [(0, 19, 18)])
    name = model.anatomy.hook_name(Site.SCORES, 1)
    row = model.run_with_cache(torch.tensor(tokens), names_filter=name)[1][name][0, 0, 19].detach()
    others = [j for j in range(20 - SLIDING_WINDOW, 20) if j != 18]
    assert float(result.by_key_contrast.sum()) == pytest.approx(float(row[18] - row[others].mean()), abs=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_scores_that_are_no_product_are_refused(family: str) -> None:
    """Soft caps and another scale; distances added to the score."""
    model = raw(family)
    with pytest.raises(ModelError, match="product of query and key"):
        qk_attribution(model, corpus_for(model), (1, 0), [(0, 9, 2)])


def test_norms_of_queries_and_a_lack_of_heads_are_refused() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": D_VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    }
    config = transformers.Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    torch.manual_seed(0)
    model = load_model(transformers.Qwen3ForCausalLM(config).eval().requires_grad_(False))
    with pytest.raises(ModelError, match="product of query and key"):
        qk_attribution(model, corpus_for(model), (1, 0), [(0, 9, 2)])
    with pytest.raises(ModelError, match="without k"):
        lacking = without(raw("llama"), Site.K)
        qk_attribution(lacking, corpus_for(lacking), (1, 0), [(0, 9, 2)])


def test_half_precision_is_summed_in_full() -> None:
    model = load_model(fresh("llama_gqa").to(torch.bfloat16))
    result = qk_attribution(model, corpus_for(model), (1, 0), EDGES)
    assert result.by_key.dtype == torch.float32
    torch.testing.assert_close(result.by_key.sum(1), result.scores, atol=0.2, rtol=0.05)
