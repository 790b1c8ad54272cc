"""Kinds of text: who loops, who copies, what is shown, and that nothing is written twice."""

from __future__ import annotations

import functools

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechrep
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation import written as written_module
from mechrep.generation.text_kinds import (
    clusters_of,
    control_texts,
    copy_run,
    induced_texts,
    joined_texts,
    natural_texts,
    text_flow,
)
from mechrep.generation.written import cycle_of, write_texts
from mechrep.interventions import Heads
from mechrep.text.corpus import Corpus
from mechrep.text.cycles import smallest_tail_block, tail_cycle
from tests.planted.two_mechanisms import LOOP, prompts, two_mechanisms
from tests.planted.workbench import BOS, EOS, N_CTX
from tests.studies import loops

NEW = 60


@functools.cache
def listed() -> Corpus:
    return prompts(two_mechanisms().model, 4)


def by_hand(ids: list[int], new: int) -> list[int]:
    """Greedy text of the planted model, one token at a time, the whole text each time."""
    model = two_mechanisms().model
    ids = list(ids)
    for _ in range(new):
        with torch.no_grad():
            ids.append(int(model.tl(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids


# --- who copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [0, 4, 5, 13])
def test_copy_run_counts_what_goes_on_with_the_copy(m: int) -> None:
    copy = [7, 8, 9, 10, 11]
    right = (copy * 4)[:m]
    assert copy_run([*right, 3, *copy], copy) == m
    assert copy_run(right, copy) == m


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 3), max_size=20))
def test_copy_run_is_the_longest_common_prefix(copy: list[int], continuation: list[int]) -> None:
    run = copy_run(continuation, copy)
    cyclic = copy * 20
    assert continuation[:run] == cyclic[:run]
    assert run == len(continuation) or continuation[run] != cyclic[run]


def test_the_planted_circuit_copies_and_without_its_head_it_does_not() -> None:
    planted = two_mechanisms()
    flow = text_flow(planted.model, listed(), max_new_tokens=NEW)
    frame = flow.frame
    assert frame["loops_naturally"].tolist() == [True] * 4 + [False] * 4
    assert (frame["loops_naturally"] ^ frame["eligible_for_icl"]).all()
    shown = frame[frame["eligible_for_icl"]]
    assert shown["copies_in_icl"].all() and shown["loops_in_icl"].all() and (shown["copy_share"] >= 1).all()
    assert frame.loc[frame["loops_naturally"], ["copies_in_icl", "loops_in_icl", "copy_run"]].isna().all(axis=None)
    induced = induced_texts(planted.model, listed(), max_new_tokens=NEW)
    for head in planted.heads:
        rows = [induced.row(i)[:end] for i, end in enumerate(induced.frame["prompt_length"])]
        written = mechrep.generate(
            planted.model, Corpus.from_tokens(rows, model=planted.model), max_new_tokens=12,
            interventions=Heads([head], "zero", "all"), progress=False,
        )  # fmt: skip
        runs = [copy_run(written.row(i)[len(row) :], row[-10:]) for i, row in enumerate(rows)]
        assert max(runs) < 10


def test_every_flag_is_what_greedy_decoding_by_hand_says() -> None:
    model, frame = two_mechanisms().model, text_flow(two_mechanisms().model, listed(), max_new_tokens=NEW).frame
    for i in range(len(listed())):
        prompt = listed().row(i)
        written = by_hand(prompt, NEW)[len(prompt) :]
        assert frame["loops_naturally"][i] == (tail_cycle([t for t in written if t != EOS]) is not None)
        if frame["eligible_for_icl"][i]:
            shown = [BOS, *prompt[1:] * 2]
            after = by_hand(shown, 20)[len(shown) :]
            assert bool(frame["copies_in_icl"][i]) == (after[:10] == prompt[1:])
    assert model.bos_id == BOS


# --- what the builders cut -----------------------------------------------------------------------------------------


def test_rows_are_made_of_the_prompts_and_their_continuations() -> None:
    model = two_mechanisms().model
    natural = natural_texts(model, listed(), max_new_tokens=NEW)
    texts = write_texts(model, listed(), max_new_tokens=NEW)
    for i in range(len(natural)):
        facts, row = natural.frame.iloc[i], natural.row(i)
        prompt = listed().row(listed().frame["id"].tolist().index(facts["prompt"]))
        assert row[: len(prompt)] == prompt and sorted(row[facts["start"] : facts["onset"]]) == sorted(LOOP)
        assert row[: facts["onset"]] == by_hand(prompt, facts["onset"] - len(prompt))
        assert row[facts["onset"] :] == row[facts["start"] : facts["onset"]]
        assert facts["prompt_length"] == facts["onset"] and facts["shown"] == 1
    early = natural_texts(model, listed(), cut="start", max_new_tokens=NEW)
    assert (early.frame["prompt_length"] == early.frame["start"]).all() and set(early.frame["shown"]) == {0}
    induced = induced_texts(model, listed(), 3, max_new_tokens=NEW)
    cycles = induced_texts(model, listed(), 2, "cycle", max_new_tokens=NEW)
    assert induced.row(0) == [BOS, *listed().row(4)[1:] * 4] and induced.frame["prompt_length"][0] == 31
    assert cycles.row(0) == [BOS, *natural.row(0)[-4:] * 3]
    assert set(induced.frame["builder"]) == {"icl_from_nonrepeating(3)"} and induced.frame["seam"].all()
    assert set(cycles.frame["builder"]) == {"icl_from_cycle(2)"} and not cycles.frame["seam"].any()
    control = control_texts(model, listed(), max_new_tokens=NEW)
    assert control.row(0) == by_hand(listed().row(4), NEW)[:-1] and control.frame["start"].isna().all()
    assert set(natural.frame["prompt"]) == set(cycles.frame["prompt"]) == set(listed().frame["id"][:4])
    assert set(induced.frame["prompt"]) == set(control.frame["prompt"]) == set(listed().frame["id"][4:])
    assert natural.frame.attrs["new_tokens"] == int((texts.written.lengths - listed().lengths).sum())


def test_nothing_is_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = two_mechanisms().model, prompts(two_mechanisms().model, 2, length=7)
    before = text_flow(model, other, max_new_tokens=NEW)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a text was written again")

    monkeypatch.setattr(written_module, "generate", fail)
    for build in (natural_texts, induced_texts, control_texts):
        build(model, other, max_new_tokens=NEW)
    natural_texts(model, other, max_new_tokens=NEW, cut="start")
    induced_texts(model, other, 3, "cycle", max_new_tokens=NEW)
    assert text_flow(model, other, max_new_tokens=NEW) is before
    with pytest.raises(AssertionError, match="written again"):
        natural_texts(model, other, max_new_tokens=NEW + 1)


def test_ids_of_a_fixed_list_are_the_same_for_two_models() -> None:
    """Two checkpoints of one shape: prompts, and texts that are shown, are the same ids."""
    one, other = two_mechanisms().model, two_mechanisms("llama").model
    first, second = (write_texts(model, listed(), max_new_tokens=NEW) for model in (one, other))
    assert first.prompts.fingerprint() == second.prompts.fingerprint() and first.model != second.model
    shown = [induced_texts(model, listed(), max_new_tokens=NEW) for model in (one, other)]
    assert [shown[0].row(i) for i in range(4)] == [shown[1].row(i) for i in range(4)]


# --- ceiling, padding, the end of a text ---------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["start", "onset"])
def test_the_natural_baseline_writes_its_loop_again(cut: str) -> None:
    model = loops.model("llama")
    corpus = loops.looping("llama")
    given = Corpus.from_tokens([corpus.row(i)[:8] for i in range(len(corpus))], model=model)
    natural = natural_texts(model, given, max_new_tokens=60, cut=cut)  # pyright: ignore[reportArgumentType]
    rows = [natural.row(i)[:end] for i, end in enumerate(natural.frame["prompt_length"])]
    again = mechrep.generate(model, Corpus.from_tokens(rows, model=model), max_new_tokens=8, progress=False)
    for i, row in enumerate(rows):
        start, onset = (int(natural.frame[name][i]) for name in ("start", "onset"))
        cycle = natural.row(i)[start:onset]
        assert copy_run(again.row(i)[len(row) :], cycle) == 8


def test_continuations_do_not_depend_on_the_company_of_a_text() -> None:
    """Texts of unequal length in one batch: each continuation is that of the text alone, cut at its own length."""
    model = two_mechanisms().model
    rows = [listed().row(0), [BOS, 5, *listed().row(1)], [*listed().row(6)[:4], 58]]
    together = write_texts(model, Corpus.from_tokens(rows, model=model), max_new_tokens=20)
    for i, row in enumerate(rows):
        alone = write_texts(model, Corpus.from_tokens([row], model=model), max_new_tokens=20)
        mine = alone.continuation(0)
        assert together.continuation(i) == mine == by_hand(row, 20)[len(row) :][: len(mine)]


def test_padding_with_eos_is_a_loop_in_the_released_evaluation_only() -> None:
    model = two_mechanisms().model
    ids = [BOS, 5, 6, 7, 8, 9, EOS]
    for preset in ("mechrep", "mahaut2025", "mahaut2025_v1"):
        assert cycle_of(model, ids, 3, preset, padded_to=12) is None
    released = cycle_of(model, ids, 3, "mahaut2025_released", padded_to=12)
    assert released is not None and set(released.tokens) == {EOS}
    assert smallest_tail_block([7, 8, 9] + [EOS] * 9) is not None
    texts = write_texts(model, listed(), preset="mahaut2025_released", max_new_tokens=NEW)
    assert texts.loops.tolist() == [True] * 4 + [False] * 4  # which texts are shown does not depend on the padding


def test_the_published_preset_writes_to_the_end_and_cuts_at_its_own_first_copy() -> None:
    model = two_mechanisms().model
    texts = write_texts(model, listed(), preset="mahaut2025", max_new_tokens=NEW)
    natural = natural_texts(model, listed(), preset="mahaut2025", max_new_tokens=NEW)
    for i in range(4):
        written = texts.continuation(i)
        expected = smallest_tail_block(written)
        assert len(written) == NEW and expected is not None
        assert natural.frame["prompt_length"][i] == natural.frame["start"][i] == len(listed().row(i)) + expected.start
    older = induced_texts(model, listed(), preset="mahaut2025_v1", max_new_tokens=NEW)
    assert set(older.frame["builder"]) == {"icl_from_cycle(2)"}


# --- joined --------------------------------------------------------------------------------------------------------


def test_joined_texts_write_out_every_copy_that_fits() -> None:
    model = two_mechanisms().model
    natural = natural_texts(model, listed(), max_new_tokens=NEW)
    induced = induced_texts(model, listed(), max_new_tokens=NEW)
    joined = joined_texts(natural, induced, n_ctx=N_CTX, copies=3)
    assert joined.row(0)[-16:] == natural.row(0)[-4:] * 4 and joined.row(4)[1:] == induced.row(0)[1:11] * 4
    short = joined_texts(induced, n_ctx=35, copies=3)
    assert short.lengths.tolist() == [31] * 4
    with pytest.raises(InputError, match="two copies"):
        joined_texts(induced, n_ctx=20, copies=3)
    joined.check_model(model)
    natural_families = {joined.frame["family"][i] for i in range(4)}
    assert len(natural_families) == 1, "one loop, rotated"
    assert len({*clusters_of(joined.frame)}) == 1 + 4 and clusters_of(natural.frame) == natural.frame["prompt"].tolist()


# --- bad input -----------------------------------------------------------------------------------------------------


def test_errors_say_who_loops_and_how_many_were_tried() -> None:
    model = two_mechanisms().model
    free, looping = prompts(model, 3, looping=False), prompts(model, 3, free=False)
    with pytest.raises(NothingFoundError, match=r"3 prompts .* none of which loops"):
        natural_texts(model, free, max_new_tokens=NEW)
    with pytest.raises(NothingFoundError, match=r"3 prompts .* all of which loop"):
        induced_texts(model, looping, max_new_tokens=NEW)
    with pytest.raises(NothingFoundError, match="none of which loops"):
        induced_texts(model, free, 2, "cycle", max_new_tokens=NEW)
    with pytest.raises(NothingFoundError, match=r"3 prompts .* 3 of which loop"):
        control_texts(model, looping, max_new_tokens=NEW)
    flow = text_flow(model, looping, max_new_tokens=NEW)
    assert flow.shown is None and flow.counts().set_index("flag")["of"].to_dict()["copies_in_icl"] == 0


def test_prompts_longer_than_the_context_are_named() -> None:
    model = two_mechanisms().model
    long = Corpus.from_tokens(
        [[BOS, *[5, 6] * ((N_CTX - 6) // 2)]], model=model, frame=pd.DataFrame({"id": ["too long"]})
    )
    for build in (natural_texts, induced_texts, control_texts):
        with pytest.raises(InputError, match=r"'too long' of 315 tokens"):
            build(model, long)
    with pytest.raises(InputError, match="max_new_tokens=0"):
        natural_texts(model, listed(), max_new_tokens=0)
    free = prompts(model, 1, looping=False)
    with pytest.raises(InputError, match="40 times and once more"):
        induced_texts(model, free, 40, max_new_tokens=NEW)
    with pytest.raises(InputError, match="copies=0"):
        induced_texts(model, free, 0, max_new_tokens=NEW)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="one of"):
        natural_texts(two_mechanisms().model, listed(), preset="icl")
