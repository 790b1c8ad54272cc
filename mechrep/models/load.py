"""``load_model``: from a name, a folder or an object to a checked :class:`~mechrep.models.model.Model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from mechrep.errors import ModelError
from mechrep.models import tiny
from mechrep.models.contract import check_contract
from mechrep.models.model import Model, bridge, quiet_boot, twin_sharing_parameters


def load_model(
    spec: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Model:
    """Load a model by name, folder or object, and check that every analysis can rely on it.

    Args:
        spec: ``"mechrep-tiny"`` (embedded, no network); a hub name; a local folder in Hugging Face format; a Hugging
            Face model object (shared, not consumed); a ``TransformerBridge``; a ``HookedTransformer``
            (TransformerLens 3); or a :class:`Model`, which is returned as it is.
        revision: checkpoint of an embedded or hub model, e.g. ``"step512"``.
        dtype: type of the weights.  Default: the checkpoint's own, but float32 on the CPU, because half precision
            flips greedy paths.
        device: default: CUDA where there is one, else the CPU.
        device_map: spread a model over several devices, through TransformerLens and accelerate; such a model has the
            TransformerLens view only.
        tokenizer: for model objects that do not bring one.
        trust_remote_code: run code that comes with the model; only if you say so.
        check: run :func:`~mechrep.models.contract.check_contract`.

    Returns:
        A :class:`Model` in evaluation mode, usable as a TransformerLens model.

    Raises:
        ModelError: unknown name, unreadable or incomplete folder, unknown revision, an option that a model object does
            not meet, or a broken contract.

    Example:
        >>> import mechrep
        >>> mechrep.load_model("mechrep-tiny").anatomy.n_layers
        4
    """
    if isinstance(spec, (str, Path)):
        loaded = _load_named(str(spec), revision, dtype, device, device_map, tokenizer, trust_remote_code)
    else:
        loaded = spec if isinstance(spec, Model) else _wrap_object(spec, tokenizer)
        _refuse_changes(loaded, revision, dtype, device, device_map)
    if isinstance(spec, Model):
        return spec
    if loaded.anatomy.n_layers < 1:
        raise ModelError(str(spec), "a model with layers", "choose another model")
    for view in (loaded.tl, loaded.plain):
        if view is not None:
            view.eval()
    if check:
        with quiet_boot():
            check_contract(loaded)
    return loaded


def _refuse_changes(
    loaded: Model,
    revision: str | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    device_map: str | dict[str, Any] | None,
) -> None:
    """A model object stays as it is: wishes that it does not meet are refused, not forgotten."""
    unmet = {
        "revision": revision is not None and revision != loaded.revision,
        "dtype": dtype is not None and dtype != loaded.dtype,
        "device": device is not None and torch.device(device).type != loaded.device.type,
        "device_map": device_map is not None,
    }
    if any(unmet.values()):
        asked = ", ".join(name for name, is_unmet in unmet.items() if is_unmet)
        raise ModelError(
            f"{asked} for a model object", "the object as it is", "convert or move it before, or load it by name"
        )


def _load_named(
    name: str,
    revision: str | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    device_map: str | dict[str, Any] | None,
    tokenizer: Any,
    trust_remote_code: bool,
) -> Model:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = dtype if dtype is not None else (torch.float32 if device.type == "cpu" else "auto")
    if name in tiny.NAMES:
        module, tokenizer = tiny.load(name, revision, dtype=dtype or torch.float32)
        return _two_views(module.to(device), tokenizer, name, revision)
    source = _local_or_hub(name)
    if revision is not None and source.startswith("/"):
        raise ModelError(
            f"revision {revision!r} of the folder {name!r}", "no revision", "give the folder of that checkpoint"
        )
    if device_map is not None:
        return _spread(source, revision, chosen, device_map, trust_remote_code, name)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if source.startswith("/"):
        options["local_files_only"] = True
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        with quiet_boot():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=chosen, trust_remote_code=trust_remote_code, output_loading_info=True, **options
            )
            module, report = loaded
            if tokenizer is None and _has_tokenizer(source):
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        raise ModelError(
            f"model {name!r}" + (f" at revision {revision!r}" if revision else ""),
            f"one of the embedded models ({', '.join(tiny.NAMES)}), a hub name that can be reached, or a local folder "
            "with config.json and weights",
            f"check the spelling and the network; the loader said: {(str(error) or repr(error)).splitlines()[0]}",
        ) from error
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelError(
            f"weights of {name!r} without {', '.join(sorted(report['missing_keys'])[:3])}",
            "all weights of the architecture that config.json names",
            "save the whole model with save_pretrained",
        )
    return _two_views(module.to(device), tokenizer, name, revision)


def _local_or_hub(name: str) -> str:
    """An absolute path for a folder; the name itself for the hub; an error for a path that is not there."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"folder {name!r} without config.json", "a model in Hugging Face format", "save it with save_pretrained"
            )
        return str(path.resolve())
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.is_file()
    if looks_like_path or not name.strip():
        raise ModelError(f"path {name!r}", "an existing folder with config.json and weights", "check the path")
    return name


def _has_tokenizer(source: str) -> bool:
    """Hub models bring a tokenizer; a local folder may hold bare weights."""
    folder = Path(source)
    return not folder.is_dir() or any(
        (folder / file).exists()
        for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    )


def _two_views(module: nn.Module, tokenizer: Any, name: str, revision: str | None) -> Model:
    module.eval()
    dtype = next(module.parameters()).dtype
    try:
        tl = bridge(twin_sharing_parameters(module), tokenizer, name, dtype)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"{name!r} of class {type(module).__name__}",
            "a decoder that TransformerLens knows",
            f"see TransformerLens' list of architectures; it said: {error}",
        ) from error
    return Model(tl, module, tokenizer=tokenizer, name=name, revision=revision)


def _spread(
    source: str, revision: str | None, dtype: Any, device_map: Any, trust_remote_code: bool, name: str
) -> Model:
    """A model over several devices: loaded by TransformerLens itself, its own wrapped module as the plain view."""
    from transformer_lens.model_bridge import TransformerBridge

    options: dict[str, Any] = {"revision": revision} if revision else {}
    dtype = torch.bfloat16 if dtype == "auto" else dtype
    with quiet_boot():
        tl = TransformerBridge.boot_transformers(
            source, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code, **options
        )
    return Model(tl, tl.original_model, tokenizer=tl.tokenizer, name=name, revision=revision)


def _wrap_object(spec: Any, tokenizer: Any) -> Model:
    """A model object: Hugging Face, ``TransformerBridge`` or ``HookedTransformer``."""
    if hasattr(spec, "original_model") and hasattr(spec, "hook_dict"):
        processed = bool(getattr(spec, "compatibility_mode", False))
        model = Model(
            spec,
            None if processed else spec.original_model,
            tokenizer=tokenizer or spec.tokenizer,
            name=str(spec.cfg.model_name),
            revision=None,
        )
        model.processed = processed
        return model
    if hasattr(spec, "hook_dict") and hasattr(spec, "cfg"):
        name = str(getattr(spec.cfg, "model_name", "HookedTransformer"))
        return Model(spec, None, tokenizer=tokenizer or getattr(spec, "tokenizer", None), name=name, revision=None)
    if isinstance(spec, nn.Module) and hasattr(spec, "config") and hasattr(spec, "generate"):
        name = str(getattr(spec.config, "name_or_path", "") or type(spec).__name__)
        return _two_views(spec, tokenizer, name, None)
    raise ModelError(
        f"an object of type {type(spec).__name__}",
        "a name, a folder, a Hugging Face causal language model, a TransformerBridge or a HookedTransformer",
        "pass one of these to load_model",
    )
