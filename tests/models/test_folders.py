"""Folders that hold another model than their configuration names, and folders that only look so."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mechrep.errors import ModelError
from mechrep.models.load import load_model
from mechrep.models.sources import Options, locate, read_model
from tests.families.zoo import build, families
from tests.tiny_models import D_VOCAB, fresh, random_tokens, tiny

TOKENS = random_tokens(2, 12)
_SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {"vocab_size": 61, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
_MOE = {"num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1}  # fmt: skip


def save(module: Any, folder: Path, **settings: Any) -> Path:
    """A folder of the module, with settings of its configuration changed afterwards."""
    module.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def same(loaded: Any, module: nn.Module) -> None:
    torch.testing.assert_close(loaded.plain_logits(TOKENS), module(TOKENS).logits, atol=1e-5, rtol=1e-5)


# --- another model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "surplus",
    [
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.3.mlp.up_proj.weight",
        "v_head.summary.weight",
        "score.weight",
        "vision_tower.patch.weight",
    ],
)
def test_weights_without_a_place_are_refused_by_name(tmp_path: Path, surplus: str) -> None:
    save(tiny("llama"), tmp_path)
    change(tmp_path, lambda weights: weights | {surplus: torch.ones(2, 32)})
    with pytest.raises(ModelError, match=surplus):
        load_model(tmp_path)


def test_fewer_layers_in_the_configuration_than_in_the_file_are_refused(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"model\.layers\.2\..*num_hidden_layers"):
        load_model(tmp_path)
    save(tiny("llama"), tmp_path, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"without model\.layers\.3\."):
        load_model(tmp_path)


def test_a_size_mismatch_names_the_weight_and_both_sizes(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path, intermediate_size=40)
    with pytest.raises(ModelError, match=r"mlp\.down_proj\.weight 32x48 .* 32x40"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    module = fresh("llama")
    module.get_submodule("model.layers.1.mlp.up_proj").weight[3, 5] = value
    save(module, tmp_path)
    for spec in (tmp_path, module):
        with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
            load_model(spec)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SMALL)), "bert"),
        (lambda: transformers.BertModel(transformers.BertConfig(**_SMALL)), "encoder"),
        (lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**_T5)), "encoder-decoder"),
        (lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**_BART)), "encoder-decoder"),
        (
            lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**_SMALL)),
            "LlamaForSequenceClassification",
        ),
        (lambda: transformers.LlamaModel(transformers.LlamaConfig(**_SMALL)), "without lm_head"),
    ],
)
def test_what_does_not_predict_the_next_token_is_refused(
    tmp_path: Path, make: Callable[[], Any], complaint: str
) -> None:
    module = make()
    save(module, tmp_path)
    with pytest.raises(ModelError, match=complaint):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="next token"):
        load_model(module)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    same(load_model(tmp_path), tiny("llama"))
    shards[1].unlink()
    with pytest.raises(ModelError, match=shards[1].name):
        load_model(tmp_path)


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    same(load_model(tmp_path), tiny("llama"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*save_pretrained"):
        load_model(tmp_path)


def test_a_folder_is_called_by_its_own_name_and_loaded_by_its_path(tmp_path: Path) -> None:
    """Titles and figures show no path of this machine; what loads the model again keeps it."""
    folder = tmp_path / "my-net"
    load_model("mechrep-tiny").plain.save_pretrained(folder)  # pyright: ignore
    model = load_model(folder)
    assert (model.name, model.source) == ("my-net", str(folder))
    assert load_model(model.source).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_out_of_a_folder_is_not_a_hub_name(tmp_path: Path, name: str) -> None:
    save(tiny("llama"), tmp_path)
    with pytest.raises(ModelError, match="give its folder"):
        load_model(tmp_path / name)


# --- the same model after all --------------------------------------------------------------------------------------


def test_old_buffers_in_the_file_are_no_weights(tmp_path: Path) -> None:
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(3)}
    masks |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
    save(tiny("gpt2"), tmp_path / "gpt2")
    change(tmp_path / "gpt2", lambda w: {key.removeprefix("transformer."): weight for key, weight in w.items()} | masks)
    same(load_model(tmp_path / "gpt2"), tiny("gpt2"))
    rotary = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(3)}
    save(tiny("llama"), tmp_path / "llama")
    change(tmp_path / "llama", lambda weights: weights | rotary)
    same(load_model(tmp_path / "llama"), tiny("llama"))


def test_a_tied_head_may_be_saved_and_one_that_differs_is_said(tmp_path: Path) -> None:
    module = fresh("llama", tie_word_embeddings=True)
    save(module, tmp_path)
    for moved in (0.0, 1.0):
        change(tmp_path, lambda w, moved=moved: w | {"lm_head.weight": w["model.embed_tokens.weight"] + moved})
        if moved:
            with pytest.warns(UserWarning, match="NOT tie"):
                loaded = load_model(tmp_path)
            assert (loaded.plain_logits(TOKENS) - module(TOKENS).logits).abs().max() > 0.1
        else:
            same(load_model(tmp_path), module)


def test_a_body_whose_head_is_its_embedding_is_whole(tmp_path: Path) -> None:
    module: Any = fresh("llama", tie_word_embeddings=True)
    save(module.model, tmp_path)
    same(load_model(tmp_path), module)


@pytest.mark.parametrize("ahead", [0, 1])
def test_heads_for_later_tokens_are_left_out_and_said(tmp_path: Path, ahead: int) -> None:
    module = transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**_SMALL, **_MOE))
    save(module, tmp_path, num_nextn_predict_layers=ahead)
    change(tmp_path, lambda weights: weights | {"model.layers.2.eh_proj.weight": torch.ones(32, 64)})
    if ahead:
        (note,) = read_model(locate(str(tmp_path)), Options()).notes
        assert "model.layers.2.eh_proj.weight" in note
    else:
        with pytest.raises(ModelError, match=r"model\.layers\.2\.eh_proj"):
            read_model(locate(str(tmp_path)), Options())


def test_the_vision_tower_of_a_text_decoder_is_left_out_and_said(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    text = _SMALL | {"num_key_value_heads": 2, "head_dim": 8}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text), vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_index=5,
    )  # fmt: skip
    module = transformers.LlavaForConditionalGeneration(config).eval()
    save(module, tmp_path)
    found = read_model(locate(str(tmp_path)), Options(dtype=torch.float32))
    assert any("vision-language" in note for note in found.notes)
    with torch.no_grad():
        torch.testing.assert_close(found.module(input_ids=TOKENS).logits, module(input_ids=TOKENS).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in families().items() if not family.refused])
def test_every_family_comes_back_from_its_folder_without_a_word(tmp_path: Path, name: str) -> None:
    module = build(families()[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.save_pretrained(tmp_path)
    found = read_model(locate(str(tmp_path)), Options(dtype=torch.float32))
    assert [note for note in found.notes if "vision-language" not in note] == []
    with torch.no_grad():
        torch.testing.assert_close(found.module(input_ids=TOKENS).logits, module(input_ids=TOKENS).logits)


# --- what is said --------------------------------------------------------------------------------------------------


def test_loading_prints_nothing_and_keeps_progress_bars_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    save(tiny("llama"), tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(tmp_path)
    assert transformers_logging.is_progress_bar_enabled()
    change(tmp_path, lambda weights: weights | {"more": torch.ones(2)})
    with pytest.raises(ModelError):
        load_model(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_short_context_is_no_reason_to_refuse(tmp_path: Path) -> None:
    save(fresh("gpt2", n_positions=128), tmp_path)
    assert (load_model(tmp_path).anatomy.n_ctx, load_model(tmp_path).anatomy.d_vocab) == (128, D_VOCAB)
