"""``compare``: equal to ``generate`` under each intervention, candidates equal to plain logits, partings by hand."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

import mechrep
from mechrep.ablation.circuit import Circuit
from mechrep.errors import InputError
from mechrep.generation.compare import Comparison, _Kept, compare
from mechrep.interventions import Heads, Neurons, SinkPatch, add, resample
from mechrep.interventions.apply import logits
from mechrep.results import Result
from mechrep.text.corpus import Corpus
from mechrep.text.shown import token_texts
from tests.tiny_models import tiny

PROMPTS = ["The sea was", "And the king said to the"]
NEW, K = 24, 4


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def conditions(model: mechrep.Model) -> dict[str, Any]:
    a = model.anatomy
    bank = torch.randn(5, a.n_layers, a.d_mlp, generator=torch.Generator().manual_seed(0))
    return {
        "baseline": None,
        "head": Heads("L2H0"),
        "from its end on": Heads("L2H0, L0H1", when="last"),
        "pushed": Neurons("L1N5, L2N7", add(4.0)),
        "drawn": Neurons([(3, n) for n in range(99)], resample(bank)),
        "patched": SinkPatch(1, [3, 8]),
    }


@pytest.fixture(scope="module")
def found(model: mechrep.Model, conditions: dict[str, Any]) -> Comparison:
    return compare(model, PROMPTS, conditions, max_new_tokens=NEW, top_k=K)


def test_every_continuation_is_what_generate_writes(
    model: mechrep.Model, conditions: dict[str, Any], found: Comparison
) -> None:
    corpus = Corpus.from_texts(PROMPTS, model=model)
    for place, (name, one) in enumerate(conditions.items()):
        written = mechrep.generate(model, corpus, max_new_tokens=NEW, interventions=one)
        for text in range(len(PROMPTS)):
            prompt, whole = corpus.row(text), written.row(text)
            new = whole[len(prompt) :]
            assert found.ids[place, text].tolist() == [*new, *[-1] * (found.ids.shape[2] - len(new))]
            assert found.text(name, text) == model.decode(whole)[len(model.decode(prompt)) :]
            assert found.prompts[text] == model.decode(prompt)


def test_candidates_are_those_of_plain_logits(
    model: mechrep.Model, conditions: dict[str, Any], found: Comparison
) -> None:
    corpus = Corpus.from_texts(PROMPTS, model=model)
    for place, one in enumerate(conditions.values()):
        for text in range(len(PROMPTS)):
            prompt = corpus.row(text)
            for step in (0, 3, NEW - 1):
                ids = [*prompt, *found.ids[place, text, :step].tolist()]
                start = torch.tensor([len(prompt) - 1 if one is not None and one.when == "last" else 0])
                # One text alone, with the hooks of the reference.
                tokens = torch.tensor([ids])
                if one is None:
                    last = logits(model, tokens)[0, -1]
                else:
                    last = model.run_with_hooks(tokens, fwd_hooks=one.hooks(model, start, texts=[text]))[0, -1]
                expected = last.log_softmax(-1)
                top = expected.topk(K)
                torch.testing.assert_close(found.top_log_probability[place, text, step], top.values, atol=2e-4, rtol=0)
                torch.testing.assert_close(
                    expected[found.top_ids[place, text, step]], top.values, atol=2e-4, rtol=0, msg="another set of ids"
                )
                own = found.ids[place, text, step]
                torch.testing.assert_close(found.log_probability[place, text, step], expected[own], atol=2e-4, rtol=0)
                assert found.top_log_probability[place, text, step, 0] >= found.log_probability[place, text, step]


def test_logits_of_all_texts_are_never_held_together(
    model: mechrep.Model, conditions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    take = _Kept.take

    def watched(self: _Kept, place: int, text: int, table: torch.Tensor) -> None:
        seen.append(weakref.ref(table))
        assert sum(one() is not None for one in seen) <= 2
        take(self, place, text, table)

    monkeypatch.setattr(_Kept, "take", watched)
    two = {name: conditions[name] for name in ("baseline", "head")}
    found = compare(model, [*PROMPTS, "It was"], two, max_new_tokens=4, temperature=1.0, seed=7)
    assert len(seen) == 6 and found.provenance.config["seed"] == 7
    assert "L2H0" in found.provenance.config["conditions"]["head"]


def test_the_first_difference_and_its_margins(model: mechrep.Model, conditions: dict[str, Any]) -> None:
    found = compare(model, PROMPTS, conditions, max_new_tokens=NEW, top_k=model.anatomy.d_vocab)
    listed = {(one.condition, one.text): one for one in found.partings}
    assert listed, "nothing parts: the test would be empty"
    for place, name in enumerate(list(conditions)[1:], 1):
        for text in range(len(PROMPTS)):
            one, other = found.ids[0, text].tolist(), found.ids[place, text].tolist()
            step = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
            parting = listed.get((name, text))
            assert (None if parting is None else parting.step) == step
            if parting is None or step is None:
                continue
            for c, margin in ((0, parting.margin_before), (place, parting.margin_after)):
                table = dict(
                    zip(
                        found.top_ids[c, text, step].tolist(),
                        found.top_log_probability[c, text, step].tolist(),
                        strict=True,
                    )
                )
                assert margin == pytest.approx(table[one[step]] - table[other[step]], abs=1e-4)
            assert parting.margin_before >= 0 >= parting.margin_after, "greedy: each prefers its own"
            assert parting.before in found.text("baseline", text)


def test_shown_in_a_terminal_in_a_notebook_and_as_tables(found: Comparison) -> None:
    printed, page = str(found), found._repr_html_()
    for text in range(len(PROMPTS)):
        assert found.prompts[text] in printed
    assert printed.count("⟦") == len([one for one in found.partings if one.before or one.after])
    assert page.count("<span") == sum(len(text) for texts in found.written for text in texts)
    frame, steps = found.to_frame(), found.steps()
    assert len(frame) == len(PROMPTS) * len(found.conditions)
    assert frame["parts_at"].notna().sum() == len(found.partings)
    assert len(steps) == K * int((found.ids >= 0).sum())
    best = steps[steps["rank"] == 0]
    assert (best["probability"] <= best["candidate_probability"] + 1e-6).all()


def test_a_hostile_text_stays_text(model: mechrep.Model) -> None:
    evil = "<script>alert(1)</script> \x1b[2J"
    found = compare(model, evil, {"<img src=x onerror=1>": None, "b": "L2H0"}, max_new_tokens=4)
    assert "<script" not in found._repr_html_() and "<img" not in found._repr_html_()
    assert "\x1b" not in str(found)


def test_it_is_saved_and_loaded(tmp_path: Any, found: Comparison) -> None:
    found.save(tmp_path / "both")
    again = mechrep.load(tmp_path / "both")
    assert isinstance(again, Comparison) and isinstance(again, Result)
    assert again.partings == found.partings and again._repr_html_() == found._repr_html_()


def test_what_stands_for_an_intervention(model: mechrep.Model) -> None:
    ways: list[Any] = [Heads("L2H0"), "L2H0", Circuit("c", heads="L2H0"), {"a": None, "b": Heads("L2H0", when="all")}]
    ids = [compare(model, PROMPTS[0], way, max_new_tokens=8).ids for way in ways]
    assert all(torch.equal(one, ids[0]) for one in ids)
    both = compare(model, PROMPTS[0], "L2H0,L1N5", max_new_tokens=8)
    assert torch.equal(
        both.ids[1], compare(model, PROMPTS[0], Heads("L2H0") + Neurons("L1N5"), max_new_tokens=8).ids[1]
    )
    for wrong, said in (({"alone": None}, "at least two"), ("L1E2", "expert"), ("2.0", "L3H1")):
        with pytest.raises(InputError, match=said):
            compare(model, PROMPTS[0], wrong)
    with pytest.raises(InputError, match="top_k"):
        compare(model, PROMPTS[0], "L2H0", top_k=0)


def test_texts_that_end_early_part_at_their_end(model: mechrep.Model) -> None:
    stop = lambda ids: len(ids) >= 10 and ids[-1] % 2 == 0  # noqa: E731 - a rule that ends texts here and there
    found = compare(model, PROMPTS, {"a": None, "b": "L2H0"}, max_new_tokens=NEW, stop_when=stop)
    for one in found.partings:
        ended = "" in (one.before, one.after)
        assert ended == (one.margin_before != one.margin_before)
    assert found.to_frame()["continuation"].str.len().gt(0).all()


def test_sampling_gives_every_condition_the_same_random_numbers() -> None:
    model = mechrep.load_model(tiny("llama"))
    rows = [[5, 6, 7, 8], [9, 10, 11]]
    found = compare(model, rows, {"a": None, "b": Neurons([(0, 1)], add(0.0))}, max_new_tokens=9, temperature=1.0)
    assert not found.partings and torch.equal(found.ids[0], found.ids[1])


def test_pieces_are_the_text(model: mechrep.Model) -> None:
    for text in ("Añö — 日本語 🙂🙂 and  two  spaces\n\nend", "a", " the the the"):
        ids = model.encode(text)
        pieces = token_texts(ids, model.decode)
        assert len(pieces) == len(ids) and "".join(pieces) == model.decode(ids)
