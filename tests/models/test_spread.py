"""A model over two devices (``device_map=``): what is read, scored and written is what one device gives.

The second device is pretended (:mod:`tests.models.two_devices`), so that this runs where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import torch

import mechrep
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.cache import CorpusCache
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.interventions import Heads, Neurons
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.sink_norms import SinkNorms
from tests.analyzers.looping_texts import as_corpus, random_loops
from tests.models.two_devices import spread
from tests.tiny_models import fresh


def everything(model: mechrep.Model) -> dict[str, Any]:
    """Readings, scores under edits, texts."""
    corpus = as_corpus(random_loops(4), model)
    edits = [None, Heads([(0, 1), (1, 0)], when="all"), Neurons([(0, 3), (1, 2)], "zero", when="all")]
    analyzers = SinkNorms(), AttentionSinks(), RepetitionNeurons(r=5)
    CorpusCache(model, corpus, batch_size=2, progress=False).run(*analyzers)
    found: dict[str, Any] = {f"{type(one).__name__} {k}": v for one in analyzers for k, v in one.state.items()}
    found["z"] = CorpusCache(model, corpus).get(mechrep.Site.Z)
    texts = [ScoredText(tuple(range(3 + i, 13 + i)), 6, 5, i) for i in range(3)]
    found["scores"] = torch.stack([one.log_probability for one in score_tokens(model, texts, edits)])
    requests = [Request(tuple(range(3 + i, 9 + 2 * i)), 8, edits[i % 3], 0, i) for i in range(6)]
    for decoding in (Decoding(None), Decoding(None, temperature=1.0)):
        written = run_requests(model, requests, decoding, progress=False)
        found[f"texts {decoding.temperature}"] = torch.tensor([one.tokens for one in written])
    return found


def test_two_devices_give_what_one_gives() -> None:
    module = fresh("llama_gqa", seed=4)
    whole = everything(mechrep.load_model(module))
    with spread(module, list(module.model.layers), 1) as devices:  # pyright: ignore
        model = mechrep.Model(None, module, tokenizer=None, name="two devices", revision=None)
        parts = everything(model)
        assert devices.moved > 0 and str(model.device) == "cpu"
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")
