"""Wrong calls of models, and weights that are no numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

import mechrep
from mechrep import CorpusCache, SinkPatch, studies
from mechrep.errors import ModelError
from tests.badinput.case import file, folder, wrong
from tests.badinput.world import World

nan, inf = float("nan"), float("inf")


def with_value(w: World, value: float, name: str = "model.layers.1.mlp.up_proj.weight") -> Any:
    """The tiny Llama with one weight that is no number."""
    module = copy.deepcopy(w.other.plain)
    with torch.no_grad():
        module.get_parameter(name).view(-1)[3] = value
    return module


def edited(w: World, value: float, name: str = "model.layers.1.mlp.up_proj.weight") -> Any:
    """A model whose weight was put to no number after it was loaded."""
    model = mechrep.load_model(copy.deepcopy(w.other.plain))
    with torch.no_grad():
        model.plain.get_parameter(name).view(-1)[3] = value
    return model


load_model = mechrep.load_model
wrong(
    "load_model", "up_proj", *(lambda w, v=v: load_model(with_value(w, v)) for v in (nan, inf, -inf)), error=ModelError
)
wrong(
    "load_model",
    "embed_tokens",
    lambda w: load_model(with_value(w, nan, "model.embed_tokens.weight")),
    error=ModelError,
)
wrong("load_model", "norm", lambda w: load_model(with_value(w, inf, "model.norm.weight")), error=ModelError)
wrong("load_model", "up_proj", lambda w: load_model(with_value(w, nan), check=False), error=ModelError)
wrong("load_model", "mechrep-tiny", lambda w: load_model("mechrep-tinny"), error=ModelError)
wrong("load_model", "no-such-folder", lambda w: load_model(w.folder / "no-such-folder"), error=ModelError)
wrong("load_model", "config.json", lambda w: load_model(folder(w, "empty")), error=ModelError)
wrong("load_model", "step512", lambda w: load_model("mechrep-tiny", revision="step511"), error=ModelError)
wrong("load_model", "revision", lambda w: load_model(w.other.plain, revision="step1"), error=ModelError)
wrong("load_model", "dtype", lambda w: load_model("mechrep-tiny", dtype="float31"))
wrong("load_model", "dtype", lambda w: load_model("mechrep-tiny", dtype=torch.int64))
wrong("load_model", "device", lambda w: load_model("mechrep-tiny", device="gpu"))
wrong("load_model", "device", lambda w: load_model("mechrep-tiny", device=-1))
wrong(
    "load_model",
    "an object of type",
    lambda w: load_model(3),
    lambda w: load_model(None),
    lambda w: load_model([]),
    error=ModelError,
)
wrong("load_model", "''", lambda w: load_model(""), error=ModelError)
wrong("load_model", "Linear", lambda w: load_model(torch.nn.Linear(3, 3)), error=ModelError)
wrong("load_model", "tokenizer", lambda w: load_model("mechrep-tiny", tokenizer=3), error=ModelError)
wrong("load_model", "x.gguf", lambda w: load_model(file(w, "x.gguf", b"GGUF" + bytes(20))), error=ModelError)
wrong("load_model", "y.gguf", lambda w: load_model(file(w, "y.gguf", b"")), error=ModelError)
wrong("load_model", "config.json", lambda w: load_model(file(w, "broken/config.json", "{").parent), error=ModelError)
wrong("load_model", "config.json", lambda w: load_model(file(w, "list/config.json", "[]").parent), error=ModelError)
wrong("load_model", "z.bin", lambda w: load_model(file(w, "z.bin", b"123")), error=ModelError)
wrong("Model.encode", "tokenizer", lambda w: w.other.encode("The sea"))
wrong("Model.decode", "id", lambda w: w.model.decode([10**6]), lambda w: w.model.decode([-1]))
wrong(
    "Model.run_with_hooks",
    "hook",
    lambda w: w.model.run_with_hooks(w.model.to_tokens("a"), fwd_hooks=[("nosuch", print)]),
)
wrong("Model.hooks", "hook", lambda w: w.model.hooks([("nosuch", print)]).__enter__())
wrong("Model.run_with_cache", "hook", lambda w: w.model.run_with_cache(w.model.to_tokens("a"), names_filter="nosuch"))
wrong("Model.add_hook", "hook", lambda w: w.model.add_hook("blocks.9.hook_resid_pre", print))
wrong(
    "Anatomy.check_layer", "0 to 3", *(lambda w, n=n: w.anatomy.check_layer(n) for n in (-1, 4, True, 1.0, "1", None))
)
wrong("Anatomy.check_site", "layer", lambda w: w.anatomy.check_site(mechrep.Site.Z, 9))
wrong("Anatomy.check_site", "router", lambda w: w.anatomy.check_site(mechrep.Site.ROUTER, 0))
wrong("Anatomy.hook_name", "layer", lambda w: w.anatomy.hook_name(mechrep.Site.Z, 4))
wrong("Anatomy.width", "pattern", lambda w: w.anatomy.width(mechrep.Site.PATTERN))
wrong("Model.probe_tokens", "length", lambda w: w.model.probe_tokens(0))

# Weights that become no numbers after loading: every analyzer must notice.
_READERS: dict[str, Callable[[Any, World], Any]] = {
    "CorpusCache.run": lambda m, w: CorpusCache(m, w.foreign, progress=False).run(mechrep.SinkNorms()),
    "CorpusCache.get": lambda m, w: CorpusCache(m, w.foreign, progress=False).get("resid_post"),
    "generate": lambda m, w: mechrep.generate(m, w.foreign, max_new_tokens=2, progress=False),
    "score_heads": lambda m, w: mechrep.score_heads(m, n=4, sequences=2),
    "score_copying": lambda m, w: mechrep.score_copying(m, n=4, sequences=2),
    "attention_sinks": lambda m, w: mechrep.attention_sinks(m, w.foreign),
    "first_position_attention": lambda m, w: mechrep.first_position_attention(m, w.foreign),
    "head_composition": lambda m, w: mechrep.head_composition(m, draws=2),
    "ov_scores": lambda m, w: mechrep.ov_scores(m, draws=1, sample=10, k=2),
    "qk_attribution": lambda m, w: mechrep.qk_attribution(m, w.foreign, (1, 0), [(0, 4, 1)]),
    "ov_cluster": lambda m, w: mechrep.ov_cluster(m, 9, 3, draws=(1, 1), length=4),
    "studies.token_losses": lambda m, w: studies.token_losses(m, w.foreign, [None], progress=False),
    "PatchedModel": lambda m, w: mechrep.PatchedModel(m, SinkPatch(0, [1])).__enter__(),
    "view": lambda m, w: mechrep.view(m, w.foreign, row=0),
}
for _name, _read in _READERS.items():
    wrong(_name, "up_proj", lambda w, read=_read: read(edited(w, nan), w), error=ModelError)
wrong("CorpusCache.run", "up_proj", lambda w: _READERS["CorpusCache.run"](edited(w, inf), w), error=ModelError)
wrong(
    "CorpusCache.run",
    "q_proj",
    lambda w: _READERS["CorpusCache.run"](edited(w, nan, "model.layers.0.self_attn.q_proj.weight"), w),
    error=ModelError,
)
