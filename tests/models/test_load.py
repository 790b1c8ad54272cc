"""``load_model`` by name, folder and object; types, BOS, text and the fingerprint of weights."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mechrep.errors import InputError, ModelError
from mechrep.models.load import _refuse_changes, load_model
from mechrep.models.model import Model
from mechrep.models.sources import Options
from mechrep.models.tiny import held_out_text
from tests.tiny_models import D_VOCAB, PARTS, fresh, random_tokens, tiny, tiny_tokenizer

TOKENS = random_tokens(2, 12)


# --- names, folders, objects ---------------------------------------------------------------------------------------


def test_the_embedded_model_loads_and_reads_text() -> None:
    model = load_model("mechrep-tiny")
    assert (model.name, model.revision, model.dtype) == ("mechrep-tiny", None, torch.float32)
    assert model.plain is not None
    text = held_out_text()[:200]
    assert model.decode(model.encode(text, prepend_bos=False)) == text
    tokens = torch.tensor([model.encode(text)])
    torch.testing.assert_close(model(tokens), model.plain_logits(tokens), atol=1e-4, rtol=1e-4)
    guessed = model.plain_logits(tokens).log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None]).mean()
    assert -guessed < torch.log(torch.tensor(float(model.anatomy.d_vocab))), "worse than knowing nothing"


def test_a_downloaded_folder_gives_the_logits_of_transformers(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    model = load_model(str(folder))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([model.encode("Once upon a time there was a little dog", prepend_bos=True)])
    with torch.no_grad():
        expected = plain(tokens).logits
    torch.testing.assert_close(model.plain_logits(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)
    assert (model.anatomy.n_heads, model.anatomy.n_kv_heads, model.anatomy.gated) == (8, 4, True)


def test_a_model_is_returned_as_it_is() -> None:
    model = load_model(tiny("llama"))
    assert load_model(model) is model


@pytest.mark.parametrize(
    "spec", ["no-such-model", "nobody/no-such-model", "./nowhere", "/no/where", "~/no/where", "a/b/c", " "]
)
def test_an_unknown_name_or_path_is_one_model_error(spec: str) -> None:
    with pytest.raises(ModelError, match=r"given: (model|path)"):
        load_model(spec)


@pytest.mark.parametrize("spec", [3, None, torch.nn.Linear(2, 2), {"model": 1}])
def test_an_object_of_another_kind_is_refused(spec: Any) -> None:
    with pytest.raises(ModelError, match="an object of type"):
        load_model(spec)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "config.json").unlink(), "without config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nonsense"}'), "nonsense"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "bytes of weights"),
        (lambda folder: change_weights(folder, lambda weights: weights.popitem()), "weights of .* without"),
        (
            lambda folder: change_weights(folder, lambda w: w.update({"lm_head.weight": torch.zeros(2, 2)})),
            "lm_head.weight 2x2 where .* 61x32",
        ),
    ],
)
def test_a_damaged_folder_is_one_model_error(tmp_path: Path, damage: Any, complaint: str) -> None:
    tiny("llama").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=complaint):
        load_model(tmp_path)


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_revision_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"revision 'step-no-such'.*kept checkpoint"):
        load_model("mechrep-tiny", revision="step-no-such")
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="revision 'step1' of the folder"):
        load_model(tmp_path, revision="step1")


# --- types ---------------------------------------------------------------------------------------------------------


def test_on_the_cpu_weights_are_float32_unless_asked_otherwise(tmp_path: Path) -> None:
    fresh("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_model("mechrep-tiny", dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_object_keeps_its_type(family: str, dtype: torch.dtype) -> None:
    module = copy.deepcopy(tiny(family)).to(dtype)
    model = load_model(module, dtype=dtype)
    assert model.dtype == model.plain_logits(TOKENS).dtype == model.tl.cfg.dtype == dtype


@pytest.mark.parametrize(
    "wish", [{"dtype": torch.bfloat16}, {"revision": "main"}, {"device": "meta"}, {"device_map": "auto"}]
)
def test_a_wish_that_an_object_does_not_meet_is_refused(wish: dict[str, Any]) -> None:
    for spec in (tiny("llama"), load_model(tiny("llama"))):
        with pytest.raises(ModelError, match=f"{next(iter(wish))} for a model object"):
            load_model(spec, **wish)


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_weights() -> None:
    one, same = load_model(fresh("gpt2", seed=1)), load_model(fresh("gpt2", seed=1))
    other = load_model(fresh("gpt2", seed=2))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("part", ["mlp_output", "attention_output"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_fingerprint_follows_a_single_weight_and_comes_back_with_it(family: str, part: str) -> None:
    module = fresh(family)
    model = load_model(module)
    before = model.fingerprint()
    weight = PARTS[family].of(module, part, 2).weight
    kept = weight[3, 5].clone()
    weight[3, 5] += 1e-3
    assert model.fingerprint() != before
    weight[3, 5] = kept
    assert model.fingerprint() == before


def test_the_fingerprint_follows_a_fused_matrix_that_transformer_lens_split() -> None:
    module = fresh("gpt2")
    model = load_model(module)
    before = model.fingerprint()
    module.get_submodule("transformer.h.0.attn.c_attn").weight[0, 0] += 1
    assert model.fingerprint() != before


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """A set of names in it would be written in another order by every interpreter."""
    code = (
        "from tests.tiny_models import tiny; from mechrep.models.load import load_model; "
        "print(load_model(tiny('gpt_neox')).fingerprint())"
    )
    root = Path(__file__).resolve().parents[2]
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(root)},
        ).stdout
        for seed in range(3)
    }  # fmt: skip
    assert len(prints) == 1


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "habit"), [("llama", True), ("gpt2", True), ("gpt_neox", False), ("qwen2", False)])
@pytest.mark.parametrize("has_bos", [True, False])
def test_bos_by_habit_or_as_asked(tmp_path: Path, family: str, habit: bool, has_bos: bool) -> None:
    model = load_model(copy.deepcopy(tiny(family)), tokenizer=tiny_tokenizer(tmp_path, bos=has_bos))
    bos = 0 if has_bos else 1  # no BOS of its own, as with GPT-NeoX: the end of one text begins the next
    assert (model.bos_id, model.eos_ids, model.default_prepend_bos) == (bos, {1}, habit)
    assert model.encode("w3 w4 w60", prepend_bos=True) == [bos, 3, 4, 60]
    assert model.encode("w3 w4 w60", prepend_bos=False) == [3, 4, 60]
    assert model.encode("w3 w4 w60") == ([bos, 3, 4, 60] if habit else [3, 4, 60])
    for wish in (None, True, False):
        assert model.to_tokens("w5 w6", prepend_bos=wish).tolist() == [model.encode("w5 w6", prepend_bos=wish)]
    assert model.decode([3, 4, 60]) == "w3 w4 w60"
    assert model.special_ids >= {1, 2, bos}


def test_a_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    assert load_model(tmp_path).tokenizer is None
    tokenizer = tiny_tokenizer(tmp_path)
    model = load_model(tmp_path)
    assert model.encode("w7", prepend_bos=False) == [7]
    assert model.tokenizer_fingerprint == load_model(tiny("llama"), tokenizer=tokenizer).tokenizer_fingerprint
    assert model.tokenizer_fingerprint != load_model("mechrep-tiny").tokenizer_fingerprint


def test_without_a_tokenizer_there_are_ids_only() -> None:
    model = load_model(tiny("llama"))
    assert (model.tokenizer, model.tokenizer_fingerprint, model.bos_id, model.eos_ids) == (None, None, 0, {1})
    assert model.decode([5, 6]) == "5 6"
    with pytest.raises(InputError, match="no tokenizer"):
        model.encode("w3")


def test_a_model_without_any_special_id_has_no_bos(tmp_path: Path) -> None:
    nothing = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = load_model(fresh("llama", **nothing))
    assert (model.bos_id, model.eos_ids) == (None, frozenset())
    beyond = load_model(fresh("llama", bos_token_id=D_VOCAB + 5, eos_token_id=4))
    assert beyond.bos_id == 4, "an id outside the vocabulary is nobody's"


def test_probe_tokens_fit_the_model() -> None:
    model = load_model(fresh("gpt2", n_positions=8))
    tokens = model.probe_tokens()
    assert tokens.shape == (2, 8)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < D_VOCAB
    assert torch.equal(tokens, model.probe_tokens())


def test_the_first_of_several_devices_is_another_one_than_the_second() -> None:
    class OnTheSecond(Model):
        device, dtype, revision = torch.device("cuda:1"), torch.float32, None  # pyright: ignore

        def __init__(self) -> None:
            pass

    model = OnTheSecond()
    for device in ("cuda", "cuda:1"):
        _refuse_changes(model, Options(), torch.device(device))
    for device in ("cuda:0", "cpu"):
        with pytest.raises(ModelError, match="device"):
            _refuse_changes(model, Options(), torch.device(device))
