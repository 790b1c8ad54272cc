"""What the planted heads promise, checked on plain modules, without mechrep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted.by_hand import (
    forward,
    greedy,
    plain,
    planted,
    score,
    without_heads,
)
from tests.planted.texts import repeats
from tests.planted.workbench import BOS, D_VOCAB, FAMILIES, N_HEADS, WORDS, habit
from tests.tiny_models import families


@pytest.mark.parametrize("family", families(*FAMILIES))
@pytest.mark.parametrize(("n", "copies", "seed"), [(20, 2, 0), (60, 2, 1), (20, 6, 2), (1, 30, 3)])
def test_the_circuit_looks_where_it_should(family: str, n: int, copies: int, seed: int) -> None:
    fixture, ids = planted("induction_circuit", family), repeats(n, copies=copies, seed=seed)
    run = forward(plain(fixture.model), family, ids)
    layer, head = fixture.previous_token
    assert score(run.patterns[layer][head], ids, "previous")[0] > 0.9999
    assert run.patterns[layer][head][1, 0] > 0.9999
    layer, head = fixture.induction
    found, chance, queries = score(run.patterns[layer][head], ids, "induction")
    assert found > 0.9999 and queries == n * (copies - 1)
    assert (run.patterns[layer][head][: n + 1, 0] > 0.9999).all()  # nothing to find in the first copy
    layer, head = fixture.bos_rest
    assert (run.patterns[layer][head][:, 0] > 0.9999).all()
    uniform = torch.ones(len(ids), len(ids)).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    assert len(fixture.idle) == 2 * N_HEADS - 3
    for layer, head in fixture.idle:
        torch.testing.assert_close(run.patterns[layer][head], uniform, atol=1e-5, rtol=0)
    if n > 1:  # a loop of one token is what a previous-token head finds, too
        for layer, head in {*fixture.idle, fixture.bos_rest, fixture.previous_token}:
            assert score(run.patterns[layer][head], ids, "induction")[0] < chance + 0.05


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_circuit_copies(family: str) -> None:
    fixture, n = planted("induction_circuit", family), 20
    module, ids = plain(fixture.model), repeats(20, copies=3)
    run = forward(module, family, ids)
    assert run.logits[n + 1 : -1].argmax(-1).tolist() == ids[n + 2 :]
    assert run.logits[1 : n + 1].argmax(-1).tolist() == [habit(token) for token in ids[1 : n + 1]]
    # Mistakes are not followed: the induction head finds the copy that fits what is read now.
    ids[n + 5] = next(word for word in WORDS if word not in ids)
    assert forward(module, family, ids).logits[n + 6 : -1].argmax(-1).tolist() == ids[n + 7 :]
    assert greedy(module, repeats(n)[: n + 3], 100) == (repeats(n, copies=8)[n + 3 :])[:100]


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_circuit_is_these_two_heads_and_no_other(family: str) -> None:
    fixture, ids = planted("induction_circuit", family), repeats(20)
    module = plain(fixture.model)
    clean = forward(module, family, ids).logits
    others = without_heads(module, family, (*fixture.idle, fixture.bos_rest))
    assert torch.equal(forward(others, family, ids).logits, clean)
    for head in (fixture.previous_token, fixture.induction):
        cut = forward(without_heads(module, family, [head]), family, ids).logits
        assert cut[1:].argmax(-1).tolist() == [habit(token) for token in ids[1:]]


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_what_the_induction_head_reads_and_writes_is_the_same_token(family: str) -> None:
    fixture = planted("induction_circuit", family)
    (layer, head), tl = fixture.induction, fixture.model.tl
    value = tl.W_V[layer, head * tl.W_V.shape[1] // N_HEADS].detach()
    read = tl.W_E.detach() * tl.blocks[layer].ln1.weight
    circuit = (read @ value @ tl.W_O[layer, head].detach() * tl.ln_final.weight) @ tl.W_U.detach()
    expected = torch.eye(D_VOCAB) * circuit[3, 3]
    expected[BOS, BOS] = 0
    torch.testing.assert_close(circuit, expected, atol=1e-3 * float(circuit[3, 3]), rtol=0)
    bare = tl.W_E.detach() @ value @ tl.W_O[layer, head].detach() @ tl.W_U.detach()  # without the uneven gains
    assert not torch.allclose(bare / bare[3, 3], expected / expected[3, 3], atol=0.1)


@pytest.mark.parametrize("family", families(*FAMILIES))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_self_finding_head_finds_earlier_copies(family: str, seed: int) -> None:
    fixture = planted("self_finding_head", family)
    draw = np.random.default_rng(seed)
    ids = [BOS, *draw.choice(WORDS, 250).tolist(), 7, 7, 7]
    run = forward(plain(fixture.model), family, ids)
    layer, head = fixture.self_finding
    found, chance, queries = score(run.patterns[layer][head], ids, "self")
    assert found > 0.9999 and queries > 150
    lonely = [i for i in range(len(ids)) if ids[i] not in ids[1:i]]
    assert (run.patterns[layer][head][lonely, 0] > 0.9999).all() and len(lonely) > 30
    assert len(fixture.idle) == 2 * N_HEADS - 1
    for layer, head in fixture.idle:
        assert score(run.patterns[layer][head], ids, "self")[0] == pytest.approx(chance, abs=1e-5)
