"""``verify_model``: which model is recognised, what is measured beside each value, and when the two match."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

import mechrep
from mechrep import cli
from mechrep.measures.head_scores import score_heads
from mechrep.studies import verify as module
from mechrep.studies.verify import MATCH, MISMATCH, NOT_MEASURED, published, recognise, verify_model

SIZES = {"n_layers": 4, "n_heads": 2, "d_model": 128}


def value(measure: str, expected: Any, within: float | None = None, **at: Any) -> dict[str, Any]:
    more = {} if within is None else {"within": within}
    return {"model": "known", "measure": measure, "at": at, "expected": expected, "source": "made up", **more}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Values about the embedded model, to be filled in."""
    made: dict[str, Any] = {
        "models": {"known": {"names": ["mechrep-tiny"], "sizes": SIZES, "hello_world": None}},
        "values": [],
    }
    monkeypatch.setattr(module, "_reference", lambda: made)
    return made


def verdicts(model: Any) -> list[str]:
    return [row["verdict"] for row in verify_model(model).rows]


def test_every_value_that_is_kept_can_be_measured_and_names_its_source() -> None:
    kept = module._reference()
    for one in kept["values"]:
        assert one["measure"] in module._MEASURES and one["model"] in kept["models"]
        assert "arXiv" in one["source"] or "mechrep" in one["source"]
        compare = module._MEASURES[one["measure"]][2]
        assert ("within" in one) == (compare in ("absolute", "relative"))
    known = mechrep.known_sinks()
    unnamed = set(known["model"]) - set(kept["models"])
    assert not unnamed, "published sinks of models that are not recognised"
    layers = [one for one in published("Llama-2-7b") if one["measure"] == "sink_layer"]
    assert {one["expected"] for one in layers} == {1} and len(layers) == 2, "one for each source"


def test_a_model_is_recognised_by_its_name_or_by_sizes_and_tokenizer(reference: dict[str, Any]) -> None:
    model = mechrep.load_model("mechrep-tiny")
    assert recognise(model) == (["known"], "name")
    model.name = "./some/folder"
    assert recognise(model) == ([], "")
    reference["models"]["known"]["hello_world"] = model.encode("Hello world", prepend_bos=False)
    assert recognise(model) == (["known"], "sizes and tokenizer")
    reference["models"]["known"]["sizes"] = SIZES | {"n_layers": 5}
    model.name = "mechrep-tiny"
    assert recognise(model) == ([], ""), "a name alone is not enough"


def test_values_match_within_their_tolerance(reference: dict[str, Any]) -> None:
    model = mechrep.load_model("mechrep-tiny")
    heads = score_heads(model, sequences=module._SEQUENCES)
    layer, head = heads.ranking("induction")[0]
    best, clear = float(heads.induction[layer, head]), sorted(list(one) for one in heads.clear("induction"))
    reference["values"] += [
        value("bos_id", model.bos_id),
        value("bos_id", 7),
        value("head_score", best + 0.04, 0.05, score="induction", layer=layer, head=head),
        value("head_score", best + 0.06, 0.05, score="induction", layer=layer, head=head),
        value("clear_heads", clear, score="induction"),
        value("clear_heads", clear[1:], score="induction"),
        value("heads", clear[1:], score="induction"),
        value("heads", [[0, 0], *clear], score="previous_token"),
    ]
    assert verdicts(model) == [MATCH, MISMATCH] * 4


def test_dimensions_and_norms_of_the_first_position_are_those_of_plain_hooks(reference: dict[str, Any]) -> None:
    model = mechrep.load_model("mechrep-tiny")
    rows = []
    measured = module._Measured(model, 0)
    windows = measured.windows(True)
    ids = torch.stack([windows.tokens[text] for text in range(len(windows))])
    handles = [
        layer.register_forward_hook(lambda _m, _a, out: rows.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.handles.layers
    ]
    with torch.no_grad():
        model.plain(ids)
    for handle in handles:
        handle.remove()
    stream = torch.stack(rows)  # [layer text pos d_model]
    first = stream[:, 0, 0]
    sizes = first.abs()
    layer = int(sizes.amax(1).argmax())
    norms = stream.double().norm(dim=-1)
    ratio = float((norms[:, :, 0].mean(1) / norms[:, :, 1:].mean((1, 2))).max())
    reference["values"] += [
        value("massive_dimensions", sorted(sizes[layer].topk(3).indices.tolist())),
        value("massive_value", float(sizes[2, 5]), 1e-4, layer=2, dimension=5),
        value("largest_ratio", ratio, 1e-4, bos=True),
        value("largest_ratio", ratio * 1.01, 1e-3, bos=True),
    ]
    assert verdicts(model) == [MATCH, MATCH, MATCH, MISMATCH]


def test_what_a_model_lacks_is_not_measured_and_the_rest_is(reference: dict[str, Any]) -> None:
    model = mechrep.load_model("mechrep-tiny")
    bare = mechrep.load_model(model.plain)
    bare.name = "mechrep-tiny"
    reference["values"] += [value("largest_ratio", 1.0, 0.1, bos=True), value("bos_id", bare.bos_id)]
    result = verify_model(bare)
    assert [row["verdict"] for row in result.rows] == [NOT_MEASURED, MATCH]
    assert "tokenizer" in result.rows[0]["reason"] and result.rows[0]["measured"] == ""


def test_the_command_prints_rows_and_ends_with_zero_also_with_mismatches(
    reference: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    reference["values"] += [value("bos_id", 7), value("bos_id", 0)]
    assert cli.main(["verify", "mechrep-tiny", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "mismatch" in said and "made up" in said
    assert cli.main(["verify", "mechrep-tiny", "--json"]) == 0
    assert [row["verdict"] for row in json.loads(capsys.readouterr().out)["values"]] == [MISMATCH, MATCH]
    kept = module.Verification.load(tmp_path / "verify")
    assert kept.count(MISMATCH) == 1 and dataclasses.replace(kept, rows=[]).section().variant == "unknown"


def test_an_unknown_model_is_said_to_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "mechrep-tiny"]) == 0
    assert "No model" in capsys.readouterr().out
