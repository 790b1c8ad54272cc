"""Models that come as GGUF files, adapters, quantised folders and wrapped objects."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.models.load import load_model
from mechrep.models.sources import Options, locate, read_model
from tests.tiny_models import fresh, random_tokens, tiny, tiny_tokenizer

TOKENS = random_tokens(2, 12)

pytestmark = [  # said by peft's and torch's own code to themselves
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        return module(input_ids=TOKENS).logits


def save(module: Any, folder: Path, **settings: Any) -> Path:
    module.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


# --- GGUF ----------------------------------------------------------------------------------------------------------

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def write_gguf(path: Path, module: Any, *, eight_bit: bool = False, without: str = "nothing") -> Path:
    """A Qwen2 as llama.cpp writes it, in float32, or in 8 bit where rows are long enough."""
    gguf = pytest.importorskip("gguf", reason="the package gguf (mechrep[gguf]) is not installed")
    config, eight = module.config, gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    letters = [chr(48 + number) for number in range(config.vocab_size - 5)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<bos>", "<|endoftext|>", "<pad>", *letters, "ab", "bc"])
    writer.add_token_types([3, 3, 3, *[1] * (config.vocab_size - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, weight in module.state_dict().items():
        for theirs, short in _NAMES.items():
            name = name.replace(theirs, short)
        packed = eight_bit and weight.ndim == 2 and weight.shape[1] % 32 == 0
        values = gguf.quants.quantize(weight.numpy(), eight) if packed else weight.numpy()
        if name != without:
            writer.add_tensor(name, values, raw_dtype=eight if packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_the_model_that_it_was_written_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = fresh("qwen2")
    file = write_gguf(tmp_path / "model.gguf", module)
    capfd.readouterr()
    for spec in (file, str(tmp_path)):
        with pytest.warns(UserWarning, match="GGUF"):
            model = load_model(spec)
        torch.testing.assert_close(model.plain_logits(TOKENS), logits(module), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(TOKENS), logits(module), atol=1e-4, rtol=1e-4)
        assert model.decode(model.encode("abc", prepend_bos=False)) == "abc"
    assert capfd.readouterr() == ("", "")


def test_a_quantised_gguf_file_is_unpacked_and_counts_as_a_plain_model(tmp_path: Path) -> None:
    module = fresh("qwen2")
    write_gguf(tmp_path / "model.gguf", module, eight_bit=True)
    found = read_model(locate(str(tmp_path)), Options(dtype=torch.float32)).module
    for name, weight in module.named_parameters():
        step = weight.abs().max() / 127
        assert (found.get_parameter(name) - weight).abs().max() <= step
    assert not hasattr(found, "hf_quantizer")
    save(found, tmp_path / "again")
    torch.testing.assert_close(load_model(tmp_path / "again").plain_logits(TOKENS), logits(found))
    half = read_model(locate(str(tmp_path)), Options(dtype=torch.bfloat16)).module
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_gguf_files_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    module = fresh("qwen2")
    write_gguf(tmp_path / "one.gguf", module)
    broken = write_gguf(tmp_path / "two.gguf", module, without="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"2 GGUF files.*one\.gguf, two\.gguf"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match=r"without model\.layers\.1\.mlp\.up_proj"):
        load_model(broken)
    broken.write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_model(broken)
    part = (tmp_path / "one.gguf").rename(tmp_path / "one-00001-of-00002.gguf")
    with pytest.raises(ModelError, match="one of several parts"):
        load_model(part)


# --- adapters ------------------------------------------------------------------------------------------------------


def adapted(base: nn.Module, folder: Path | None = None, *, at: str = "", **settings: Any) -> Any:
    """A base with a LoRA of random weights, saved to ``folder`` as an adapter of the base ``at``."""
    peft = pytest.importorskip("peft", reason="the package peft (mechrep[peft]) is not installed")
    settings = {"r": 4, "target_modules": ["q_proj", "up_proj"]} | settings
    wrapped = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3, generator=generator)
    if folder is not None:
        wrapped.peft_config["default"].base_model_name_or_path = at
        wrapped.save_pretrained(folder)
    return wrapped.eval()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield save(tiny("llama"), tmp_path / "base")


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapters_folder_is_its_base_with_the_adapter_merged(
    tmp_path: Path, base: Path, settings: dict[str, Any]
) -> None:
    wrapped = adapted(tiny("llama"), tmp_path / "adapter", at=str(base), **settings)
    with pytest.warns(UserWarning, match="an adapter .LORA., merged into its base"):
        model = load_model(tmp_path / "adapter")
    torch.testing.assert_close(model.plain_logits(TOKENS), logits(wrapped), atol=1e-4, rtol=1e-4)
    assert (logits(wrapped) - logits(tiny("llama"))).abs().max() > 1


def test_a_base_beside_the_adapter_is_found_and_the_adapters_tokenizer_comes_first(tmp_path: Path, base: Path) -> None:
    adapted(tiny("llama"), tmp_path / "adapter", at=str(base))
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "../base"}))
    tiny_tokenizer(base, bos=False)
    for folder, bos in ((None, "w0"), (tmp_path / "adapter", "<bos>")):
        if folder is not None:
            tiny_tokenizer(folder)
        with pytest.warns(UserWarning, match="merged"):
            model = load_model(tmp_path / "adapter")
        assert model.decode([0]) == bos


def test_an_adapter_with_new_tokens_brings_their_embeddings(tmp_path: Path, base: Path) -> None:
    wider: Any = fresh("llama")
    wider.resize_token_embeddings(63, mean_resizing=False)
    wrapped = adapted(wider, tmp_path / "adapter", at=str(base), modules_to_save=["embed_tokens", "lm_head"])
    tokenizer = tiny_tokenizer(tmp_path / "adapter")
    tokenizer.add_tokens(["sea", "sand"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="merged"):
        model = load_model(tmp_path / "adapter")
    torch.testing.assert_close(model.plain_logits(TOKENS), logits(wrapped), atol=1e-4, rtol=1e-4)
    assert model.encode("sea w3", prepend_bos=False) == [61, 3]


def test_adapters_that_cannot_be_merged_say_that_they_are_adapters(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = folder / "adapter_config.json"
    settings.write_text("{")
    with pytest.raises(ModelError, match="adapter"):
        load_model(folder)
    for at in (None, "some/base", "/no/where", str(tmp_path)):
        written = {"peft_type": "LORA", "base_model_name_or_path": at, "r": 8, "target_modules": ["q_proj"]}
        settings.write_text(json.dumps(written))
        (folder / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(ModelError, match="this is an adapter"):
            load_model(folder)
    adapted(tiny("llama"), folder, at=str(base))
    whole = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.mlp.up_proj.lora_A.weight"
    without = {key: weight for key, weight in whole.items() if key != name.format(1)}
    for weights in (without, whole | {name.format(7): torch.ones(4, 32)}, whole | {name.format(1): torch.ones(4, 31)}):
        save_file(weights, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match="this is an adapter"):
            load_model(folder)
    save(tiny("llama"), folder)
    with pytest.raises(ModelError, match="and an adapter"):
        load_model(folder)


def test_without_peft_the_error_says_what_to_install(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    with pytest.raises(ModelError, match=r"this is an adapter.*mechrep\[peft\]"):
        load_model(tmp_path)


def test_a_peft_object_is_merged_in_a_copy() -> None:
    wrapped = adapted(tiny("llama"))
    expected = logits(wrapped)
    with pytest.warns(UserWarning, match="merged into a copy"):
        model = load_model(wrapped)
    torch.testing.assert_close(model.plain_logits(TOKENS), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(wrapped), expected)
    assert any("lora_A" in name for name, _ in wrapped.named_parameters())


def test_a_peft_object_whose_adapter_does_not_count_is_refused() -> None:
    peft = pytest.importorskip("peft", reason="the package peft (mechrep[peft]) is not installed")
    wrapped = adapted(tiny("llama"))
    with wrapped.disable_adapter(), pytest.raises(ModelError, match="switched off"):
        load_model(wrapped)
    with pytest.raises(ModelError, match="an adapter that is not merged"):
        load_model(wrapped.get_base_model())
    settings = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="learned prompts"):
        load_model(peft.get_peft_model(fresh("llama"), settings))


# --- quantised folders ---------------------------------------------------------------------------------------------


def test_fp8_weights_are_unpacked(tmp_path: Path) -> None:
    module = fresh("llama", hidden_size=64)
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    save(module, tmp_path, quantization_config=settings)
    packed, expected = {}, {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        packed[name] = expected[name] = weight
        if "proj" in name:
            blocks = weight.reshape(weight.shape[0] // 16, 16, weight.shape[1] // 16, 16)
            scale = blocks.abs().amax((1, 3)) / 448
            eight = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            packed[name], packed[f"{name}_scale_inv"] = eight.reshape(weight.shape), scale
            expected[name] = (eight.float() * scale[:, None, :, None]).reshape(weight.shape)
    save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    module.load_state_dict(expected)
    with pytest.warns(UserWarning, match="'fp8', unpacked"):
        model = load_model(tmp_path)
    torch.testing.assert_close(model.plain_logits(TOKENS), logits(module), atol=1e-4, rtol=1e-4)
    with pytest.warns(UserWarning, match="unpacked"):
        half = load_model(tmp_path, dtype="bfloat16", check=False).plain
    assert half is not None
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "packed by 'gptq'"),
        ({"quant_method": "awq", "bits": 4}, "packed by 'awq'"),
        ({"quant_method": "nonsense"}, "packed by 'nonsense'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"mechrep\[bnb\]"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"mechrep\[bnb\]"),
    ],
)
def test_packed_weights_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    if "bnb" in complaint and importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    save(tiny("llama"), tmp_path, quantization_config=settings)
    with pytest.raises(ModelError, match=complaint):
        load_model(tmp_path)


# --- objects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda module: nn.DataParallel(torch.compile(module))]
)
def test_wrappers_of_training_are_taken_off(wrap: Any) -> None:
    module = fresh("llama")
    model = load_model(wrap(module))
    assert model.plain is module
    torch.testing.assert_close(model.plain_logits(TOKENS), logits(tiny("llama")))


def test_objects_that_cannot_be_hooked_where_they_stand_are_refused() -> None:
    compiled: Any = fresh("llama")
    compiled.model.layers[1] = torch.compile(compiled.model.layers[1])
    in_place: Any = fresh("llama")
    in_place.model.layers[0].compile()
    partly: Any = fresh("llama")
    partly.model.layers[1].to("meta")
    quantised: Any = fresh("llama")
    quantised.hf_quantizer = object()
    for module, complaint in (
        (compiled, "compiled"),
        (in_place, "compiled"),
        (fresh("llama").to("meta"), "not loaded"),
        (partly, "not loaded"),
        (quantised, "quantised"),
    ):
        with pytest.raises(ModelError, match=complaint):
            load_model(module)


def test_a_resized_vocabulary_is_followed_where_all_of_it_was_resized() -> None:
    module: Any = fresh("llama")
    module.resize_token_embeddings(70, mean_resizing=False)
    model = load_model(module)
    assert model.anatomy.d_vocab == model.plain_logits(TOKENS).shape[-1] == 70
    module = fresh("llama")
    module.set_input_embeddings(nn.Embedding(70, 32))
    with pytest.raises(ModelError, match="70 embeddings and 61 outputs"):
        load_model(module)


def test_an_encoder_object_is_refused_and_its_decoder_is_not() -> None:
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    with pytest.raises(ModelError, match="an encoder"):
        load_model(transformers.RobertaForCausalLM(transformers.RobertaConfig(**sizes, num_attention_heads=4)))


# --- devices and types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "CPU0"])
def test_what_is_no_device_is_one_error(device: Any) -> None:
    for spec in ("mechrep-tiny", tiny("llama")):
        with pytest.raises(InputError, match="device="):
            load_model(spec, device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:97", "mps", "meta"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for spec in ("mechrep-tiny", "nobody/no-such-model"):
        with pytest.raises(InputError, match=f"device='{device}'"):
            load_model(spec, device=device)


def test_a_type_may_be_given_by_name() -> None:
    for name in ("bfloat16", "torch.bfloat16", torch.bfloat16):
        assert load_model("mechrep-tiny", dtype=name).dtype == torch.bfloat16
    assert load_model("mechrep-tiny", dtype="auto").dtype == torch.float32
    for wrong in ("bf17", "int8", torch.int8):
        with pytest.raises(InputError, match="dtype="):
            load_model("mechrep-tiny", dtype=wrong)


def test_auto_keeps_the_type_of_the_file(tmp_path: Path) -> None:
    save(fresh("llama").to(torch.bfloat16), tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_a_device_map_is_followed_and_weights_that_are_kept_aside_are_refused(tmp_path: Path) -> None:
    save(tiny("llama"), tmp_path)
    for device_map in ("cpu", {"": "cpu"}):
        model = load_model(tmp_path, device="cpu", device_map=device_map)
        torch.testing.assert_close(model.plain_logits(TOKENS), logits(tiny("llama")))
    aside = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    with pytest.raises(ModelError, match="keeps weights"):
        load_model(tmp_path, device_map=aside | {"lm_head": "meta"})
