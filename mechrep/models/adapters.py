"""Adapters (LoRA and its kind): a base and a small change to its weights, merged into one plain model."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from mechrep.disk import read_json
from mechrep.errors import ModelError
from mechrep.models.sources import Options, Reading, Source, listening, locate, read_model
from mechrep.models.tokenizers import first_line, has_tokenizer, read_tokenizer
from mechrep.models.wrapped import quiet_boot


def read(source: Source, options: Options, *, tokenizer: bool = True) -> Reading:
    """The module and tokenizer of a source; of an adapter, its base with the adapter merged into the weights.

    Args:
        source: where the model or the adapter lies.
        options: how to load; the revision is the adapter's.
        tokenizer: read one too: the adapter's, else its base's.

    Raises:
        ModelError: it cannot be read, the base of an adapter cannot, peft is not installed, or the two do not fit.
    """
    settings = _adapter_settings(source, options)
    if settings is None:
        return read_model(source, options, tokenizer=tokenizer)
    base, kind = settings.get("base_model_name_or_path"), settings.get("peft_type", "")
    what = f"{source.name!r}: this is an adapter ({kind or 'of unknown kind'})"
    if not base:
        raise ModelError(what, "an adapter that names its base", "merge it into its base and load that model")
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{what} for {base!r}", "the package peft, to merge it", "pip install 'mechrep[peft]', or merge it yourself"
        )
    if not _has_weights(source, options.revision):
        raise ModelError(
            f"{what} without adapter_model.safetensors", "its weights as safetensors", "save it again with peft"
        )
    try:
        based = replace(options, revision=settings.get("revision"))
        found = read_model(_base(str(base), source), based, tokenizer=tokenizer)
    except ModelError as error:
        raise ModelError(
            f"{what} for the base {base!r}, which cannot be loaded ({error.given})",
            "a base that can be loaded: an existing folder, or a hub name that can be reached",
            "write its place into base_model_name_or_path of adapter_config.json, or merge the adapter with peft "
            f"(merge_and_unload) and load that; for the base: {error.remedy}",
        ) from error
    with listening(source) as said:
        module = _merge(source, what, found.module, options.revision)
        own = found.tokenizer
        if tokenizer and source.local and has_tokenizer(Path(source.where)):
            own = read_tokenizer(source.where, trust_remote_code=options.trust_remote_code)
    note = f"an adapter ({kind}), merged into its base {base!r}"
    return Reading(module, own, [note, *found.notes, *said])


def _adapter_settings(source: Source, options: Options) -> dict[str, Any] | None:
    """What ``adapter_config.json`` says, if there is one."""
    if source.gguf:
        return None
    from transformers.utils.peft_utils import find_adapter_config_file

    with listening(source):
        try:
            file = find_adapter_config_file(
                source.where,
                revision=options.revision or "main",
                local_files_only=source.local or source.offline,
            )
        except (OSError, ValueError):  # the model itself will not be found either, and says so better
            return None
    if file is None:
        return None
    try:
        return read_json(Path(file))
    except ValueError as error:
        raise ModelError(
            f"adapter {source.name!r}", "adapter_config.json as JSON", f"save the adapter again: {error}"
        ) from error


def _has_weights(source: Source, revision: str | None) -> bool:
    from transformers.utils.hub import has_file

    with listening(source):
        try:
            return has_file(
                source.where, "adapter_model.safetensors", revision=revision, local_files_only=source.offline
            )
        except OSError:  # what peft says of it tells more
            return True


def _base(name: str, adapter: Source) -> Source:
    """The base; a relative path may be meant from the adapter's folder."""
    beside = Path(adapter.where) / name
    if adapter.local and not Path(name).expanduser().exists() and beside.is_dir():
        return locate(str(beside))
    return locate(name)


def _merge(source: Source, what: str, base: nn.Module, revision: str | None) -> nn.Module:
    import peft

    options: dict[str, Any] = {"revision": revision} if revision else {}
    to_do = "check that the adapter was trained on this base, or merge it with peft (merge_and_unload) and load that"
    try:
        settings: Any = peft.PeftConfig.from_pretrained(source.where, **options)
        if settings.is_prompt_learning:
            raise ModelError(what, "an adapter of weights, which can be merged", "learned prompts: give the base")
        settings.inference_mode = True
        _resize(source, base, revision)
        wrapped: Any = peft.PeftModel(base, settings)  # pyright: ignore[reportArgumentType]
        report = wrapped.load_adapter(source.where, "default", **options)
        # Resized embeddings are saved twice, the second time under a name that nothing has.
        surplus = [key for key in report.unexpected_keys if not key.endswith(".modules_to_save.weight")]
        if report.missing_keys or surplus:
            names = sorted([*report.missing_keys, *surplus])[:3]
            raise ModelError(f"{what} whose weights do not fit its settings: {', '.join(names)}", "a whole one", to_do)
        return wrapped.merge_and_unload()
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{what} that does not fit its base", "the base it was trained on",
                         f"{to_do}; peft said: {first_line(error)}") from error  # fmt: skip


def _resize(source: Source, base: Any, revision: str | None) -> None:
    """As many embeddings as the adapter brings, where it was trained with new tokens."""
    from transformers.utils.hub import cached_file

    file = cached_file(source.where, "adapter_model.safetensors", revision=revision)
    own = base.get_input_embeddings().weight
    (name,) = (name for name, weight in base.named_parameters() if weight is own)
    with safe_open(file, "pt") as weights:
        key = f"base_model.model.{name}"
        rows = weights.get_slice(key).get_shape()[0] if key in weights.keys() else len(own)  # noqa: SIM118
    if rows != len(own):
        base.resize_token_embeddings(rows, mean_resizing=False)


def is_adapted(module: Any) -> bool:
    """Whether an object is peft's: a base wrapped with an adapter."""
    if "peft" not in sys.modules:
        return False
    import peft

    return isinstance(module, (peft.PeftModel, peft.PeftMixedModel))


def merged_copy(wrapped: Any) -> nn.Module:
    """A plain copy of a ``PeftModel`` with its active adapters merged into the weights.

    Raises:
        ModelError: its adapter cannot be merged, or is switched off.
    """
    to_do = "give the base, or the model that merge_and_unload returns"
    what = f"an object of type {type(wrapped).__name__}"
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise ModelError(f"{what} with learned prompts", "an adapter of weights, which can be merged", to_do)
    if any(getattr(part, "disable_adapters", False) is True for part in wrapped.modules()):
        raise ModelError(f"{what} whose adapter is switched off", "an adapter that is on", to_do)
    try:
        with quiet_boot():
            return copy.deepcopy(wrapped).merge_and_unload()
    except (ValueError, NotImplementedError) as error:
        raise ModelError(f"{what}", "an adapter that can be merged", f"{to_do}; peft said: {error}") from error
