"""``load_model``: from a name, a folder or an object to a checked :class:`~mechrep.models.model.Model`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.guards import guarded
from mechrep.models import tiny
from mechrep.models.adapters import is_adapted, merged_copy, read
from mechrep.models.checks import check_causal
from mechrep.models.contract import check_contract
from mechrep.models.model import Model
from mechrep.models.sources import Options, Reading, locate
from mechrep.models.state import is_compiled
from mechrep.models.tokenizers import as_tokenizer, fit_tokenizer
from mechrep.models.wrapped import quiet_boot


@guarded
def load_model(
    spec: Any,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Model:
    """Load a model by name, folder or object, and check that every analysis can rely on it.

    What is measured is what was given, or there is an error: weights that are missing, superfluous, of another size
    or not finite are refused by name, and so is a model that is no decoder.  What changed on the way (an adapter that
    was merged, a quantisation that was unpacked, a tokenizer with tokens that the model lacks) is a warning.

    Args:
        spec: ``"mechrep-tiny"`` (embedded, no network); a hub name; a local folder in Hugging Face format; a GGUF
            file (``mechrep[gguf]``); an adapter's folder or hub name, merged into its base (``mechrep[peft]``); a
            Hugging Face model object (shared, not consumed; compiled and data-parallel ones are unwrapped, and a
            ``PeftModel`` is merged in a copy); a ``TransformerBridge``; a ``HookedTransformer`` (TransformerLens 3);
            or a :class:`Model`, which is returned as it is.
        revision: checkpoint of an embedded or hub model, e.g. ``"step512"``.
        dtype: type of the weights, as ``torch.bfloat16`` or ``"bfloat16"``; ``"auto"``: the checkpoint's own.
            Default: the checkpoint's own, but float32 on the CPU, because half precision flips greedy paths (what else
            it changes is measured in ``docs/trust.md``).
        device: default: CUDA where there is one, else the CPU.
        device_map: spread a model over several devices, through accelerate: ``"auto"``, or names of parts with devices.
            Reading, scoring, edits and decoding follow the device of each layer; weights that are kept aside on disk
            are refused, and so is such a model for the workers of a cluster.
        tokenizer: instead of the model's own, or for objects that do not bring one: a Hugging Face tokenizer, a
            ``tokenizers.Tokenizer``, a path or a hub name.
        trust_remote_code: run code that comes with the model; only if you say so.
        check: run :func:`~mechrep.models.contract.check_contract`.

    Returns:
        A :class:`Model` in evaluation mode, usable as a TransformerLens model.

    Raises:
        ModelError: unknown name, unreadable or incomplete folder, weights of another model, an unknown revision, a
            tokenizer that is none, an option that a model object does not meet, or a broken contract.
        InputError: a device or dtype that does not exist.

    Example:
        >>> import mechrep
        >>> mechrep.load_model("mechrep-tiny").anatomy.n_layers
        4
    """
    dtype, place = _as_dtype(dtype), _as_device(device)
    if isinstance(spec, (str, Path)):
        chosen = place if place is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _require_device(chosen)
        if dtype is None:
            dtype = torch.float32 if chosen.type == "cpu" or str(spec) in tiny.NAMES else "auto"
        options = Options(revision, dtype, device_map, trust_remote_code)
        loaded, notes = _load_named(str(spec), options, chosen, tokenizer)
    else:
        loaded, notes = (spec, []) if isinstance(spec, Model) else _wrap_object(spec, tokenizer)
        _refuse_changes(loaded, Options(revision, dtype or "auto", device_map), place)
    if isinstance(spec, Model):
        _keep_tokenizer(as_tokenizer(tokenizer), spec.tokenizer)
        return spec
    if loaded.anatomy.n_layers < 1:
        raise ModelError(str(spec), "a model with layers", "choose another model")
    if check:
        with quiet_boot():
            check_contract(loaded)
    for note in notes:
        warnings.warn(f"{loaded.name}: {note}", stacklevel=2)
    return loaded


def _as_dtype(given: torch.dtype | str | None) -> torch.dtype | str | None:
    """A type of weights from its name; ``"auto"`` and ``None`` stay."""
    if given is None or given == "auto":
        return given
    named = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if named not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise InputError(
            f"dtype={given!r}", "float32, bfloat16, float16, float64 or 'auto'", "pass one, by name or as torch.dtype"
        )
    return named


def _as_device(given: str | torch.device | None) -> torch.device | None:
    try:
        return None if given is None else torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device={given!r}", "a device of torch: 'cpu', 'cuda', 'cuda:0', 'mps'", "name one"
        ) from error


def _require_device(device: torch.device) -> None:
    """Refuse a device that this machine lacks, before anything is read."""
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    found += ["mps"] if torch.backends.mps.is_available() else []
    if device.type not in {name.split(":")[0] for name in found} or (
        device.index is not None and device.type == "cuda" and str(device) not in found
    ):
        raise InputError(
            f"device={str(device)!r}",
            f"a device of this machine: {', '.join(found)}",
            "leave device out to use the best one; for CUDA, see whether torch.cuda.is_available()",
        )


def _refuse_changes(loaded: Model, asked: Options, device: torch.device | None) -> None:
    """A model object stays as it is: wishes that it does not meet are refused, not forgotten."""
    own = loaded.device
    unmet = {
        "revision": asked.revision is not None and asked.revision != loaded.revision,
        "dtype": asked.dtype not in ("auto", loaded.dtype),
        "device": device is not None
        and (device.type, own.index if device.index is None else device.index) != (own.type, own.index),
        "device_map": asked.device_map is not None,
    }
    if any(unmet.values()):
        names = ", ".join(name for name, is_unmet in unmet.items() if is_unmet)
        raise ModelError(
            f"{names} for a model object", "the object as it is", "convert or move it before, or load it by name"
        )


def _keep_tokenizer(given: Any, own: Any) -> None:
    """Refuse a tokenizer beside one that the object has already: two would read a text in two ways."""
    if given is not None and (own is None or given.get_vocab() != own.get_vocab()):
        raise ModelError(
            "a tokenizer for a model object that has " + ("none" if own is None else "another"),
            "the object as it is",
            "leave tokenizer= out, or load the model again with it",
        )


def _load_named(name: str, options: Options, device: torch.device, tokenizer: Any) -> tuple[Model, list[str]]:
    given = as_tokenizer(tokenizer, trust_remote_code=options.trust_remote_code)
    if name in tiny.NAMES:
        if given is not None or options.device_map is not None:
            raise InputError(
                f"tokenizer= or device_map= for {name!r}", "its own tokenizer and one device", "leave them out"
            )
        dtype = options.dtype if isinstance(options.dtype, torch.dtype) else torch.float32
        module, own = tiny.load(name, options.revision, dtype=dtype)
        return _two_views(module.to(device), own, name, options.revision), []
    source = locate(name)
    if options.revision is not None and source.local:
        raise ModelError(
            f"revision {options.revision!r} of the folder {name!r}", "no revision", "give the folder of that checkpoint"
        )
    found = read(source, options, tokenizer=given is None)
    found.tokenizer = given if given is not None else found.tokenizer
    if options.device_map is None:
        found.module.to(device)
    elif any(weight.is_meta for weight in found.module.parameters()):
        raise ModelError(
            f"device_map={options.device_map!r}, which keeps weights of {name!r} aside and moves them in for each call",
            "room for all weights on devices that compute",
            "use more or larger devices, or a smaller dtype",
        )
    model, notes = _fitted(found, name, options.revision)
    model.name = source.called
    return model, notes


def _fitted(found: Reading, name: str, revision: str | None) -> tuple[Model, list[str]]:
    tokenizer, notes = fit_tokenizer(found.tokenizer, _check_vocabulary(name, found.module), found.module.config)
    return _two_views(found.module, tokenizer, name, revision), [*found.notes, *notes]


def _check_vocabulary(name: str, module: nn.Module) -> int:
    """Rows of the embedding, which the configuration and the output have to state alike."""
    model: Any = module
    stated, rows = model.config.get_text_config().vocab_size, model.get_input_embeddings().weight.shape[0]
    output = model.get_output_embeddings()
    if output is not None and not isinstance(output.weight, Tensor):
        raise ModelError(
            f"{name!r}, whose unembedding ({type(output).__module__}.{type(output).__name__}) has no matrix of weights",
            "weights that can be read",
            "give the model before torch quantised it",
        )
    heads = rows if output is None else output.weight.shape[0]
    if not stated == rows == heads:
        raise ModelError(
            f"{name!r} with {rows} embeddings and {heads} outputs, whose configuration says {stated}",
            "one number of tokens",
            "resize with resize_token_embeddings, which changes all three",
        )
    return rows


def _two_views(module: nn.Module, tokenizer: Any, name: str, revision: str | None) -> Model:
    """The one place where a Hugging Face module becomes a :class:`Model`."""
    return Model(None, module.eval(), tokenizer=tokenizer, name=name, revision=revision)


def _wrap_object(spec: Any, tokenizer: Any) -> tuple[Model, list[str]]:
    """A model object: Hugging Face, ``TransformerBridge`` or ``HookedTransformer``."""
    given = as_tokenizer(tokenizer)
    if hasattr(spec, "hook_dict") and hasattr(spec, "cfg"):
        own, is_bridge = getattr(spec, "tokenizer", None), hasattr(spec, "original_model")
        if own is not None:
            _keep_tokenizer(given, own)
        processed = is_bridge and bool(getattr(spec, "compatibility_mode", False))
        spec.eval()  # dropout is off from here on
        model = Model(
            spec,
            spec.original_model if is_bridge and not processed else None,
            tokenizer=given if own is None else own,
            name=str(getattr(spec.cfg, "model_name", "HookedTransformer")),
            revision=None,
        )
        model.processed = processed
        return model, []
    if not isinstance(spec, nn.Module):
        raise _no_model(spec)
    module, notes = _unwrapped(spec)
    if module.training:
        notes.append("was in training mode, and is in evaluation mode now")
    if not hasattr(module, "config") or not hasattr(module, "generate"):
        raise _no_model(module)
    name = str(getattr(module.config, "name_or_path", "") or type(module).__name__)
    check_causal(name, module.config)
    _check_place(name, module)
    return _fitted(Reading(module, given, notes), name, None)


def _no_model(spec: Any) -> ModelError:
    return ModelError(
        f"an object of type {type(spec).__name__}",
        "a name, a folder, a Hugging Face causal language model, a TransformerBridge or a HookedTransformer",
        "pass one of these to load_model; of a Hugging Face model the whole, with its head for the next token",
    )


def _unwrapped(spec: nn.Module) -> tuple[Any, list[str]]:
    """The module inside the wrappers of compiling, data parallelism and peft."""
    module: Any = spec
    notes: list[str] = []
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif hasattr(module, "_orig_mod"):  # torch.compile
            module = module._orig_mod
        elif is_adapted(module):
            module = merged_copy(module)
            notes.append("a PeftModel: its adapter was merged into a copy of the base; later changes to it do not show")
        else:
            return module, notes


def _check_place(name: str, module: nn.Module) -> None:
    """Refuse what cannot be hooked where it stands: unloaded or spread weights, compiled or adapted parts."""
    devices = sorted({str(weight.device) for weight in module.parameters()})
    parts = [part for part in module.modules() if part is not module]
    complaint = ""
    if "meta" in devices:
        complaint = "weights that are not loaded (on the device 'meta')"
    elif len(devices) > 1:
        complaint = f"weights on several devices ({', '.join(devices)})"
    elif is_compiled(module.modules()):
        complaint = "compiled parts, in which hooks can be passed over"
    elif any(hasattr(part, "lora_A") or hasattr(part, "base_layer") for part in parts):
        complaint = "an adapter that is not merged"
    elif hasattr(module, "hf_quantizer"):
        complaint = "quantised weights, which analyses cannot read"
    if complaint:
        raise ModelError(
            f"a model object {name!r} with {complaint}",
            "a plain module on one device",
            "load it by name (adapters: save_pretrained, then that folder; several devices: device_map=; quantised: "
            "module.dequantize()), or give the object as it was before",
        )
