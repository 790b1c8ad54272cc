"""The study of token information: controls as long as the loops and read at the same places, nothing done twice."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mechrep
from mechrep.errors import InputError
from mechrep.measures.token_information import TokenInformation
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.studies.token_information_study import (
    FREE,
    HELD_OUT,
    LOOPS,
    InformationStudy,
    matched_texts,
    run_information_study,
)
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text

PERIODS, FREE_LENGTHS = (12, 9, 15), (40, 52)
KNOWN = tiny.held_out_text()[:4000]  # little text is read fast


@functools.cache
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


@functools.cache
def texts() -> Corpus:
    """Three loops, of stretches of held-out text in five copies, and two other texts, one of them too short for all."""
    windows = windows_of_text(model(), KNOWN, length=64, limit=8)
    rows, facts = [], []
    for i, period in enumerate(PERIODS):
        row = windows.row(i)
        rows.append([*row[:6], *row[6 : 6 + period] * 5])
        facts.append((f"loop-{i}", "looping", 3, 6, 6 + period, period))
    for i, length in enumerate(FREE_LENGTHS):
        rows.append(windows.row(4 + i)[:length])
        facts.append((f"free-{i}", "loop_free", 3, None, None, None))
    frame = pd.DataFrame(facts, columns=["id", "condition", "prompt_length", "start", "onset", "period"])
    return Corpus.from_tokens(rows, model=model(), frame=frame.astype(dict.fromkeys(frame.columns[2:], "Int64")))


def run(store: Path | None = None, **options: Any) -> InformationStudy:
    settings: dict[str, Any] = {"corpus": texts(), "ways": ["mask"], "held_out_text": KNOWN}
    return run_information_study(model(), run=Run(store=store, effort="quick"), **(settings | options))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("information")


@pytest.fixture(scope="module")
def study(small_effort: None, store: Path) -> InformationStudy:
    return run(store)


def test_controls_are_as_long_as_the_loops_and_are_read_at_the_same_places(study: InformationStudy) -> None:
    frame = study.corpus.frame.assign(length=study.corpus.lengths.numpy())
    frame["loop"] = [name.rsplit("/", 1)[0] for name in frame["id"]]
    loops = frame[frame["text_kind"] == LOOPS].set_index("loop")
    assert loops["length"].tolist() == [6 + 4 * period for period in PERIODS], "four copies of five"
    for kind, served in ((FREE, ["loop-1"]), (HELD_OUT, list(loops.index))):
        controls = frame[frame["text_kind"] == kind].set_index("loop")
        assert list(controls.index) == served
        for name in served:
            assert controls.loc[name, "length"] == loops.loc[name, "length"]
            assert controls.loc[name, "prompt_length"] == loops.loc[name, "onset"]
        assert controls["onset"].isna().all()
    queries = study.attention.queries + study.attention.dropped
    expected = [3 * period for period in PERIODS]
    assert queries[: len(PERIODS), 0, 0].tolist() == expected
    held_out = [i for i, name in enumerate(study.attention.text_kinds) if name == HELD_OUT]
    assert queries[held_out, 0, 0].tolist() == expected, "as many queries as the loop has"
    assert "1 of 3 looping texts have a control that is as long" in study.left_out[FREE]


def test_the_claims_are_those_of_the_sums(study: InformationStudy) -> None:
    low = list(study.attention.groups).index("low_surprisal")
    bias = study.attention.bias(LOOPS, matched=True)[..., low].nanmean()
    claims = study.claims().set_index("claim")
    assert claims.loc["attention", "effect"] == pytest.approx(float(bias.log2()), abs=0.2)  # mean over heads, then log
    assert set(claims.index) == {"attention", f"attention_{FREE}", f"attention_{HELD_OUT}", "mask"}
    assert set(claims["verdict"]) == {"too few"} and study.n(LOOPS) == len(PERIODS), "three texts decide nothing"
    section = study.section()
    assert set(section.figures) == {"groups", "heads", "mask"} and section.fields["loops"] == len(PERIODS)


def test_exchanged_labels_are_a_null(study: InformationStudy) -> None:
    value, draws = study.attention.difference(LOOPS, HELD_OUT, draws=400)
    table = study.attention.compare(LOOPS, HELD_OUT, matched=True).set_index("group")
    assert value == pytest.approx(float(table.loc["low_surprisal", "log2_ratio"]), rel=1e-5)
    assert any(draw == pytest.approx(-value, rel=1e-4) for draw in draws), "all labels exchanged turn the sign"
    assert any(draw == pytest.approx(value, rel=1e-4) for draw in draws)
    _, exchanged = study.attention.preference(LOOPS, draws=200)
    assert min(exchanged) < 0 < max(exchanged)


def test_the_second_run_reads_what_the_first_one_kept(
    small_effort: None, study: InformationStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(TokenInformation, "observe", never)
    monkeypatch.setattr("mechrep.ablation.masking._one_text", never)
    again = run(store)
    assert torch.equal(again.attention.attended, study.attention.attended)
    assert torch.equal(again.masked["mask"].values, study.masked["mask"].values)


def test_what_cannot_be_tried_is_left_out_with_its_reason(small_effort: None) -> None:
    same = [[0, *[7] * 20], [0, *[9] * 20]]
    frame = pd.DataFrame(
        {"id": ["a", "b"], "condition": "looping", "start": 1, "onset": 2, "period": 1, "prompt_length": 1}
    )
    alone = run(corpus=Corpus.from_tokens(same, model=model(), frame=frame))
    assert alone.masked == {} and "none with a low-information token" in alone.left_out["mask"]
    assert alone.left_out[FREE] == "0 of 2 looping texts have a control that is as long" and FREE not in alone.controls
    with pytest.raises(InputError, match="texts without a loop"):
        matched_texts(model(), texts().where(condition="loop_free"), 4, KNOWN, 0, {})
