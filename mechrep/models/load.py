"""``load_model``: from a name, a folder or an object to a checked :class:`~mechrep.models.model.Model`.

What every analysis relies on, checked by running the model once when it is loaded.

A hook that never fires, a pattern that is not one, or two views that disagree would turn every later number into
nonsense without a word.  So a model that breaks one of these promises is refused, with the reason.

Models that know nothing: copies of a model whose weights are shuffled or drawn anew.

A score such as "share of attention on the first position" is never zero, not even in a model that was never trained:
what it is worth shows beside the same score on these copies.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mechrep.errors import ModelError
from mechrep.models import tiny
from mechrep.models.anatomy import Site
from mechrep.models.model import Model, bridge, quiet_boot, twin_sharing_parameters
from mechrep.models.reading import PLAIN_SITES, product_bias, read_activations

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


@torch.no_grad()
def check_contract(model: Model) -> None:
    """Run two short rows of ids through the model and refuse it with the first promise that it breaks.

    Checked: rows of the attention pattern sum to 1; ``MLP_POST`` is ``GATE_ACT`` (times the up-projection in a gated
    MLP); key and value heads have the stated number; removing all neurons of a layer changes the logits; the plain
    view gives the same logits and activations as the TransformerLens view.

    Raises:
        ModelError: naming the broken promise.
    """
    tolerance = _TOLERANCE.get(model.dtype, 2e-4)
    tokens = model.probe_tokens()
    layers = range(model.anatomy.n_layers)
    sites = [Site.PATTERN, Site.K, Site.GATE_ACT, Site.MLP_POST, *([Site.UP_PROJ] if model.anatomy.gated else [])]
    seen: dict[tuple[Site, int], Tensor] = {}

    def keep(activation: Tensor, site: Site, layer: int) -> None:
        seen[site, layer] = activation.detach().float().clone()

    read_activations(model, tokens, {site: layers for site in sites}, keep, view="transformer_lens")
    for layer in layers:
        _check_layer(model, seen, layer, tolerance)
    _check_edit_counts(model, tokens)
    if model.plain is not None:
        _check_views_agree(model, tokens, seen, tolerance)


def _check_layer(model: Model, seen: dict[tuple[Site, int], Tensor], layer: int, tolerance: float) -> None:
    anatomy = model.anatomy
    rows = seen[Site.PATTERN, layer].sum(-1)
    _require(model, (rows - 1).abs().max().item() <= max(tolerance, 1e-3), f"attention rows of layer {layer} sum to 1")
    kv_heads = seen[Site.K, layer].shape[-2]
    _require(
        model, kv_heads in (anatomy.n_kv_heads, anatomy.n_heads), f"layer {layer} has {anatomy.n_kv_heads} key heads"
    )
    post, expected = seen[Site.MLP_POST, layer], seen[Site.GATE_ACT, layer]
    _require(model, post.shape[-1] == anatomy.d_mlp, f"layer {layer} has {anatomy.d_mlp} neurons")
    if anatomy.gated:
        expected = expected * seen[Site.UP_PROJ, layer] + product_bias(model, layer)
        what = f"mlp_post of layer {layer} is act(gate) times the up-projection"
    else:
        what = f"mlp_post of layer {layer} is the activation function's output"
    scale = post.abs().max().clamp_min(1e-6)
    _require(model, ((post - expected).abs().max() / scale).item() <= tolerance, what)


def _check_edit_counts(model: Model, tokens: Tensor) -> None:
    """Each layer's neurons, removed together, must change the logits: else the hook does nothing."""
    clean = model.tl(tokens)
    for layer in {0, model.anatomy.n_layers // 2, model.anatomy.n_layers - 1}:
        name = model.anatomy.hook_name(Site.MLP_POST, layer)
        cut = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda activation, hook: torch.zeros_like(activation))])
        _require(
            model, bool((cut - clean).abs().max() > 0), f"removing all neurons of layer {layer} changes the logits"
        )


def _check_views_agree(model: Model, tokens: Tensor, seen: dict[tuple[Site, int], Tensor], tolerance: float) -> None:
    reference, plain = model.tl(tokens).float(), model.plain_logits(tokens).float()
    scale = reference.abs().max().clamp_min(1.0)
    _require(model, ((reference - plain).abs().max() / scale).item() <= tolerance, "both views give the same logits")
    differences: list[float] = []

    def compare(activation: Tensor, site: Site, layer: int) -> None:
        expected = seen[site, layer]
        _require(model, activation.shape == expected.shape, "both views give activations of the same shape")
        scale = expected.abs().max().clamp_min(1e-6)
        differences.append(((activation.float() - expected).abs().max() / scale).item())

    sites = {Site.GATE_ACT, Site.MLP_POST} & PLAIN_SITES
    read_activations(model, tokens, {site: range(model.anatomy.n_layers) for site in sites}, compare, view="plain")
    _require(model, max(differences) <= tolerance, "both views give the same neuron activations")


def _require(model: Model, holds: bool, promise: str) -> None:
    if not holds:
        raise ModelError(
            f"{model.name!r} ({model.anatomy.architecture})",
            f"that {promise}",
            "mechrep would measure something else on this model; load_model(..., check=False) skips the check",
        )


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
        check: run :func:`~mechrep.models.load.check_contract`.

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


_USUAL_SPREAD = 0.02  # of GPT-2's and most later initialisations; used where the configuration names none


def shuffled(model: Model, seed: int = 0, into: Model | None = None) -> Model:
    """A copy whose weights stand in random places: within every matrix and bias the entries are permuted.

    Sizes, the distribution of the entries and the norms' gains stay; what was learned is gone, outliers included: a
    giant row becomes giant entries all over its matrix.

    Args:
        model: stays as it is.
        seed: of the permutations.
        into: an earlier copy of this model that is no longer needed: it gets the new weights, where that is possible.

    Returns:
        A model of its own, named after the original.  It needs as much memory again.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> null = shuffled(model, seed=1)
        >>> null.name, bool((null.W_E == model.W_E).all())
        ('mechrep-tiny (shuffled, seed 1)', False)
        >>> bool((null.W_E.flatten().sort().values == model.W_E.flatten().sort().values).all())
        True
    """

    def permute(weight: Tensor, generator: torch.Generator) -> None:
        order = torch.randperm(weight.numel(), generator=generator, device=weight.device)
        weight.copy_(weight.flatten()[order].view_as(weight))

    return _edited_copy(model, permute, seed, f"shuffled, seed {seed}", into)


def reinitialised(model: Model, seed: int = 0, into: Model | None = None) -> Model:
    """A copy before training: every matrix normal with the configuration's ``initializer_range``, every bias zero.

    The norms' gains stay, so that the copy differs from the original in what it has learned and not in its scale.

    Args:
        model: stays as it is.
        seed: of the draws.
        into: as for :func:`shuffled`.

    Returns:
        A model of its own, named after the original.  It needs as much memory again.

    Example:
        >>> import mechrep
        >>> null = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> round(null.W_E.std().item(), 3)
        0.02
    """
    config = getattr(model.plain, "config", None) or getattr(model.tl, "cfg", None)
    spread = getattr(config, "initializer_range", None)
    # HookedTransformer marks "let me choose" with a negative number.
    spread = _USUAL_SPREAD if spread is None or spread <= 0 else float(spread)

    def draw(weight: Tensor, generator: torch.Generator) -> None:
        if weight.ndim < 2:
            weight.zero_()
        else:
            weight.normal_(0, spread, generator=generator)

    return _edited_copy(model, draw, seed, f"reinitialised, seed {seed}", into)


@torch.no_grad()
def _edited_copy(
    model: Model, edit: Callable[[Tensor, torch.Generator], None], seed: int, what: str, into: Model | None
) -> Model:
    """A deep copy with every parameter that is no norm's edited in place, and loaded again.

    An earlier copy is taken anew where all that its wrapped view holds are the plain module's own parameters.

    The plain module is copied and wrapped anew where it is not inside the wrapped one: where a family fuses query, key
    and value, the two views hold their own pieces, and edited apart they would be two different models.
    """
    wrapped: Any = getattr(model.tl, "original_model", None)
    apart = model.plain is not None and model.plain is not wrapped and not model.processed
    again = into is not None and apart and _holds_the_same(model, into)
    if again:
        module: Any = into.plain  # pyright: ignore
        for weight, learned in zip(module.parameters(), model.plain.parameters(), strict=True):  # pyright: ignore
            weight.copy_(learned)
    else:
        module = copy.deepcopy(model.plain if apart else model.tl)
    generators: dict[torch.device, torch.Generator] = {}
    for weight in _weights(module):
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        edit(weight, generators[weight.device])
    null = into if again else load_model(module, check=False)
    assert null is not None
    null.name, null.revision, null.tokenizer = f"{model.name} ({what})", model.revision, model.tokenizer
    if apart:  # TransformerLens would read its tokenizer from disk once more, and it may be gone
        null.tl.tokenizer = model.tl.tokenizer
        for fact in ("tokenizer_prepends_bos", "tokenizer_appends_eos"):
            setattr(null.tl.cfg, fact, getattr(model.tl.cfg, fact))
    return null


def _holds_the_same(model: Model, other: Model) -> bool:
    """Whether the other can take this model's weights, and its two views would both have them."""
    if model.plain is None or other.plain is None or not other.name.startswith(f"{model.name} ("):
        return False
    kinds = [[(p.shape, p.dtype, p.device) for p in one.parameters()] for one in (model.plain, other.plain)]
    own = {parameter.data_ptr() for parameter in other.plain.parameters()}
    return kinds[0] == kinds[1] and all(parameter.data_ptr() in own for parameter in other.tl.parameters())


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter once (tied ones are one), in the module's order, norms left out."""
    seen: set[int] = set()
    for part in module.modules():
        if "norm" in type(part).__name__.lower():
            seen.update(id(parameter) for parameter in part.parameters())
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter.data
