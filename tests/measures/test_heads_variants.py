"""Published normalisations: the numbers that a perfect head gets on its stimulus, loops, and TransformerLens itself."""

from __future__ import annotations

import functools
import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens import head_detector

import mechrep
from mechrep.errors import InputError
from mechrep.measures.head_scores import HeadScores, score_heads
from mechrep.measures.head_targets import (
    PRESETS,
    PROTOCOLS,
    VARIANTS,
    diagonal,
    doan2025,
    earlier_copies,
    one_later,
    song2025,
    tl_abs,
    tl_mul,
)
from mechrep.models.anatomy import Site
from mechrep.text.stimuli import random_repeats
from tests.measures.heads_by_hand import (
    Rules,
    Text,
    copies_of,
    induction_key,
    observed,
    one_head,
    random_pattern,
    repeated,
    result_of,
    text,
    two_heads,
)

R = list(range(3, 53))


def perfect(ids: list[int], rest: int | None = 0) -> Tensor:
    """``[1 T T]``: the newest target where there is one, else ``rest`` (None: itself)."""
    return torch.from_numpy(one_head(ids, induction_key(ids, rest))[0])


def induction(ids: list[int]) -> Tensor:
    """TransformerLens' detection pattern."""
    return head_detector.get_induction_head_detection_pattern(torch.tensor([ids])).double()


def random_heads(ids: list[int], seed: int = 0) -> Tensor:
    return torch.from_numpy(random_pattern(np.random.default_rng(seed), len(ids), layers=1, heads=3)[0])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_tl_mul_counts_all_rows() -> None:
    cases = {(2, True): 50 / 101, (2, False): 0.5, (4, True): 150 / 201}
    assert [round(value, 6) for value in cases.values()] == [0.495050, 0.5, 0.746269]
    for (copies, bos), expected in cases.items():
        ids = repeated(R, copies, bos)
        assert tl_mul(perfect(ids), induction(ids)).item() == pytest.approx(expected, abs=1e-6)


def test_tl_mul_without_bos_depends_on_where_idle_rows_rest() -> None:
    ids = repeated(R)
    target = induction(ids)
    assert tl_mul(perfect(ids), target, exclude_bos=True).item() == pytest.approx(1.0, abs=1e-6)
    assert tl_mul(perfect(ids, None), target, exclude_bos=True).item() == pytest.approx(0.5, abs=1e-6)
    on_bos = torch.zeros(1, len(ids), len(ids))
    on_bos[:, :, 0] = 1
    assert tl_mul(on_bos, target, exclude_bos=True).isnan().all() and tl_mul(on_bos, target).item() == 0


def test_tl_abs_of_perfect_and_uniform_heads() -> None:
    ids = repeated(R)
    assert tl_abs(perfect(ids), induction(ids)).item() == pytest.approx(0.495, abs=1e-6)
    uniform = torch.from_numpy(one_head(ids, lambda i: range(i + 1))[0])
    expected = 1 - round(float((uniform[0] - induction(ids)).abs().sum()) / len(ids), 3)
    assert tl_abs(uniform, induction(ids)).item() == pytest.approx(expected, abs=1e-6)
    assert round(expected, 2) == -0.48


def test_the_diagonal_counts_boundary_rows() -> None:
    cases = {(True, 0): 51 / 52, (True, None): 50 / 52, (False, 0): 1.0, (False, None): 50 / 51}
    assert [round(value, 6) for value in cases.values()] == [0.980769, 0.961538, 1.0, 0.980392]
    for (bos, rest), expected in cases.items():
        assert diagonal(perfect(repeated(R, bos=bos), rest), 50).item() == pytest.approx(expected, abs=1e-6)


def test_the_diagonal_is_mechreps_score_but_for_those_rows() -> None:
    ids = repeated(R)
    pattern = random_pattern(np.random.default_rng(3), len(ids), layers=1)
    own = result_of([Text(ids, pattern)]).induction[0]
    boundary = torch.from_numpy(pattern[0, :, 49, 0] + pattern[0, :, 50, 1])
    torch.testing.assert_close((diagonal(torch.from_numpy(pattern[0]), 50) * 52 - boundary).float() / 50, own)


def test_doan2025_divides_by_pairs() -> None:
    ids = repeated(R, copies=4)
    assert doan2025(perfect(ids), 50).item() == pytest.approx(150 / 303, abs=1e-6)
    heads = random_heads(ids)
    total, pairs = torch.zeros(3, dtype=torch.float64), 0
    for i in range(51, 201):  # as released
        for copy in range(i // 50):
            total += heads[:, i, copy * 50 + i % 50 + 1]
            pairs += 1
    assert pairs == 303
    torch.testing.assert_close(doan2025(heads, 50), total / pairs)
    for length in (100, 101 - 50, 102):
        with pytest.raises(InputError, match=f"{length} tokens for doan2025"):
            doan2025(heads[:, :length, :length], 50)


def test_song2025_removes_row_and_column_0() -> None:
    r = R[:25]
    for bos, expected in ((False, 1.0), (True, 25 / 26)):
        ids = repeated(r, bos=bos)
        score = song2025(perfect(ids)).item()
        assert score == pytest.approx(expected / (1 + 1e-6 * (len(ids) - 1)), abs=1e-6)
        assert score == pytest.approx(expected, abs=1e-4)
    ids = repeated(r)
    heads = random_heads(ids, seed=2).numpy()
    adjusted = np.zeros_like(heads)
    for head, i, j in np.ndindex(*heads.shape):
        if i and j:
            adjusted[head, i, j] = heads[head, i, j] / sum(heads[head, i, k] + 1e-6 for k in range(1, len(ids)))
    expected = [np.mean([row[i, i - 24] for i in range(24, len(ids))][1:]) for row in adjusted]
    np.testing.assert_allclose(song2025(torch.from_numpy(heads)), expected, rtol=1e-9)


def test_olsson2022_is_mechreps_score_on_its_stimulus() -> None:
    ids = repeated(R[:25], copies=4)

    def over_all_copies(i: int) -> list[int]:
        found = copies_of(Text(ids, np.zeros(0)), i, Rules())
        return [j + 1 for j in found] or [0]

    result = result_of([text(ids, over_all_copies)])
    assert result.induction[0, 0].item() == pytest.approx(1.0, abs=1e-6) and result.n_queries["induction"] == 75


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_protocols_are_arguments_of_score_heads(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert set(protocol) <= set(inspect.signature(score_heads).parameters)
    result = score_heads(tiny_model(), **{**protocol, "sequences": 2})
    copies = protocol.get("copies", 2)
    assert result.n_queries["induction"] == 2 * (copies - 1) * protocol["n"]
    for variant in protocol.get("variants", ()):
        assert ((result.of(variant) <= 1) & (result.of(variant) >= -1)).all()


# -- TransformerLens ---------------------------------------------------------------------------------------------------


@functools.cache
def tiny_model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


PROMPTS = ["the sea, the sea, the sea and the ship", "one day a king and a queen and a king and a queen went out"]
NO_BOS = torch.tensor([False])  # to TransformerLens it is a token like others
PATTERNS = {
    "induction_head": lambda ids: one_later(earlier_copies(ids, NO_BOS)),
    "duplicate_token_head": lambda ids: earlier_copies(ids, NO_BOS),
    "previous_token_head": lambda ids: torch.ones(1, ids.shape[1], ids.shape[1]).tril(-1).triu(-1),
}


@pytest.mark.contract
@pytest.mark.parametrize("name", list(PATTERNS))
def test_targets_and_scores_of_one_prompt_are_those_of_detect_head(name: str) -> None:
    model = tiny_model()
    for prompt in PROMPTS:
        ids = model.to_tokens(prompt)
        target = PATTERNS[name](ids).float()
        assert torch.equal(target[0], getattr(head_detector, f"get_{name}_detection_pattern")(ids)) and target.sum() > 3
        target = target.expand(model.anatomy.n_layers, -1, -1)
        cache = mechrep.CorpusCache(model, mechrep.Corpus.from_tokens(ids, model=model))
        pattern = cache.get(Site.PATTERN)[:, 0]
        for bos in (False, True):
            expected = head_detector.detect_head(model.tl, prompt, name, exclude_bos=bos)  # pyright: ignore
            torch.testing.assert_close(tl_mul(pattern, target, exclude_bos=bos), expected, atol=1e-5, rtol=1e-5)
        expected = head_detector.detect_head(model.tl, prompt, name, error_measure="abs")  # pyright: ignore
        torch.testing.assert_close(tl_abs(pattern, target), expected, atol=1e-4, rtol=0)


@pytest.mark.contract
def test_a_run_over_prompts_is_detect_head_over_the_list() -> None:
    """Prompts of unequal length, one pass; TransformerLens takes them one by one."""
    model = tiny_model()
    corpus = mechrep.Corpus.from_tokens([model.to_tokens(prompt)[0] for prompt in PROMPTS], model=model)
    assert len(set(corpus.lengths.tolist())) == 2
    analyzer = HeadScores(bos_id=model.bos_id, variants=["tl_mul", "tl_mul_no_bos", "tl_abs"])
    result = mechrep.CorpusCache(model, corpus).run(analyzer)
    for variant, options in {
        "tl_mul": {},
        "tl_mul_no_bos": {"exclude_bos": True},
        "tl_abs": {"error_measure": "abs"},
    }.items():
        expected = head_detector.detect_head(model.tl, PROMPTS, "induction_head", **options)  # pyright: ignore
        torch.testing.assert_close(result.of(variant), expected, atol=1e-4, rtol=0)  # pyright: ignore


# -- in the analyzer ---------------------------------------------------------------------------------------------------


def test_a_run_gives_the_mean_over_texts_of_each_variant() -> None:
    draw = np.random.default_rng(4)
    texts = []
    for n, copies in ((5, 2), (5, 3), (7, 2), (5, 2)):
        ids = repeated(draw.choice(np.arange(3, 60), n, replace=False).tolist(), copies)
        texts.append(Text(ids, random_pattern(draw, len(ids)), (1, n, len(ids))))
    functions = {
        "tl_mul": lambda p, ids, n: tl_mul(p, induction(ids)),
        "tl_mul_no_bos": lambda p, ids, n: tl_mul(p, induction(ids), exclude_bos=True),
        "tl_abs": lambda p, ids, n: tl_abs(p, induction(ids)),
        "diagonal": lambda p, ids, n: diagonal(p, n),
        "doan2025": lambda p, ids, n: doan2025(p, n),
        "song2025": lambda p, ids, n: song2025(p, n),
    }
    assert set(functions) == set(VARIANTS)
    for batch_size in (1, 3, 100):
        result = observed(texts, batch_size=batch_size, variants=VARIANTS)
        state = result.state
        assert state["observed"].item() == 4
        for number, name in enumerate(VARIANTS):
            for layer in range(2):
                patterns = [torch.from_numpy(made.pattern[layer]) for made in texts]
                facts = zip(patterns, texts, strict=True)
                expected = sum(functions[name](p, made.ids, made.loop[1]) for p, made in facts if made.loop)
                torch.testing.assert_close(state["variants"][number, layer], expected)


def test_a_pure_bos_head_is_nan_where_the_definition_is() -> None:
    ids = repeated(R[:10])
    result = result_of([text(ids, lambda i: 0)], variants=["tl_mul", "tl_mul_no_bos"])
    assert result.of("tl_mul")[0, 0] == 0 and math.isnan(result.of("tl_mul_no_bos")[0, 0])
    assert result.induction[0, 0] == 0
    assert result.top(2, "tl_mul_no_bos") == [(0, 0), (0, 1)]


def test_variants_of_repeats_need_a_period() -> None:
    ids = repeated(R[:10])
    with pytest.raises(InputError, match=r"\['diagonal'\] for texts without a period"):
        result_of([Text(ids, two_heads(one_head(ids, lambda i: i)))], variants=["diagonal"])


def test_presets_and_protocols_are_not_confused() -> None:
    assert not set(PRESETS) & set(PROTOCOLS)
    corpus = random_repeats(tiny_model(), n=4, sequences=2, bos=False)
    with pytest.raises(InputError, match="doan2025"):
        mechrep.CorpusCache(tiny_model(), corpus).run(HeadScores(bos_id=0, variants=["doan2025"]))
