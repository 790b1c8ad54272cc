"""``generate``: default starts, sampling, what ends a text, what the new corpus says, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mechrep.errors import InputError
from mechrep.generation.decode import Decoding, Request, choose_tokens, decode, generate
from mechrep.generation.whole_texts import decode_reference
from mechrep.interventions import Neurons, add
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text import detect_cycle
from mechrep.text.corpus import Corpus
from mechrep.text.watch import watch_for
from tests.generation.obvious import Edit, obvious_text
from tests.tiny_models import D_VOCAB, N_CTX, fresh, random_tokens, tiny
from tests.unchecked import as_users_call

UNITS = [(layer, neuron) for layer in range(3) for neuron in range(0, 48, 3)]


@functools.cache
def llama() -> Model:
    return load_model(copy.deepcopy(tiny("llama")))


@functools.cache
def looping() -> Model:
    """A model that soon says the same again: a tied embedding that outweighs what the layers add."""
    module = fresh("gemma", seed=3)
    module.get_input_embeddings().weight.mul_(4)
    return load_model(module, check=False)


def prompts(n: int = 4, length: int = 6, model: Model | None = None, **facts: Any) -> Corpus:
    corpus = Corpus.from_tokens(random_tokens(n, length, seed=7).tolist(), model=model or llama())
    return corpus.with_columns(**facts) if facts else corpus


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(number) for number in range(len(corpus))]


def written(corpus: Corpus, **options: Any) -> list[list[int]]:
    return rows(generate(llama(), corpus, **sorted_out({"max_new_tokens": 12, "stop_when": None, **options})))


def sorted_out(options: dict[str, Any]) -> dict[str, Any]:
    """Options of ``generate``, those of the decoding in one."""
    names = {one.name for one in dataclasses.fields(Decoding)} & set(options)
    others = {name: value for name, value in options.items() if name not in names}
    return {**others, "decoding": Decoding(**{name: options[name] for name in names})}


# --- where an edit begins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("when", "start"), [("all", 0), ("last", 5), ("from_onset", 2)])
def test_default_starts(when: Any, start: int) -> None:
    corpus = prompts(onset=[3, 3, 3, 3], period=[1, 1, 1, 1])
    expected = [obvious_text("llama", row, 12, [Edit(UNITS, 0, 0)], start) for row in rows(corpus)]
    assert written(corpus, interventions=Neurons(UNITS, when=when)) == expected
    assert written(corpus, interventions=Neurons(UNITS, when="all"), starts=[start] * 4) == expected


def test_an_onset_at_the_first_token_begins_there() -> None:
    corpus = prompts(onset=[0, 1, 4, 5])
    starts = [0, 0, 3, 4]
    expected = [
        obvious_text("llama", row, 12, [Edit(UNITS, 1, 2)], s) for row, s in zip(rows(corpus), starts, strict=True)
    ]
    assert written(corpus, interventions=Neurons(UNITS, add(2.0))) == expected


def test_a_missing_onset_is_refused_where_it_is_needed_and_nowhere_else() -> None:
    corpus = prompts(onset=[3, None, 3, 3])
    with pytest.raises(InputError, match="'tokens-1', which has no onset"):
        written(corpus, interventions=Neurons(UNITS, when="from_onset"))
    one_edit = [Neurons(UNITS, when="from_onset"), None, None, None]
    assert written(corpus, interventions=one_edit)[1:] == written(corpus)[1:]
    assert written(corpus, interventions=Neurons(UNITS), starts=[0, 0, 0, 0]) != written(corpus)


def test_without_a_word_an_edit_begins_at_the_onset_or_where_there_is_none_at_once() -> None:
    corpus = prompts(onset=[3, None, 5, None])
    by_itself = written(corpus, interventions=Neurons(UNITS))
    assert by_itself == written(corpus, interventions=Neurons(UNITS, when="all"), starts=[2, 0, 4, 0])
    alone = written(corpus.select([1, 3]), interventions=Neurons(UNITS, when="all"))
    assert [by_itself[1], by_itself[3]] == alone


def test_silent_neurons_removed_leave_every_text_alone() -> None:
    module = copy.deepcopy(tiny("llama"))
    for layer in range(3):
        module.get_submodule(f"model.layers.{layer}.mlp.gate_proj").weight[:20] = 0  # silu(0) = 0
    model = load_model(module)
    silent = Neurons([(layer, neuron) for layer in range(3) for neuron in range(20)], when="all")
    corpus = prompts(model=model)
    assert rows(generate(model, corpus, max_new_tokens=15, interventions=silent)) == rows(
        generate(model, corpus, max_new_tokens=15)
    )


# --- sampling ------------------------------------------------------------------------------------------------------


def test_sampled_texts_do_not_depend_on_the_batch() -> None:
    corpus = prompts(9)
    expected = written(corpus, temperature=1.0, seed=5)
    assert len({tuple(row) for row in expected}) == 9
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"view": "transformer_lens", "batch_size": 2}):
        assert written(corpus, temperature=1.0, seed=5, **options) == expected
    alone = [written(corpus.select([0, *range(1, n + 1)]), temperature=1.0, seed=5) for n in (1, 5)]
    assert [len(texts) for texts in alone] == [2, 6]
    assert all(texts == expected[: len(texts)] for texts in alone)
    assert written(corpus, temperature=1.0, seed=6) != expected


def test_a_temperature_near_zero_and_top_one_are_greedy() -> None:
    greedy = written(prompts())
    assert written(prompts(), temperature=1e-4, seed=1) == greedy
    assert written(prompts(), temperature=1.0, top_k=1, seed=1) == greedy
    assert written(prompts(), temperature=1.0, seed=1) != greedy


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, 12), (2.0, 5)])
def test_first_tokens_are_distributed_as_the_model_says(temperature: float, top_k: int | None) -> None:
    """One prompt continued by one token 4000 times; chi-square of counts against probabilities."""
    n, prompt = 4000, random_tokens(1, 5)[0].tolist()
    corpus = Corpus.from_tokens([prompt] * n, model=llama())
    texts = generate(
        llama(), corpus, max_new_tokens=1, decoding=Decoding(None, temperature, top_k, seed=3), batch_size=1000
    )
    counts = torch.bincount(texts.tokens[:, -1], minlength=D_VOCAB)
    logits = tiny("llama")(torch.tensor([prompt])).logits[0, -1] / temperature
    kept = logits.topk(top_k or D_VOCAB).indices
    assert counts.sum() == counts[kept].sum() == n, "only the top_k most probable tokens"
    expected = logits[kept].double().softmax(-1) * n
    common = expected >= 5
    observed = torch.cat([counts[kept][common].double(), counts[kept][~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    used = expected > 0
    assert stats.chisquare(observed[used].numpy(), expected[used].numpy()).pvalue > 0.001


def test_choosing_is_the_inverse_of_the_cumulative_distribution() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    uniforms = [0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-53]
    chosen = [choose_tokens(logits, torch.tensor([u], dtype=torch.float64), 1.0, None)[0].item() for u in uniforms]
    assert chosen == [1, 1, 2, 2, 0, 0]
    assert choose_tokens(logits, torch.tensor([0.99]), 1.0, 2)[0].item() == 2
    assert choose_tokens(logits, torch.tensor([0.99]), 0.0, None)[0].item() == 1


def test_what_is_impossible_is_never_chosen_not_even_by_the_last_number_below_one() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).expand(2, -1)
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    chosen, by = choose_tokens(logits, uniforms, 1.0, None)
    assert chosen.tolist() == [2, 0] and by.tolist() == [1.0, 0.0]


# --- what ends a text ----------------------------------------------------------------------------------------------


def reasons(corpus: Corpus) -> list[str]:
    return corpus.frame["stop_reason"].tolist()


def test_an_eos_ends_a_text_and_stays_in_it() -> None:
    endless = written(prompts(8), max_new_tokens=30)
    eos = endless[0][10]
    module = copy.deepcopy(tiny("llama"))
    module.config.eos_token_id = module.generation_config.eos_token_id = eos
    model = load_model(module)
    texts = generate(model, prompts(8, model=model), max_new_tokens=30)
    ends = [row.index(eos, 6) + 1 if eos in row[6:] else 36 for row in endless]
    assert rows(texts) == [row[:end] for row, end in zip(endless, ends, strict=True)]
    assert reasons(texts) == ["eos" if row[-1] == eos else "length" for row in rows(texts)]
    assert len(texts.row(0)) <= 11
    assert rows(generate(model, prompts(8, model=model), max_new_tokens=30, decoding=Decoding(None))) == endless


@pytest.mark.parametrize("preset", ["hiraoka2025", "mechrep"])
def test_a_detector_ends_a_text_with_the_token_that_makes_it_fire(preset: str) -> None:
    """Prompts already hold two copies of a block; a tied, shallow model goes on copying or leaves."""
    model = looping()
    blocks = random_tokens(6, 5, seed=2).tolist()
    corpus = Corpus.from_tokens([block * (2 + number % 3) for number, block in enumerate(blocks)], model=model)
    endless = rows(generate(model, corpus, max_new_tokens=80, decoding=Decoding(None)))
    texts = generate(model, corpus, max_new_tokens=80, decoding=Decoding(preset))
    assert "stopped" in reasons(texts)
    for number, row in enumerate(rows(texts)):
        assert row == endless[number][: len(row)]
        begun = len(corpus.row(number)) + 1
        fired = [length for length in range(begun, len(endless[number]) + 1) if fires(preset, endless[number][:length])]
        assert (reasons(texts)[number], len(row)) == (
            ("stopped", fired[0]) if fired else ("length", len(endless[number]))
        )


def fires(preset: str, ids: list[int]) -> bool:
    if preset == "hiraoka2025":
        return detect_cycle(ids, preset) is not None
    watch = watch_for(preset)()
    return [watch.push(token) for token in ids][-1]


@pytest.mark.parametrize("presets", [["hiraoka2025"], ["mechrep", "hiraoka2025", "eos"]])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_watched_in_rows_or_text_by_text_is_the_same(presets: list[str], batch_size: int) -> None:
    """A function of the text is asked text by text; prompts are fed token by token, and loop before they end."""
    model = looping()
    blocks = random_tokens(6, 5, seed=2).tolist()
    texts = [block * (2 + 3 * (number % 3)) for number, block in enumerate(blocks)]
    corpus = Corpus.from_tokens(texts, model=model)
    settings: dict[str, Any] = {"max_new_tokens": 50, "batch_size": batch_size, "starts": [0, 3, 30, 0, 8, 12]}
    settings["interventions"] = Neurons([(0, 3), (1, 5)], "zero")
    names = [name for name in presets if name != "eos"]

    def asked(ids: list[int]) -> bool:
        return any(fires(name, ids) for name in names)

    rules = [asked, "eos"] if "eos" in presets else [asked]
    at_once, alone = (generate(model, corpus, stop_when=stop_when, **settings) for stop_when in (presets, rules))
    assert rows(at_once) == rows(alone)
    assert reasons(at_once) == reasons(alone)
    assert "stopped" in reasons(alone)


def test_functions_and_several_rules_end_a_text_at_the_first_that_holds() -> None:
    endless, seen = written(prompts(), max_new_tokens=20), []
    token = endless[0][12]

    def has_token(ids: list[int]) -> bool:
        seen.append(tuple(ids))
        return ids[-1] == token

    texts = generate(
        llama(),
        prompts(),
        max_new_tokens=20,
        decoding=Decoding(["eos", "mechrep", has_token, lambda ids: len(ids) == 19]),
    )
    for row, whole, reason in zip(rows(texts), endless, reasons(texts), strict=True):
        assert row == whole[: len(row)]
        if reason == "stopped":
            assert token in row[6:] or len(row) == 19 or fires("mechrep", row)
            assert token not in row[6:-1]
    assert reasons(texts)[0] == "stopped"
    assert all(len(row) <= 19 for row in rows(texts))
    assert {row for row in seen if row[:6] == tuple(endless[0][:6])} <= {tuple(endless[0][:n]) for n in range(7, 20)}


def test_suppressed_ids_are_never_written() -> None:
    plain = written(prompts(), max_new_tokens=20)
    forbidden = sorted({token for row in plain for token in row[6:]})[:8]
    expected = [obvious_text("llama", row[:6], 20, forbidden=forbidden) for row in plain]
    for view in ("plain", "transformer_lens"):
        assert written(prompts(), max_new_tokens=20, suppress=forbidden, view=view) == expected
    sampled = written(prompts(), max_new_tokens=20, suppress=forbidden, temperature=3.0)
    assert not {token for row in sampled for token in row[6:]} & set(forbidden)


# --- the corpus that comes back ------------------------------------------------------------------------------------


def test_the_new_corpus_keeps_what_is_still_true() -> None:
    frame = pd.DataFrame(
        {"id": ["a", "b"], "source": "mine", "condition": ["x", "y"], "onset": [2, 3], "colour": ["r", "g"]}
    )
    given = Corpus.from_tokens([[0, 5, 6, 7], [0, 8, 9, 10, 11]], model=llama(), frame=frame, bos_policy="prepended")
    texts = generate(llama(), given, max_new_tokens=5, decoding=Decoding(None))
    assert texts.frame[["id", "condition", "colour"]].equals(given.frame[["id", "condition", "colour"]])
    assert texts.frame["prompt_length"].tolist() == [4, 5]
    assert texts.frame["onset"].isna().all(), "the onset of another text"
    assert reasons(texts) == ["length", "length"]
    assert (texts.bos_policy, texts.d_vocab) == ("prepended", D_VOCAB)
    assert [row[:length] for row, length in zip(rows(texts), (4, 5), strict=True)] == rows(given)


def test_a_processed_model_writes_on_the_view_that_was_processed() -> None:
    model = load_model(copy.deepcopy(tiny("llama")))
    before = rows(generate(model, prompts(), max_new_tokens=8))
    model.enable_compatibility_mode()
    assert rows(generate(model, prompts(), max_new_tokens=8)) == before
    with pytest.raises(InputError, match="view='plain'"):
        generate(model, prompts(), max_new_tokens=8, decoding=Decoding(view="plain"))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": N_CTX - 5}, f"at most {N_CTX} positions"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0, "temperature": 1.0}, "top_k=0"),
        ({"top_k": 5}, "top_k=5 with temperature=0"),
        ({"starts": [0, 0, 0, 999]}, "starts: 999"),
        ({"stop_when": "mahaut2025"}, "preset='mahaut2025'"),
        ({"stop_when": ["eos", "no-such"]}, "preset='no-such'"),
        ({"interventions": [None, None]}, "2 interventions for 4 texts"),
        ({"starts": [0]}, "1 starts for 4 texts"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"suppress": [4, D_VOCAB]}, f"suppress=.*{D_VOCAB}"),
        ({"suppress": [-1]}, "suppress=.*-1"),
        ({"suppress": range(D_VOCAB)}, "suppress="),
    ],
)
def test_what_cannot_be_generated_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        generate(llama(), prompts(), **sorted_out({"max_new_tokens": 4, **options}))


def test_an_unknown_view_is_refused() -> None:
    with pytest.raises(InputError, match="view='fast'"):
        as_users_call(Decoding)(view="fast")


def test_the_whole_context_can_be_used() -> None:
    texts = generate(llama(), prompts(2), max_new_tokens=N_CTX - 6, decoding=Decoding(None))
    assert texts.lengths.tolist() == [N_CTX, N_CTX]


def test_a_corpus_of_another_vocabulary_is_refused() -> None:
    foreign = Corpus.from_tokens([[5, 6, 7]], model=load_model("mechrep-tiny"))
    with pytest.raises(InputError, match="vocabulary of"):
        generate(llama(), foreign, max_new_tokens=2)
    with pytest.raises(InputError, match=f"{D_VOCAB + 3}"):
        generate(llama(), Corpus.from_tokens([[1, D_VOCAB + 3]]), max_new_tokens=2)


def test_requests_without_a_prompt_are_refused() -> None:
    for decoder in (decode, decode_reference):
        with pytest.raises(InputError, match="prompt 1, which is empty"):
            decoder(llama(), [Request((4,), 2), Request((), 2)], Decoding())
        with pytest.raises(InputError, match="no prompts"):
            decoder(llama(), [], Decoding())
        with pytest.raises(InputError, match=f"outside 0..{D_VOCAB - 1}"):
            decoder(llama(), [Request((4, D_VOCAB), 2)], Decoding())


def test_random_numbers_belong_to_the_text() -> None:
    def uniforms(steps: int, text: int, seed: int = 4) -> np.ndarray:
        return Decoding(seed=seed).uniforms(Request((4,), steps, text=text))

    assert np.array_equal(uniforms(9, 2)[:5], uniforms(5, 2))
    assert not np.array_equal(uniforms(9, 2), uniforms(9, 3))
    assert not np.array_equal(uniforms(9, 2), uniforms(9, 2, seed=5))
