"""float16 ends at 65,504: norms beyond it are measured, and a model that overflows is refused by name everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechrep
from mechrep.ablation.score import token_losses
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import ModelError
from mechrep.generation.decode import generate
from mechrep.measures.attention_sinks import AttentionSinks, attention_sinks, first_position_attention
from mechrep.measures.first_token import FirstTokenDetection
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import SinkNorms, norms_of
from mechrep.measures.token_facts import token_surprisal
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.stream import Stream
from mechrep.text.corpus import Corpus
from tests.numerics.measure import cast
from tests.tiny_models import fresh, random_tokens

HALF = torch.float16


LOUD = 41  # the token at which a neuron of the first layer writes `size`


def with_loud_token(size: float, *dtypes: torch.dtype) -> Model:
    """A model in which one neuron of layer 0 answers to one token: at the others it writes a quarter at most."""
    module: Any = fresh("llama_gqa")
    with torch.no_grad():
        module.model.layers[0].self_attn.o_proj.weight.zero_()
        layer, own = module.model.layers[0], module.model.embed_tokens.weight[LOUD]
        read = layer.post_attention_layernorm(own)
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight[7] = 10 * read / read.square().sum()
        layer.mlp.down_proj.weight[:, 7] = 0
        layer.mlp.down_proj.weight[5, 7] = size / 100  # the neuron has 10 times 10 at its token
    return load_model(cast(module, *dtypes), check=not dtypes or dtypes[-1] is not torch.float64)


@functools.cache
def overflowing() -> Model:
    """It passes the checks of loading, in whose short texts the token is not."""
    return with_loud_token(2e5, HALF)


def corpus_of(model: Model) -> Corpus:
    """Two texts with the token and two without."""
    tokens = random_tokens(4, 20)
    tokens[tokens == LOUD] = 3
    tokens[:2, 6] = LOUD
    return Corpus.from_tokens(tokens.repeat(1, 2), model=model)


def test_a_norm_beyond_the_end_of_float16_is_a_number() -> None:
    """Entries of 30,000 have squares, sums and a norm that float16 cannot hold."""
    states = torch.full((1, 2, 64), 30_000.0, dtype=HALF)
    assert torch.equal(norms_of(states), torch.full((1, 2), 240_000.0, dtype=torch.float64))


def test_large_norms_are_those_of_float64() -> None:
    low, right = (CorpusCache(m, corpus_of(m), progress=False).run(SinkNorms()).by_position[:, :40]
                  for m in (with_loud_token(6e4, HALF), with_loud_token(6e4, HALF, torch.float64)))  # fmt: skip
    assert right.max() > 25_000  # a mean over texts in half of which it is 60,000
    assert bool(((low - right).abs() < 1e-2 * right.max()).all())


USES: dict[str, Callable[[Model], Any]] = {
    "SinkNorms": lambda model: CorpusCache(model, corpus_of(model), progress=False).run(SinkNorms()),
    "AttentionSinks": lambda model: CorpusCache(model, corpus_of(model), progress=False).run(AttentionSinks()),
    "HeadScores": lambda model: CorpusCache(model, corpus_of(model), progress=False).run(HeadScores(bos_id=0)),
    "get": lambda model: CorpusCache(model, corpus_of(model), progress=False)[mechrep.Site.RESID_POST, 2],
    "rows of attention": lambda model: first_position_attention(model, corpus_of(model)),
    "losses": lambda model: token_losses(model, corpus_of(model), [None], progress=False),
    "surprisal": lambda model: token_surprisal(model, corpus_of(model)),
    "greedy": lambda model: generate(model, corpus_of(model), max_new_tokens=5, progress=False),
    "sampled": lambda model: generate(model, corpus_of(model), max_new_tokens=5, temperature=1.0, progress=False),
    "the other view": lambda model: generate(
        model, corpus_of(model), max_new_tokens=2, view="transformer_lens", progress=False
    ),
    "neurons of the sink": lambda model: sink_neurons(model, Corpus.from_tokens([[LOUD, 3]], model=model), 0),
    "compare": lambda model: mechrep.compare(
        model, corpus_of(model), {"a": None, "b": mechrep.Heads("L0H0", when="all")}, max_new_tokens=3, progress=False
    ),
}


def test_a_model_that_always_overflows_is_refused_when_it_is_loaded() -> None:
    module: Any = fresh("llama_gqa")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight *= 6e3
    with pytest.raises(ModelError, match=r"logits of .* in float16, which overflows"):
        load_model(cast(module, HALF))


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_every_use_works_where_nothing_overflows(use: str) -> None:
    """The refusals are about the numbers, not about float16 or these calls."""
    for model in (with_loud_token(2e5, torch.bfloat16), with_loud_token(6e4, HALF)):
        USES[use](model)


def test_what_is_read_before_the_overflow_is_measured() -> None:
    """Heads below the neuron that overflows are read as ever."""
    model = overflowing()
    found = CorpusCache(model, corpus_of(model), progress=False).run(FirstTokenDetection.of(model))
    assert bool(found.mass.isfinite().all())


def test_all_uses_say_the_same(trust: Any) -> None:
    refused = []
    for use, do in USES.items():
        try:
            do(overflowing())
        except ModelError as error:
            refused += [use] if "overflows" in str(error) else []
    trust(section="numerics", what="float16 that overflows at a token: uses that refuse it by name", asked="all",
          measured=f"{len(refused)} of {len(USES)}", holds=len(refused) == len(USES))  # fmt: skip
    assert refused == list(USES)


def test_long_texts_are_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechrep.measures.attention_sinks.WHOLE", 8)
    with pytest.raises(ModelError, match="attention of layer 1"):
        attention_sinks(overflowing(), corpus_of(overflowing()))


def test_ranks_of_the_logit_lens_are_not_those_of_rounded_logits() -> None:
    """bfloat16 logits tie: the rank would count none of the equals, and the first of them would be the rival."""
    model = load_model(cast(fresh("llama_gqa"), torch.bfloat16), check=False)
    states = torch.randn(200, model.anatomy.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = Stream(model).lens(states).double()
    exact = Stream(load_model(cast(fresh("llama_gqa"), torch.bfloat16, torch.float64), check=False)).lens(
        states.double()
    )
    assert torch.equal(found.argsort(-1), exact.argsort(-1))
    rounded = Stream(model).raw_logits(states)
    assert bool((rounded.sort(-1).values.diff(dim=-1) == 0).any())  # so the model's own would not do


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_gain_bias_and_scale_of_a_norm_are_not_rounded(family: str) -> None:
    """A gain is read off by running the norm: in bfloat16 a large bias would swallow it."""
    low = load_model(cast(fresh(family), torch.bfloat16), check=False)
    wide = load_model(cast(fresh(family), torch.bfloat16, torch.float64), check=False)
    one, other = Stream(low).final_norm, Stream(wide).final_norm
    states = torch.randn(5, low.anatomy.d_model, generator=torch.Generator().manual_seed(1)).bfloat16()
    states[:, 3] = 500.0  # a massive dimension, whose rounding would be that of the scale
    assert torch.allclose(one.gain.double(), other.gain, rtol=1e-5, atol=1e-6)
    assert torch.allclose(one.bias.double(), other.bias, rtol=1e-5, atol=1e-6)
    assert torch.allclose(one.scale(states), other.scale(states.double()), rtol=1e-5)


def test_rotary_frequencies_of_the_embedded_model_stay_single() -> None:
    """Rounded to bfloat16 they would turn position 500 by another angle: up to 2^-9 of 500 radians."""
    for dtype in (torch.bfloat16, HALF, torch.float64):
        low: Any = load_model("mechrep-tiny", dtype=dtype, check=False).plain
        single: Any = load_model("mechrep-tiny", check=False).plain
        assert low.dtype == dtype
        assert torch.equal(low.model.rotary_emb.inv_freq, single.model.rotary_emb.inv_freq)
