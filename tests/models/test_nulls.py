"""Null models know nothing, have the sizes of the original, and leave it alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.nulls import NullKind, _edited, _normal, as_null, reinitialised, shuffled
from mechrep.models.reading import read_activations
from tests.families import zoo
from tests.tiny_models import NAMES, families, fresh, random_tokens, tiny, tiny_tokenizer


def parts(model: Model) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters of the plain view: weights, and those of norms."""
    module: Any = model.plain
    norms = {
        f"{name}.{key}"
        for name, part in module.named_modules()
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm")
        for key, _ in part.named_parameters()
    }
    named = dict(module.named_parameters())
    return {k: v for k, v in named.items() if k not in norms}, {k: v for k, v in named.items() if k in norms}


@pytest.mark.parametrize("family", families(*NAMES[:-1]))
def test_shuffled_weights_are_entries_of_the_same_weights(family: str) -> None:
    model = load_model(tiny(family))
    before = model.fingerprint()
    null = shuffled(model, seed=3)
    assert model.fingerprint() == before, "the original is left alone"
    (weights, norms), (drawn, kept) = parts(model), parts(null)
    assert weights.keys() == drawn.keys() and norms and norms.keys() == kept.keys()
    for name, weight in weights.items():
        assert torch.isin(drawn[name], weight).all(), name
        if weight.unique().numel() > 1:
            assert not torch.equal(weight, drawn[name]), name
    assert all(torch.equal(norms[name], kept[name]) for name in norms)
    tokens = random_tokens(2, 9)
    with torch.no_grad():  # both views of the copy are one model, whatever TransformerLens splits
        torch.testing.assert_close(null.tl(tokens), null.plain_logits(tokens), atol=2e-4, rtol=2e-4)
        assert (null.tl(tokens) - model.tl(tokens)).abs().max() > 0.1


def test_reinitialised_weights_are_small_noise_and_no_bias() -> None:
    for family in ("llama", "gpt_neox"):
        model = load_model(fresh(family, initializer_range=0.05))
        weights, norms = parts(reinitialised(model, seed=1))
        assert all(torch.equal(kept, parts(model)[1][name]) for name, kept in norms.items())
        for name, weight in weights.items():
            if weight.ndim == 1:
                assert not weight.any(), name
            else:
                assert 0.04 < weight.std() < 0.06 and weight.mean().abs() < 0.01, name


def test_seeds_repeat_and_differ() -> None:
    model = load_model(tiny("llama"))
    for null in (shuffled, reinitialised):
        one, again, other = null(model, seed=1), null(model, seed=1), null(model, seed=2)
        assert one.fingerprint() == again.fingerprint() != other.fingerprint()
        assert one.name.startswith(model.name) and "seed 1" in one.name and one.name != other.name


@pytest.mark.parametrize("kind", ["shuffled", "reinitialised"])
@pytest.mark.parametrize("family", families(*NAMES[:-1]))
def test_a_model_that_computes_as_a_null_for_a_while_is_the_copy(family: str, kind: NullKind) -> None:
    model, tokens = load_model(tiny(family)), random_tokens(3, 9)
    before, logits = model.fingerprint(), model.plain_logits(tokens)
    copied = (shuffled if kind == "shuffled" else reinitialised)(model, 5)
    layers = range(model.anatomy.n_layers)
    wanted = {Site.RESID_PRE: [0], Site.RESID_POST: layers, Site.PATTERN: layers, Site.GATE_ACT: layers}
    with as_null(model, kind, 5) as null:
        assert null is model and null.name == copied.name and null.fingerprint() != before
        assert null.fingerprint() != copied.fingerprint()
        seen = {site: read(null, tokens, site, wanted[site]) for site in wanted}
        with pytest.raises(InputError, match="logits of a null model"):
            model.plain_logits(tokens)
        with pytest.raises(InputError, match="TransformerLens view"):
            _ = model.tl
    for site, layers in wanted.items():
        for one, other in zip(seen[site], read(copied, tokens, site, layers), strict=True):
            torch.testing.assert_close(one, other)
    assert model.fingerprint() == before and torch.equal(model.plain_logits(tokens), logits)
    assert not model.name.endswith(")")


def read(model: Model, tokens: torch.Tensor, site: Site, layers: Iterable[int]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    read_activations(model, tokens, {site: [*layers]}, lambda tensor, *_: found.append(tensor.detach().clone()))
    return found


@pytest.mark.parametrize("name", ["Mixtral", "DeepSeek-V3", "Bloom", "OPT", "Gemma3-text"])
def test_other_families_stand_for_nulls_too(name: str) -> None:
    known = zoo.families()
    model = load_model(zoo.build(known[next(one for one in known if one.lower().startswith(name.lower()[:5]))]))
    tokens = random_tokens(2, 7)
    copied = reinitialised(model, 1)
    with as_null(model, "reinitialised", 1) as null:
        seen = read(null, tokens, Site.RESID_POST, range(model.anatomy.n_layers))
    for one, other in zip(seen, read(copied, tokens, Site.RESID_POST, range(model.anatomy.n_layers)), strict=True):
        torch.testing.assert_close(one, other)


def test_whatever_happens_inside_the_weights_come_back() -> None:
    model, tokens = load_model(tiny("gpt2")), random_tokens(2, 9)
    before, pointers = model.fingerprint(), [p.data_ptr() for p in model.plain.parameters()]  # pyright: ignore

    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), as_null(model, "shuffled", 1) as null:
        read_activations(null, tokens, {Site.GATE_ACT: [1]}, fail)
    assert model.fingerprint() == before
    assert pointers == [p.data_ptr() for p in model.plain.parameters()]  # pyright: ignore


def test_entries_are_drawn_evenly_and_rows_do_not_depend_on_the_others() -> None:
    weight = torch.arange(4096.0).view(64, 64)
    all_of_it = _edited("shuffled", 3, 0.02, "a", weight)
    places = torch.tensor([5, 63, 0])
    assert torch.equal(_edited("shuffled", 3, 0.02, "a", weight, places), all_of_it[places])
    assert not torch.equal(_edited("shuffled", 3, 0.02, "b", weight), all_of_it)
    counts = torch.histc(torch.cat([_edited("shuffled", s, 0.02, "a", weight) for s in range(50)]), 16, 0, 4096)
    expected = 50 * 4096 / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 45  # chi squared of 15 degrees: p about 1e-4
    normal = torch.cat([_edited("reinitialised", s, 0.02, "a", weight).flatten() for s in range(50)]) / 0.02
    assert abs(float(normal.mean())) < 0.01 and abs(float(normal.std()) - 1) < 0.01
    assert abs(float((normal.abs() < 1).float().mean()) - 0.6827) < 0.005
    assert abs(float((normal[1:] * normal[:-1]).mean())) < 0.01
    ends = _normal(torch.tensor([0.0, 2.0**24 - 1]))
    assert bool(ends.isfinite().all()) and float(ends[0]) == -float(ends[1]) < -5.0


def test_a_tied_embedding_stays_tied() -> None:
    null = shuffled(load_model(tiny("gpt2")))
    module: Any = null.plain
    assert module.lm_head.weight is module.transformer.wte.weight


def test_a_copy_reads_the_same_ids_though_the_tokenizer_is_gone_from_disk(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    model = load_model(tiny("llama"), tokenizer=tiny_tokenizer(folder))
    for file in folder.iterdir():
        file.unlink()
    null = shuffled(model)
    assert null.encode("w5 w6") == model.encode("w5 w6") == [0, 5, 6]
    assert torch.equal(null.to_tokens("w5 w6"), model.to_tokens("w5 w6"))
    assert null.tokenizer_fingerprint == model.tokenizer_fingerprint and null.bos_id == model.bos_id


def test_a_bridge_is_copied_whole() -> None:
    original = load_model(fresh("gpt2"))
    bridged = load_model(original.tl)  # its plain view is the wrapped module itself
    assert bridged.plain is original.tl.original_model
    null, tokens = shuffled(bridged, seed=1), random_tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(null.tl(tokens), null.plain_logits(tokens), atol=2e-4, rtol=2e-4)
        assert (null.tl(tokens) - bridged.tl(tokens)).abs().max() > 0.1


@pytest.mark.parametrize("null_of", [shuffled, reinitialised])
def test_what_training_learned_about_routing_is_gone_too(null_of: Any) -> None:
    """DeepSeek balances its experts by a buffer, which is no parameter."""
    model = load_model(zoo.build(zoo.families()["DeepSeek-V3"]))

    def biases(one: Model) -> list[torch.Tensor]:
        return [b for name, b in one.plain.named_buffers() if name.endswith("e_score_correction_bias")]  # pyright: ignore

    for bias in biases(model):
        bias.copy_(torch.arange(1.0, 1.0 + len(bias)))
    null = null_of(model, seed=1)
    again = null_of(model, seed=1)
    assert biases(model) and all(not torch.equal(a, b) for a, b in zip(biases(null), biases(model), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(biases(null), biases(again), strict=True))
