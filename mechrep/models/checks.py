"""Whether what was read is the model that its configuration names, and one that predicts the next token.

transformers warns where a file holds other weights than its configuration names, and goes on.  Here that is an error:
another model would be measured.  What is left out on purpose (heads for several tokens at once, the vision tower of a
text decoder) is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mechrep.errors import ModelError

# Buffers of older files: masks, positions and rotary frequencies, all computed anew from the configuration.
_BUFFERS = re.compile(r"(rotary_emb\.(\w+_)?inv_freq|(attn|attention)\.(masked_)?bias|position_ids)$")
_LATER_TOKENS = re.compile(r"(^|\.)mtp(\.|_)")  # heads that predict several tokens at once
_SENSES = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|mm_|embed_vision|embed_audio|image_|connector)")
_LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")
_OTHER_HEADS = re.compile(r"Classification|QuestionAnswering|MultipleChoice|MaskedLM|Reward|NextSentence")


def check_causal(name: str, config: Any, *, saved: bool = False) -> None:
    """Refuse what does not predict the next token: encoders, encoder-decoders, heads for classes.

    Args:
        name: how the user named it.
        config: its configuration.
        saved: it is about to be read, so what it was saved as decides too.

    Raises:
        ModelError: naming what it is.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind, heads = config.model_type, ", ".join(getattr(config, "architectures", None) or [])
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    decoder = getattr(config, "is_decoder", False)
    complaint = ""
    if getattr(config, "is_encoder_decoder", False):
        complaint = "an encoder-decoder, whose decoder cannot be read alone"
    elif saved and _OTHER_HEADS.search(heads) and not decoder:
        complaint = f"saved as {heads}, without a head for the next token"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not (decoder or getattr(config, "causal", False)):
        complaint = "an encoder, where every position sees the whole text"
    elif saved and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not (remote or is_wrapper(config)):
        complaint = "which transformers does not know as a causal language model"
    if complaint:
        raise ModelError(
            f"{name!r} ({kind}), {complaint}",
            "a causal language model, where each position predicts the next token from those before",
            "choose a decoder; if this one contains a decoder, give that, as an object",
        )


_MOST_PER_BYTE = 16  # weights of two bits, with room


def check_declared(name: str, config: Any, n_bytes: int) -> None:
    """Refuse a configuration of far more weights than its files have room for, before room is made for them.

    Args:
        name: how the user named it.
        config: its configuration.
        n_bytes: size of the files of weights.

    Raises:
        ModelError: naming the sizes.
    """
    text = config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads")
    sizes = {name: size for name in names if isinstance(size := getattr(text, name, None), int)}
    wide = sizes.get("hidden_size", 1)
    if any(size < 0 or size * wide > n_bytes * _MOST_PER_BYTE for key, size in sizes.items() if key != "hidden_size"):
        listed = ", ".join(f"{key} {size:,}" for key, size in sizes.items())
        raise ModelError(
            f"{name!r}, whose configuration says {listed}, with {n_bytes:,} bytes of weights",
            "a configuration of the weights that are there",
            "give the folder its own config.json",
        )


def is_wrapper(config: Any) -> bool:
    """Whether it is a vision-language model that transformers knows as such alone."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    kind = type(config)
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING


def check_report(name: str, config: Any, module: Any, report: dict[str, Any], in_file: Iterable[str] = ()) -> list[str]:
    """Refuse weights that are missing, of another size, or without a place; say what is left out on purpose.

    Args:
        name: how the user named it.
        config: its configuration; a vision-language model's names a text decoder that may be read alone.
        module: what was read.
        report: transformers' ``output_loading_info``.
        in_file: names of all weights of its file, as far as they are known.

    Returns:
        What to tell the user.

    Raises:
        ModelError: naming the weights.
    """
    wraps = config.get_text_config() is not config
    if report["mismatched_keys"]:
        listed = [f"{key} {_shape(have)} where config.json makes it {_shape(want)}"
                  for key, have, want in sorted(report["mismatched_keys"])]  # fmt: skip
        raise ModelError(
            f"weights of {name!r} of another size: {_some(listed)}",
            "the sizes that config.json names",
            "give the folder its own config.json",
        )
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelError(
            f"weights of {name!r} without {_some(sorted(report['missing_keys']))}",
            "all weights of the architecture that its configuration names",
            "save the whole model with save_pretrained",
        )
    surplus = [key for key in sorted(report["unexpected_keys"]) if not _BUFFERS.search(key)]
    wrong = [key for key in surplus if not (_predicts_later_tokens(key, config) or (wraps and _SENSES.search(key)))]
    if wrong:
        lora = any("lora_" in key for key in wrong)
        deeper = any(_layers_beyond(key, config) >= 0 for key in wrong)
        mend = "correct num_hidden_layers in config.json" if deeper else "take them out of the file"
        mend = "merge the adapter (merge_and_unload) and save that" if lora else mend
        raise ModelError(
            f"weights of {name!r} that {type(module).__name__} has no place for: {_some(wrong)}",
            "the weights of the architecture that its configuration names, else another model is measured",
            f"{mend}; if these weights do not matter, load it with transformers and give the object",
        )
    left_out = sorted({*surplus, *_ignored_on_purpose(module, in_file)})
    return [f"left out, as transformers does: {_some(left_out)}"] if left_out else []


def _predicts_later_tokens(key: str, config: Any) -> bool:
    """Whether a weight belongs to the heads for several tokens at once, behind the last layer."""
    more = getattr(config.get_text_config(), "num_nextn_predict_layers", 0) or 0
    return 0 <= _layers_beyond(key, config) < more or bool(_LATER_TOKENS.search(key))


def _layers_beyond(key: str, config: Any) -> int:
    """How far behind the last layer a weight lies; negative within the model."""
    layer = _LAYER.search(key)
    return int(layer.group(1)) - config.get_text_config().num_hidden_layers if layer else -1


def _ignored_on_purpose(module: Any, in_file: Iterable[str]) -> list[str]:
    """Weights in the file that the architecture tells transformers not to report."""
    patterns = [*(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or [])]
    if not patterns:
        return []
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return [key for key in in_file if ignored.search(key) and not _BUFFERS.search(key)]


def check_finite(name: str, module: nn.Module) -> None:
    """Refuse weights that are not numbers: every later value would be none either.

    Raises:
        ModelError: naming the tensor.
    """
    for key, weight in module.named_parameters():
        if weight.numel() and weight.is_floating_point() and weight.element_size() > 1:
            low, high = torch.aminmax(weight.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise ModelError(
                    f"{name!r}, whose weight {key} is not finite (NaN or infinite values)",
                    "weights that are numbers",
                    "take an earlier checkpoint; in float16, large weights overflow: convert to bfloat16 or float32",
                )


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
