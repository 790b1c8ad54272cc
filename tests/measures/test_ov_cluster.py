"""Clusters of the first layer's OV space: against weights and plain loops, and where closeness is planted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mechrep.errors import InputError
from mechrep.measures.ov_cluster import OVClusterResult, _order, ov_cluster, ov_vectors
from mechrep.models.load import load_model
from tests.analyzers.sinks_by_hand import check_equal
from tests.tiny_models import D_VOCAB, N_CTX, fresh, tiny

TWINS = [9, 14, 22, 37]  # tokens that are given nearly the same embedding


def from_weights(module: Any, tokens: list[int]) -> Tensor:
    """Values through all heads, from the weights of a Llama with two key-value heads for four query heads."""
    layer = module.model.layers[0]
    values = layer.self_attn.v_proj(layer.input_layernorm(module.model.embed_tokens(torch.tensor(tokens))))
    per_head = values.unflatten(-1, (2, 8)).repeat_interleave(2, dim=1)
    return layer.self_attn.o_proj(per_head.flatten(1))


def with_twins() -> Any:
    """A random model in which some tokens are nearly one."""
    module: Any = fresh("llama_gqa")
    embedding = module.model.embed_tokens.weight
    for place, token in enumerate(TWINS):
        generator = torch.Generator().manual_seed(place)
        embedding[token] = embedding[TWINS[0]] + 0.001 * torch.randn(embedding.shape[1], generator=generator)
    return module


def test_vectors_are_values_through_all_heads() -> None:
    vectors = ov_vectors(load_model(tiny("llama_gqa")), [5, 9, 60])
    torch.testing.assert_close(vectors, from_weights(tiny("llama_gqa"), [5, 9, 60]), rtol=1e-4, atol=1e-5)


def test_planted_twins_are_the_cluster_and_disturb_the_first_layer_like_repeats(tmp_path: Path) -> None:
    module = with_twins()
    model = load_model(module)
    result = ov_cluster(
        model, 22, 4, length=60, draws=(5, 3), candidates=range(3, D_VOCAB)
    )  # equal rows look untrained
    assert set(result.cluster) == set(TWINS) and result.cluster[0] == 22
    assert all(members[0] == 22 and len(set(members)) == 4 for members in result.random_sets)
    vectors = from_weights(module, result.cluster).double()
    distances = [float((vectors[i] - vectors[j]).norm()) for i, j in itertools.combinations(range(4), 2)]
    assert result.diameter["cluster"] == pytest.approx(max(distances), rel=1e-3)
    repeat = float(result.by_set(result.signal, "repeat"))
    cluster, random = result.by_set(result.signal, "cluster"), result.by_set(result.signal, "random")
    assert abs(float(cluster) - repeat) < 0.05 * float(random.min()) and result.p_signal == pytest.approx(1 / 6)
    frame = result.to_frame(0).set_index("kind")
    assert frame["texts"].to_dict() == {"cluster": 3, "random": 15, "repeat": 1}
    assert frame.loc["cluster", "signal_high"] < frame.loc["random", "signal_low"]
    result.save(tmp_path / "r")
    check_equal(OVClusterResult.load(tmp_path / "r"), result)


def test_growing_by_loops() -> None:
    module = tiny("llama_gqa")
    vectors = from_weights(module, list(range(D_VOCAB))).double()
    chosen = [30]
    while len(chosen) < 5:
        left = [token for token in range(3, D_VOCAB) if token not in chosen]
        chosen.append(min(left, key=lambda token: max(float((vectors[token] - vectors[own]).norm()) for own in chosen)))
    result = ov_cluster(load_model(module), 30, 5, length=10, draws=(1, 1), candidates=range(3, D_VOCAB))
    assert list(result.cluster) == chosen == result.top(5)


@pytest.mark.parametrize("bos", [True, False])
def test_signal_and_norms_beside_the_bare_model(bos: bool) -> None:
    module: Any = fresh("llama_gqa")
    result = ov_cluster(load_model(module), 30, 3, length=7, draws=(1, 1), bos=bos)
    ids = [*([0] if bos else []), *[30] * 7]
    seen: dict[str, Tensor] = {}
    module.model.layers[0].self_attn.register_forward_hook(lambda _m, _a, out: seen.update(attention=out[0][0, -1]))
    states = module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    signal = (seen["attention"] - from_weights(module, [30])[0]).norm()
    text = list(result.kinds).index("repeat")
    torch.testing.assert_close(result.signal[text], signal, rtol=1e-3, atol=1e-5)
    norms = torch.stack([state[0, -1].norm() for state in states[:-1]])  # the last one is after the final norm
    torch.testing.assert_close(result.norm[text, :-1], norms, rtol=1e-4, atol=1e-5)
    assert bool(result.bos_norm.isnan().all()) != bos
    if bos:
        firsts = torch.stack([state[0, 0].norm() for state in states[:-1]])
        torch.testing.assert_close(result.bos_norm[:-1], firsts, rtol=1e-4, atol=1e-5)
    else:
        assert result.signal[text] < 1e-4, "without other tokens there is nothing to see"


@pytest.mark.parametrize(("members", "length"), [([0, 1], 9), ([0, 5, 7], 3), ([0, 5, 7], 50), ([0], 4)])
def test_orders_end_in_the_token_and_never_repeat_one_at_once(members: list[int], length: int) -> None:
    for seed in range(20):
        order = _order(members, length, np.random.default_rng(seed))
        assert len(order) == length and order[-1] == 0
        if len(members) > 1:
            assert all(a != b for a, b in itertools.pairwise(order))
            counts = [order.count(member) for member in members]
            assert max(counts) - min(counts) <= 1


def test_bad_questions_are_refused() -> None:
    model = load_model(fresh("llama"))
    for options in (
        {"size": 1},
        {"size": D_VOCAB},
        {"length": 3},
        {"length": N_CTX},
        {"draws": (0, 8)},
        {"draws": (8, 0)},
        {"candidates": [D_VOCAB]},
    ):
        with pytest.raises(InputError):
            ov_cluster(model, 9, **({"size": 4} | options))
    with pytest.raises(InputError, match="token 61"):
        ov_cluster(model, D_VOCAB, 4)
    result = ov_cluster(model, 9, 2, length=4, draws=(1, 1))
    with pytest.raises(InputError, match="kind='x'"):
        result.by_set(result.signal, "x")
    with pytest.raises(InputError, match="layer 3"):
        result.p_norm(3)
