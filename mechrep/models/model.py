"""The model that every other floor works with: a TransformerLens model with a plain view beside it.

Reading a model's :class:`~mechrep.models.anatomy.Anatomy` off a TransformerLens model.

Making TransformerLens' hooks say what they do: names that exist, edits that take effect.

Two traps of TransformerLens 4 are closed here.  A list of names drops a name that does not exist without a word;
and on a ``TransformerBridge`` a tensor *returned* by a hook at ``hook_resid_mid`` reaches the MLP only, while the
residual stream keeps the old value (``HookedTransformer`` changed both).

Two views of one set of weights: the TransformerLens view and the plain Hugging Face view.

TransformerLens consumes the Hugging Face object that it wraps.  So the module tree is copied *without* its
parameters: every parameter and buffer of the copy is the original's own tensor, and only the copy is wrapped.
Where a family fuses query, key and value in one matrix and TransformerLens splits it (GPT-2, GPT-NeoX, BLOOM),
the wrapped view holds its own copy of that matrix; everything else is shared.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import _GATE_PRE, _HOOKS, RESIDUAL_MID_SUFFIX, Anatomy, PlainHandles, Site, find_handles

# Hooks that exist but never fire (rotary models keep an inert positional hook) are not sites, so none is listed here.


def hook_names(tl: Any) -> set[str]:
    """Every hook name, aliases included, of a TransformerBridge or a HookedTransformer."""
    return set(tl.hook_dict)


def describe(tl: Any) -> Anatomy:
    """Sizes and kinds of a TransformerLens model.

    Raises:
        ModelError: not a decoder with softmax attention and one MLP per layer.
    """
    config, names = tl.cfg, hook_names(tl)
    architecture = getattr(config, "architecture", None) or getattr(config, "original_architecture", None)
    architecture = str(architecture or type(tl).__name__)
    gated = bool(getattr(config, "gated_mlp", False))
    for needed in (_HOOKS[Site.PATTERN], _HOOKS[Site.MLP_POST], _GATE_PRE, *([_HOOKS[Site.UP_PROJ]] if gated else [])):
        absent = [layer for layer in range(config.n_layers) if needed.format(layer=layer) not in names]
        if absent:
            raise ModelError(
                f"{architecture}, without {needed.format(layer=absent[0])}",
                "a decoder with softmax attention and one dense MLP in every layer",
                "mechrep has nothing to measure in attention-free, mixture-of-experts or attention-only layers",
            )
    return Anatomy(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_key_value_heads or config.n_heads,
        d_model=config.d_model,
        d_head=config.d_head,
        d_mlp=_mlp_width(tl, config),
        d_vocab=config.d_vocab,
        n_ctx=config.n_ctx,
        gated=gated,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
        activation=str(config.act_fn),
        positions=str(config.positional_embedding_type),
        norm=str(config.normalization_type),
        architecture=architecture,
        missing=frozenset(_missing(names, config.n_layers)),
    )


def _mlp_width(tl: Any, config: Any) -> int:
    """``d_mlp`` read off the weights: configurations of some families state another number or none."""
    width = tl.blocks[0].mlp.W_out.shape[0] if hasattr(tl.blocks[0].mlp, "W_out") else config.d_mlp
    return int(width)


def _missing(names: set[str], n_layers: int) -> Iterable[Site]:
    for site, pattern in _HOOKS.items():
        if any(pattern.format(layer=layer) not in names for layer in range(n_layers)):
            yield site


def check_name(name: str, known: set[str]) -> None:
    """Refuse a hook name that does not exist, and say which ones are close."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise InputError(f"hook name {name!r}", "a hook of this model", f"did you mean {', '.join(near)}?")


def check_filter(names_filter: Any, known: set[str]) -> None:
    """Check every name of a ``names_filter``; callables and ``None`` pass."""
    if isinstance(names_filter, str):
        check_name(names_filter, known)
    elif isinstance(names_filter, (list, tuple, set, frozenset)):
        for name in names_filter:
            check_name(name, known)


def honest_hooks(
    hooks: Sequence[tuple[Any, Callable]], known: set[str], *, in_place: bool
) -> list[tuple[Any, Callable]]:
    """The same hooks with checked names and, on a bridge, edits at ``hook_resid_mid`` that reach the stream.

    Raises:
        InputError: an unknown name, or a callable that selects ``hook_resid_mid`` on a bridge.
    """
    checked: list[tuple[Any, Callable]] = []
    for name, hook in hooks:
        if isinstance(name, str):
            check_name(name, known)
            hook = _writes_back(hook) if in_place and name.endswith(RESIDUAL_MID_SUFFIX) else hook
        elif in_place and any(name(known_name) for known_name in known if known_name.endswith(RESIDUAL_MID_SUFFIX)):
            raise InputError(
                "a function that selects hook_resid_mid",
                "explicit names there: TransformerLens would apply a returned edit to the MLP's input only",
                "pass (name, hook) pairs, one per layer",
            )
        checked.append((name, hook))
    return checked


def _writes_back(hook: Callable) -> Callable:
    """Copy what the hook returns into the tensor it was given, which is the residual stream itself."""

    @functools.wraps(hook)
    def wrapped(activation: Tensor, hook_point: Any = None, **kwargs: Any) -> None:
        returned = hook(activation, hook=kwargs.get("hook", hook_point))
        if returned is not None:
            activation.copy_(returned)

    return wrapped


def twin_sharing_parameters(module: nn.Module) -> nn.Module:
    """A second module tree over the very same parameter and buffer tensors."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def unshare_parameters(module: nn.Module) -> None:
    """Give ``module`` its own copies of all parameters, so that changing them leaves the other view alone."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()


@contextmanager
def quiet_boot() -> Iterator[None]:
    """Keep the libraries' start-up chatter off the user's screen; errors still come through."""
    logger = logging.getLogger()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def bridge(module: nn.Module, tokenizer: Any, name: str, dtype: torch.dtype) -> Any:
    """Wrap ``module`` (and consume it) as a TransformerLens ``TransformerBridge``."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config: Any = module.config
    config._attn_implementation = "eager"  # the wrappers compute attention themselves; eager gives them the right masks
    with quiet_boot():
        return build_bridge_from_module(
            module, type(module).__name__, hf_config=config, tokenizer=tokenizer, model_name=name, dtype=dtype
        )


class Model:
    """A decoder, seen through TransformerLens and, where possible, as the plain Hugging Face module.

    It *is usable as a TransformerLens model*: ``run_with_cache``, ``run_with_hooks``, ``hooks``, ``to_tokens``,
    ``cfg``, ``W_E`` and everything else of the wrapped model work on it.  Three things differ, because upstream is
    silently wrong there: hook names are checked, a tensor returned by a hook at ``hook_resid_mid`` replaces the
    residual stream itself, and weight processing is refused for shapes that it would get wrong.

    Attributes:
        tl: the TransformerLens view (``TransformerBridge`` or ``HookedTransformer``), the reference.
        plain: the Hugging Face view sharing its parameters, or ``None`` (then everything runs on ``tl``).
        handles: modules of the plain view that mechrep reads and edits.
        anatomy: sizes, kinds and sites.
        name: how the user named it.
        revision: checkpoint, or ``None``.
        tokenizer: a Hugging Face tokenizer, or ``None`` for a model of bare ids.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> logits, cache = model.run_with_cache(model.to_tokens("the sea, the sea"))
        >>> cache["pattern", 0].shape[1] == model.anatomy.n_heads
        True
    """

    def __init__(self, tl: Any, plain: nn.Module | None, *, tokenizer: Any, name: str, revision: str | None) -> None:
        self.tl, self.tokenizer, self.name, self.revision = tl, tokenizer, name, revision
        self.anatomy: Anatomy = describe(tl)
        self.handles: PlainHandles | None = None if plain is None else find_handles(plain, self.anatomy.n_layers)
        self.plain = plain if self.handles is not None else None
        self.processed = False
        self._fingerprint: tuple[tuple[int, ...], str] | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "tl":  # not set yet: a copy or a failed constructor, never a hook of the wrapped model
            raise AttributeError(name)
        return getattr(self.tl, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tl(*args, **kwargs)

    def __repr__(self) -> str:
        a = self.anatomy
        views = "two views" if self.plain is not None else "TransformerLens view only"
        sizes = f"{a.n_layers} layers x {a.d_mlp} neurons, {a.n_heads} heads"
        return f"Model({self.name!r}, {a.architecture}, {sizes}, {views})"

    # -- what TransformerLens offers, made safe ---------------------------------------------------------------

    @property
    def is_bridge(self) -> bool:
        """Whether the TransformerLens view is a ``TransformerBridge`` (else a ``HookedTransformer``)."""
        return hasattr(self.tl, "original_model")

    def run_with_cache(self, *args: Any, names_filter: Any = None, **kwargs: Any) -> Any:
        """TransformerLens' ``run_with_cache``; refuses a ``names_filter`` that names a hook which does not exist."""
        check_filter(names_filter, hook_names(self.tl))
        return self.tl.run_with_cache(*args, names_filter=names_filter, **kwargs)

    def run_with_hooks(self, *args: Any, fwd_hooks: Sequence[tuple[Any, Callable]] = (), **kwargs: Any) -> Any:
        """TransformerLens' ``run_with_hooks``; see the class for what is different at ``hook_resid_mid``."""
        fwd_hooks = honest_hooks(fwd_hooks, hook_names(self.tl), in_place=self.is_bridge)
        return self.tl.run_with_hooks(*args, fwd_hooks=fwd_hooks, **kwargs)

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[Any, Callable]] = (), **kwargs: Any) -> Iterator[Model]:
        """TransformerLens' ``hooks`` context; see the class for what is different at ``hook_resid_mid``."""
        with self.tl.hooks(fwd_hooks=honest_hooks(fwd_hooks, hook_names(self.tl), in_place=self.is_bridge), **kwargs):
            yield self

    def add_hook(self, name: Any, hook: Callable, *args: Any, **kwargs: Any) -> None:
        """TransformerLens' ``add_hook``; see the class for what is different at ``hook_resid_mid``."""
        ((name, hook),) = honest_hooks([(name, hook)], hook_names(self.tl), in_place=self.is_bridge)
        self.tl.add_hook(name, hook, *args, **kwargs)

    def enable_compatibility_mode(self, **options: Any) -> None:
        """Fold and centre the weights of the TransformerLens view, checked, on a copy of its own.

        The plain view keeps the weights as they were trained.

        Raises:
            ModelError: the shapes are among those that TransformerLens processes wrongly, or the log-probabilities
                after processing are not those from before.
        """
        a = self.anatomy
        if not self.is_bridge:
            raise ModelError("a HookedTransformer", "a TransformerBridge", "process weights when constructing it")
        if a.d_model in (a.d_vocab, a.d_mlp):
            raise ModelError(
                f"d_model = {a.d_model}, d_vocab = {a.d_vocab}, d_mlp = {a.d_mlp}",
                "d_model different from both: TransformerLens guesses axes from sizes and would fold the wrong one",
                "work with the raw weights",
            )
        tokens = self.probe_tokens()
        with torch.no_grad():
            before = self.tl(tokens).float().log_softmax(-1)
            unshare_parameters(self.tl.original_model)
            with quiet_boot():
                self.tl.enable_compatibility_mode(disable_warnings=True, **options)
            error = (self.tl(tokens).float().log_softmax(-1) - before).abs().max().item()
        self.processed = True
        if error > (1e-3 if self.dtype == torch.float32 else 0.1):
            raise ModelError(
                f"log-probabilities moved by {error:.2g} under weight processing",
                "the same model after folding",
                "load the model again and keep its raw weights",
            )

    # -- facts ------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.tl.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return next(self.tl.parameters()).device

    @property
    def bos_id(self) -> int | None:
        """The id that starts a text: the tokenizer's BOS, else its EOS (GPT-NeoX), else the configuration's."""
        sources = (self.tokenizer, getattr(self.plain, "config", None), self.tl.cfg)
        for field in ("bos_token_id", "eos_token_id"):
            for source in sources:
                value = getattr(source, field, None)
                if isinstance(value, int) and 0 <= value < self.anatomy.d_vocab:
                    return value
        return None

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        sources = (self.tokenizer, getattr(self.plain, "generation_config", None), getattr(self.plain, "config", None))
        found: set[int] = set()
        for source in sources:
            value = getattr(source, "eos_token_id", None)
            found.update(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
        return frozenset(found)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text: never sampled into random sequences, never a cycle on their own."""
        listed = set(self.tokenizer.all_special_ids) if self.tokenizer is not None else set()
        return frozenset(listed | self.eos_ids | ({self.bos_id} if self.bos_id is not None else set()))

    @property
    def default_prepend_bos(self) -> bool:
        """TransformerLens' habit for this family: whether texts start with BOS."""
        return bool(self.tl.cfg.default_prepend_bos)

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Identity of the vocabulary: equal for two tokenizers that give every token the same id."""
        if self.tokenizer is None:
            return None
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=True)
        return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """SHA-256 over every weight and setting: equal when the model is (computed once, again after edits)."""
        source = self.plain if self.plain is not None and not self.processed else self.tl
        versions = tuple(number for p in source.parameters() for number in (p.data_ptr(), p._version))
        if self._fingerprint is None or self._fingerprint[0] != versions:
            facts = dataclasses.asdict(self.anatomy) | {"missing": sorted(self.anatomy.missing)}
            digest = hashlib.sha256(repr((facts, self.processed, self._settings())).encode())
            for name, parameter in sorted(source.named_parameters(), key=lambda pair: pair[0]):
                raw = parameter.detach().cpu().contiguous().reshape(-1)
                digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
                digest.update(raw.view(torch.uint8).numpy().data)
            self._fingerprint = (versions, digest.hexdigest()[:16])
        return self._fingerprint[1]

    def _settings(self) -> str:
        """The configuration without names and versions: what is no weight yet decides logits (rope, windows, ...)."""
        config = getattr(getattr(self.tl, "original_model", None), "config", None)
        if config is None:
            return ""
        about = {"name_or_path", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
        settings = {key: value for key, value in config.to_dict().items() if key not in about}
        return json.dumps(settings, sort_keys=True, default=str)

    def probe_tokens(self, length: int = 16) -> Int[Tensor, "batch pos"]:
        """Two fixed rows of ordinary ids, for checking the model against itself."""
        generator = torch.Generator().manual_seed(0)
        length = min(length, self.anatomy.n_ctx)
        return torch.randint(0, self.anatomy.d_vocab, (2, length), generator=generator).to(self.device)

    # -- text -------------------------------------------------------------------------------------------------

    def encode(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """Ids of a text; BOS in front by the family's habit, or as asked.

        Raises:
            InputError: the model has no tokenizer, or no id to serve as BOS.
        """
        if self.tokenizer is None:
            raise InputError(
                f"text for {self.name!r}", "token ids: this model has no tokenizer", "use Corpus.from_tokens"
            )
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not (self.default_prepend_bos if prepend_bos is None else prepend_bos):
            return ids
        if self.bos_id is None:
            raise InputError("prepend_bos=True", "a model with a BOS id", "encode with prepend_bos=False")
        return [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; the ids themselves, separated by blanks, for a model without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    @property
    def fast(self) -> bool:
        """Whether the plain view serves: it exists, and computes with the weights as they are now.

        The one place that decides which view computes logits, losses and generation.
        """
        return self.plain is not None and not self.processed

    def plain_logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the fast view (of the TransformerLens view where there is no other)."""
        if self.plain is None:
            return self.tl(tokens)
        return self.plain(input_ids=tokens, use_cache=False).logits
