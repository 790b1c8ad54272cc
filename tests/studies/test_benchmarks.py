"""Benchmarks under intervention, without the harness: questions, edited modules, controls, statistics, tables."""

from __future__ import annotations

import gzip
import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechrep
from mechrep.ablation.benchmark_tasks import TASKS, as_tasks, read_documents
from mechrep.ablation.benchmarks import benchmark_cells, paired_answers
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import Condition, Effects, Measure
from mechrep.errors import InputError
from mechrep.generation.patched_model import intervened
from mechrep.interventions import Combined, Heads, Intervention, Neurons, SinkPatch, mean, resample, scale
from mechrep.interventions.apply import fingerprint_of
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.stats import discordant, mcnemar
from tests.tiny_models import N_CTX, random_tokens, tiny

BOS = 0


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    path = folder / name
    path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    return path


# -- questions -----------------------------------------------------------------------------------------------------


def test_subjects_of_mmlu_take_turns(tmp_path: Path) -> None:
    rows = [
        {"subject": subject, "question": f" {subject} {n} ", "choices": ["w", "x", "y", "z"], "answer": n}
        for subject in ("high_school_biology", "law")
        for n in range(3)
    ]
    write_rows(tmp_path, "mmlu_test.jsonl.gz", rows)
    documents = read_documents(TASKS["mmlu"], tmp_path)
    assert [d["id"] for d in documents[:4]] == ["high_school_biology/0", "law/0", "high_school_biology/1", "law/1"]
    assert documents[0]["text"] == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "high_school_biology 0\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert documents[2]["choices"] == ["A", "B", "C", "D"] and documents[2]["target"] == 1
    assert read_documents(TASKS["mmlu"], tmp_path, 3) == documents[:3]
    assert len({d["id"] for d in documents}) == 6


def test_true_answers_of_truthfulqa_are_told_by_their_labels(tmp_path: Path) -> None:
    row = {"question": "Why?", "mc1_targets": {"a": 0, "b": 1}, "mc2_targets": {"a": 1, "b": 0, "c": 1}}
    write_rows(tmp_path, "truthfulqa_mc.jsonl", [row])
    (one,) = read_documents(TASKS["truthfulqa"], tmp_path)
    (two,) = read_documents(TASKS["truthfulqa_mc2"], tmp_path)
    assert (one["choices"], one["target"]) == (["a", "b"], 1)
    assert (two["choices"], two["true"]) == (["a", "b", "c"], [1, 0, 1])


def test_files_that_do_not_serve_are_refused(tmp_path: Path) -> None:
    task = TASKS["arc_easy"]
    with pytest.raises(InputError, match="no such file"):
        read_documents(task, tmp_path)
    write_rows(tmp_path, "arc_easy.jsonl", [{"id": "1", "query": "Q", "choices": ["a"]}])
    with pytest.raises(InputError, match=r"row 1 .*gold"):
        read_documents(task, tmp_path)
    (tmp_path / "arc_easy.jsonl").write_text("")
    with pytest.raises(InputError, match="empty"):
        read_documents(task, tmp_path)
    (tmp_path / "arc_easy.jsonl").rename(tmp_path / "arc_easy.jsonl.gz")
    (tmp_path / "arc_easy.jsonl.gz").write_bytes(gzip.compress(b"{}" * 100)[:-9])
    with pytest.raises(InputError, match="one JSON object per line"):
        read_documents(task, tmp_path)
    write_rows(tmp_path, "arc_easy_more.jsonl", [])
    with pytest.raises(InputError, match=r"arc_easy\.jsonl\.gz, arc_easy_more\.jsonl"):
        read_documents(task, tmp_path)
    with pytest.raises(InputError, match="limit=0"):
        read_documents(task, tmp_path, 0)
    for names in ([], ["mmlu", "mmlu"], ["gsm8k"]):
        with pytest.raises(InputError, match="tasks="):
            as_tasks(names)


# -- a module inside an intervention -------------------------------------------------------------------------------

LENGTHS = (12, 7, 9, 1)


def bank(model: Model) -> Intervention:
    a = model.anatomy
    return Heads([(0, 0), (2, 3)], mean(torch.linspace(-1, 1, a.n_layers * a.n_heads * a.d_head).view(3, 4, -1)), "all")


CHANGES = {
    "neurons": lambda model: Neurons([(0, 5), (2, 7), (2, 8)], when="all"),
    "heads": lambda model: Heads([(0, 1), (1, 3)], when="all"),
    "mean heads": bank,
    "to bos": lambda model: Heads([(0, 1), (1, 3)], "to_bos", "all"),
    "patch": lambda model: SinkPatch(1, [2, 9]),
    "sum": lambda model: (
        SinkPatch(1, [2]) + Heads([(0, 1)], "to_bos", "all") + Neurons([(1, 2), (2, 3)], scale(-2.0), when="all")
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_padded_rows_give_what_each_row_gives_alone_on_the_reference(family: str, change: str) -> None:
    model = mechrep.load_model(tiny(family))
    intervention = CHANGES[change](model)
    rows = [torch.cat([torch.tensor([BOS]), random_tokens(1, n, seed=n)[0]])[:n] for n in LENGTHS]
    longest = max(LENGTHS)
    right = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=2) for row in rows])
    left = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=2) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - n for n in LENGTHS]).long()
    assert model.plain is not None
    with torch.no_grad():
        with intervened(model, intervention) as module:
            on_the_right = module(right).logits
            on_the_left = module(left, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
        untouched = model.plain(right).logits
        changed = False
        for number, row in enumerate(rows):
            alone = model.run_with_hooks(row[None], fwd_hooks=intervention.hooks(model))[0]
            torch.testing.assert_close(on_the_right[number, : len(row)], alone, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(on_the_left[number, longest - len(row) :], alone, atol=1e-4, rtol=1e-4)
            changed |= bool((untouched[number, : len(row)] - alone).abs().max() > 1e-2)
    assert changed, "the intervention is one that matters"


def test_afterwards_the_module_is_as_before_even_after_an_error() -> None:
    model = mechrep.load_model(tiny("llama"))
    tokens = random_tokens(2, 6)
    assert model.plain is not None
    hooks = [(m, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.plain.modules()]
    before = model.plain(tokens).logits
    with pytest.raises(KeyError), intervened(model, CHANGES["sum"](model)) as module:
        assert bool((module(tokens).logits != before).any())
        raise KeyError
    assert bool((model.plain(tokens).logits == before).all())
    assert hooks == [(m, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.plain.modules()]


def test_neurons_are_edited_in_cached_passes_too_and_moved_attention_is_refused_there() -> None:
    model = mechrep.load_model(tiny("llama"))
    tokens = random_tokens(2, 8)
    with torch.no_grad(), intervened(model, CHANGES["neurons"](model)) as module:
        whole = module(tokens).logits
        begun = module(tokens[:, :5], use_cache=True)
        rest = module(tokens[:, 5:], past_key_values=begun.past_key_values).logits
    torch.testing.assert_close(rest, whole[:, 5:], atol=1e-4, rtol=1e-4)
    with torch.no_grad(), intervened(model, CHANGES["to bos"](model)) as module:
        begun = module(tokens[:, :5], use_cache=True)
        with pytest.raises(InputError, match="in the cache"):
            module(tokens[:, 5:], past_key_values=begun.past_key_values)


def test_interventions_that_tell_texts_or_positions_apart_are_refused() -> None:
    model = mechrep.load_model(tiny("llama"))
    a = model.anatomy
    drawn = resample(torch.randn(5, a.n_layers, a.d_mlp))
    for wrong in (
        Neurons([(0, 1)], when="from_onset"),
        Heads([(0, 1)], when="last"),
        Neurons([(0, 1)], drawn, when="all"),
    ):
        with pytest.raises(InputError, match="when='all'"), intervened(model, wrong):
            pass
    with pytest.raises(InputError, match="SinkPatch"), intervened(model, SinkPatch(0, [1], when="last")):
        pass
    assert a.n_ctx == N_CTX


# -- conditions ----------------------------------------------------------------------------------------------------


def test_controls_do_the_same_to_as_many_other_units_of_the_same_layers() -> None:
    model = mechrep.load_model(tiny("llama"))
    circuit = Circuit("both", neurons=[(0, 3), (2, 5)], heads=[(1, 0)])
    changes = {"patched": SinkPatch(1, [4, 6]), "ablated": circuit}
    cells = benchmark_cells(changes, model.anatomy, controls=["layer_matched", "random"], draws=3)
    assert [one.name for one, _ in cells[:2]] == ["baseline", "patched"] and cells[0][1] is None
    for condition, done in cells:
        if condition.selection != "layer_matched":
            continue
        if condition.name == "patched":
            assert isinstance(done, SinkPatch) and done.layer == 1
            assert len(done.neurons) == 2 and not {4, 6} & set(done.neurons)
        else:
            assert isinstance(done, Combined)
            neurons, heads = done.parts
            assert isinstance(neurons, Neurons) and isinstance(heads, Heads)
            assert [layer for layer, _ in neurons.units] == [0, 2] and not set(neurons.units) & set(circuit.neurons)
            assert heads.units[0][0] == 1 and heads.units != ((1, 0),)
            assert (neurons.when, heads.when, neurons.op.name) == ("all", "all", "zero")
    assert len({fingerprint_of(model, [done]) for _, done in cells}) > 8, "different draws differ"


def test_conditions_that_cannot_be_told_apart_or_drawn_are_refused() -> None:
    anatomy = mechrep.load_model(tiny("llama")).anatomy
    one = Neurons([(0, 1)], when="all")
    for changes, controls in (({"baseline": one}, []), (one, ["nearest"]), (one, ["random", "random"])):
        with pytest.raises(InputError):
            benchmark_cells(changes, anatomy, controls=controls, draws=1)
    whole = Circuit("a layer", layers=[("mlp", 0)])
    with pytest.raises(InputError, match="controls=\\(\\)"):
        benchmark_cells(whole, anatomy, controls=["layer_matched"], draws=1)
    assert len(benchmark_cells(whole, anatomy, controls=[], draws=1)) == 2


# -- statistics ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_tailed_sum_of_binomial_weights(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(gained, lost) == pytest.approx(mcnemar(lost, gained))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_what_is_gained_minus_what_is_lost_is_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (np.array([pair[i] for pair in pairs], dtype=float) for i in (0, 1))
    gained, lost = discordant(before, after)
    assert gained - lost == after.sum() - before.sum()
    assert discordant(after, before) == (lost, gained)


def test_shares_have_no_mcnemar() -> None:
    with pytest.raises(InputError, match="neither right nor wrong"):
        discordant(np.array([0.5]), np.array([1.0]))


def test_gained_and_lost_questions_stand_beside_the_effect() -> None:
    before, after = [0.0, 0, 0, 0, 1, 1, 1, 1], [1.0, 1, 1, 0, 0, 1, 1, 1]
    ids = [str(n) for n in range(8)]
    conditions = [Condition(), Condition("patched", "ablation"), Condition("patched", "random")]
    table = torch.tensor([[before, after, before]], dtype=torch.float64)
    measure = Measure("mmlu acc", "share", "question", trials=1)
    effects = Effects(Provenance({"name": "m"}, {"texts": 8}, {}), conditions, [measure], [ids], [ids], table)
    rows = paired_answers(effects)[["selection", "gained", "lost", "mcnemar"]].values.tolist()
    assert rows == [["ablation", 3, 1, mcnemar(3, 1)], ["random", 0, 0, 1.0]]
    assert effects.summary().loc[0, "effect"] == 0.25
