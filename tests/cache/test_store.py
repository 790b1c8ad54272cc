"""The store: finished results come back without a forward pass, stopped runs go on, nothing stale, nothing half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from mechrep.cache import CorpusCache
from mechrep.errors import StoreError
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.store import Store
from mechrep.text.corpus import Corpus
from tests.analyzers.looping_texts import as_corpus, random_loops
from tests.cache.counting import MeanOf, MeanResult, counted_layers, model, texts_of
from tests.tiny_models import fresh

LENGTHS = (5, 9, 14, 9, 3, 11, 8)
FAMILY = "llama_gqa"


def cache_with(folder: Path | None, *, batch_size: int = 2, corpus: Corpus | None = None) -> CorpusCache:
    """A cache whose store writes after every batch."""
    cache = CorpusCache(model(FAMILY), corpus or texts_of(LENGTHS), batch_size=batch_size, store=folder)
    if cache.store is not None:
        cache.store.seconds = 0
    return cache


def mean_of(cache: CorpusCache, analyzer: MeanOf) -> MeanResult:
    result = cache.run(analyzer)
    assert isinstance(result, MeanResult)
    return result


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "partial" in path.name or path.suffix == ".part"]


def stopped(folder: Path, at: int = 2) -> MeanOf:
    analyzer = MeanOf(Site.GATE_ACT, dies_at=at)
    with pytest.raises(KeyboardInterrupt):
        cache_with(folder).run(analyzer)
    return analyzer


def test_a_finished_result_is_read_back_without_a_forward_pass(tmp_path: Path) -> None:
    corpus = as_corpus(random_loops(6), model(FAMILY))
    first = cache_with(tmp_path, corpus=corpus).run(RepetitionNeurons(r=5))
    with counted_layers(FAMILY) as ran:
        again = cache_with(tmp_path, corpus=corpus, batch_size=5).run(RepetitionNeurons(r=5))
    assert ran == []
    assert isinstance(first, RepetitionNeuronResult) and isinstance(again, RepetitionNeuronResult)
    assert torch.equal(first.t, again.t) and again.texts == first.texts and again.provenance == first.provenance
    assert list((tmp_path / "states").iterdir()) == [] == leftovers(tmp_path)


@pytest.mark.parametrize("batch_size", [2, 1, 3, 100])
def test_a_stopped_run_goes_on_with_the_missing_texts_only(tmp_path: Path, batch_size: int) -> None:
    before = stopped(tmp_path).batches_seen
    resumed = MeanOf(Site.GATE_ACT)
    with counted_layers(FAMILY) as ran:
        result = mean_of(cache_with(tmp_path, batch_size=batch_size), resumed)
    seen, done = [text for batch in resumed.batches_seen for text in batch], [t for batch in before for t in batch]
    assert len(done) == 4 and sorted(seen + done) == list(range(len(LENGTHS)))
    assert sum(texts for layer, texts in ran if layer == 0) == len(LENGTHS) - 4
    whole = mean_of(cache_with(None), MeanOf(Site.GATE_ACT))
    assert result.positions == whole.positions == sum(LENGTHS)
    torch.testing.assert_close(result.mean, whole.mean, rtol=1e-6 if batch_size != 2 else 1e-15, atol=1e-9)
    assert list((tmp_path / "states").iterdir()) == []


def test_analyzers_that_were_stopped_at_different_places_each_get_what_they_lack(tmp_path: Path) -> None:
    stopped(tmp_path)
    both = MeanOf(Site.GATE_ACT), MeanOf(Site.RESID_POST)
    results = cache_with(tmp_path).run(*both)
    assert [sum(map(len, analyzer.batches_seen)) for analyzer in both] == [3, 7]
    for result, site in zip(results, (Site.GATE_ACT, Site.RESID_POST), strict=True):
        assert isinstance(result, MeanResult)
        assert torch.equal(result.mean, mean_of(cache_with(None), MeanOf(site)).mean)


def test_a_run_killed_after_its_last_batch_needs_no_forward_pass(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(MeanOf, "result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache_with(tmp_path).run(MeanOf(Site.GATE_ACT))
    monkeypatch.undo()
    with counted_layers(FAMILY) as ran:
        result = mean_of(cache_with(tmp_path), MeanOf(Site.GATE_ACT))
    assert ran == [] and torch.equal(result.mean, mean_of(cache_with(None), MeanOf(Site.GATE_ACT)).mean)


def test_a_changed_weight_a_changed_text_a_changed_fact_or_setting_is_computed_anew(tmp_path: Path) -> None:
    module = fresh(FAMILY, seed=9)
    loaded, corpus = load_model(module), as_corpus(random_loops(4), model(FAMILY))
    moved = corpus.with_columns(onset=corpus.frame["onset"] + 1)
    renamed = corpus.with_columns(condition="natural")
    cut = corpus.select([0, 1, 2])

    def passes(corpus: Corpus, analyzer: RepetitionNeurons) -> int:
        with counted_layers(FAMILY, module) as ran:
            CorpusCache(loaded, corpus, store=tmp_path).run(analyzer)
        return len(ran)

    assert passes(corpus, RepetitionNeurons(r=4)) > 0
    assert passes(corpus, RepetitionNeurons(r=4)) == 0
    for changed in (moved, renamed, cut):
        assert passes(changed, RepetitionNeurons(r=4)) > 0
    for analyzer in (
        RepetitionNeurons(r=5),
        RepetitionNeurons("hiraoka2025", r=4),
        RepetitionNeurons(r=4, site="mlp_post"),
    ):
        assert passes(corpus, analyzer) > 0
    with torch.no_grad():
        module.get_submodule("model.layers.0.mlp.gate_proj").weight[3, 4] += 0.5  # pyright: ignore
    assert passes(corpus, RepetitionNeurons(r=4)) > 0
    assert passes(corpus, RepetitionNeurons(r=4)) == 0


@pytest.mark.parametrize("damage", [b"", b"{", b"not a tensor file at all"])
def test_a_damaged_state_is_an_error_that_names_the_file(tmp_path: Path, damage: bytes) -> None:
    stopped(tmp_path)
    (state,) = (tmp_path / "states").iterdir()
    state.write_bytes(damage)
    with pytest.raises(StoreError, match=f"{state.name}.*delete that file"):
        cache_with(tmp_path).run(MeanOf(Site.GATE_ACT))


def test_a_state_of_another_shape_or_without_its_count_is_an_error_too(tmp_path: Path) -> None:
    stopped(tmp_path)
    (state,) = (tmp_path / "states").iterdir()
    good = safetensors_torch.load_file(state)
    for tensors, facts in (({"sum": good["sum"]}, {"texts": "4"}), (good, None), (good, {"texts": "four"})):
        safetensors_torch.save_file(tensors, state, facts)
        with pytest.raises(StoreError, match=state.name):
            cache_with(tmp_path).run(MeanOf(Site.GATE_ACT))


@pytest.mark.parametrize("file", ["result.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_result_is_an_error_that_names_the_folder(tmp_path: Path, file: str, damage: str) -> None:
    mean_of(cache_with(tmp_path), MeanOf(Site.GATE_ACT))
    (folder,) = (tmp_path / "results").iterdir()
    if damage == "cut":
        (folder / file).write_bytes((folder / file).read_bytes()[:40])
    else:
        (folder / file).unlink()
    with pytest.raises(StoreError, match=folder.name):
        cache_with(tmp_path).run(MeanOf(Site.GATE_ACT))


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"store .*file.below.*choose another folder"):
        cache_with(tmp_path / "file" / "below")


# Python raises the one, safetensors' own writer the other.
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
@pytest.mark.parametrize("step", ["state", "result"])
def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: Any, step: str, error: Exception
) -> None:
    def save_file(tensors: Any, path: Path, **facts: Any) -> None:
        if ("states" in str(path)) == (step == "state"):
            Path(path).write_bytes(b"half")
            raise error
        real(tensors, path, **facts)

    real = safetensors_torch.save_file
    monkeypatch.setattr(safetensors_torch, "save_file", save_file)
    with pytest.raises(StoreError, match=r"No space left.*free space or choose another"):
        cache_with(tmp_path).run(MeanOf(Site.GATE_ACT))
    assert leftovers(tmp_path) == []
    assert list((tmp_path / "results").iterdir()) == []
    monkeypatch.undo()
    whole = mean_of(cache_with(None), MeanOf(Site.GATE_ACT))
    assert torch.equal(mean_of(cache_with(tmp_path), MeanOf(Site.GATE_ACT)).mean, whole.mean)


def test_states_are_written_only_now_and_then(tmp_path: Path, monkeypatch: Any) -> None:
    written: list[int] = []
    monkeypatch.setattr(Store, "_write", lambda self, path, tensors, texts: written.append(int(texts)))
    cache = cache_with(tmp_path)
    assert cache.store is not None
    cache.store.seconds = 3600
    cache.run(MeanOf(Site.GATE_ACT))
    assert written == [7]
    written.clear()
    cache_with(tmp_path).run(MeanOf(Site.RESID_POST))
    assert written == [2, 4, 6, 7]
