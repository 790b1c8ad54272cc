"""The model that every other floor works with: a plain Hugging Face decoder with a TransformerLens view beside it.

Two views of one set of weights.  The TransformerLens view is built when somebody asks for it.  TransformerLens consumes
the Hugging Face object that it wraps, so the module tree is copied *without* its parameters: every parameter and buffer
of the copy is the original's own tensor, and only the copy is wrapped.  Where a family fuses query, key and value in
one matrix and TransformerLens splits it (GPT-2, GPT-NeoX, BLOOM), the wrapped view holds its own copy of that matrix;
when the original's weights have changed since, the view is built anew.

What becomes of weights and hooks after loading is watched: see :mod:`mechrep.models.state`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError, MissingPartError, ModelError
from mechrep.guards import Count, guarded, within
from mechrep.models.anatomy import Anatomy
from mechrep.models.checks import check_finite
from mechrep.models.describe import describe, describe_plain
from mechrep.models.lengths import LengthRule, length_rule
from mechrep.models.parts import PlainHandles, Trace, find_handles, probe, probe_of, text_config, trace
from mechrep.models.state import (
    active_hooks,
    buffers_of,
    byte_sums,
    is_compiled,
    is_patched,
    own_hooks,
    settings_of,
    state_of,
    versions,
)
from mechrep.models.wrapped import (
    bridge,
    check_filter,
    edits_count,
    honest_hooks,
    hook_names,
    quiet_boot,
    twin_sharing_parameters,
    unshare_parameters,
)
from mechrep.tables import facts_html


@torch.no_grad()
def check_views(model: Model, logits: Tensor) -> None:
    """Refuse a TransformerLens view that gives other logits than the plain one.

    Args:
        model: the model.
        logits: of the probe, on the TransformerLens view.

    Raises:
        ModelError: the two differ.
    """
    plain, other = model.plain_logits(model.probe_tokens()).float(), logits.float()
    scale = plain.abs().max().clamp_min(1.0)
    off = ((plain - other).abs().max() / scale).item() if plain.shape == other.shape else float("inf")
    if not off <= _VIEWS_AGREE.get(model.dtype, 2e-4):
        tl, model._tl = model._tl, None
        raise ModelError(
            f"{model.name!r} ({type(tl).__name__}), whose TransformerLens view gives logits that are off by {off:.2g}",
            "two views that give the same logits",
            "use what the plain view gives (view='auto'); TransformerLens computes something else for this family",
        )


# What TransformerLens raises for a family that it does not know, or half knows.
_WRAPPING_FAILED = (
    ValueError, KeyError, IndexError, NotImplementedError, AttributeError, TypeError, RuntimeError, ImportError,
)  # fmt: skip
_VIEWS_AGREE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


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
        name: what it goes by: of a folder or file its own name, without the path.
        source: how the user named it: what loads it again.
        revision: checkpoint, or ``None``.
        tokenizer: a Hugging Face tokenizer, or ``None`` for a model of bare ids.
        prepends_bos: set it to say whether texts start with BOS; ``None`` leaves it to the family's habit.
        trace: what the parts of the plain view do to the residual stream, found by a probe.
        lengths: from which text length on positions are other ones; ``None`` where they do not depend on it.
        processed: the TransformerLens view has folded weights, and stands alone.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> logits, cache = model.run_with_cache(model.to_tokens("the sea, the sea"))
        >>> cache["pattern", 0].shape[1] == model.anatomy.n_heads
        True
    """

    def __init__(self, tl: Any, plain: nn.Module | None, *, tokenizer: Any, name: str, revision: str | None) -> None:
        if tl is None and plain is None:
            raise ModelError("neither view", "a Hugging Face module or a TransformerLens model", "give one of them")
        self.tokenizer, self.name, self.source, self.revision = tokenizer, name, name, revision
        self.processed = False
        self.prepends_bos: bool | None = None
        self._stands_for: tuple[str, str] | None = None
        self._tl, self._tl_made_here = tl, tl is None
        self._tl_state: list[Any] = []
        self._tl_has_copies = False
        self._tl_hooks: list[Any] = []  # some families' wrappers bring hooks of their own
        self._copied_sums = b""
        self._plain: nn.Module | None = None
        self._parts: list[nn.Module] = []
        self._fingerprint: tuple[bytes, str] | None = None
        self._vocabulary: tuple[Any, int, str] | None = None
        self._finite: list[Any] = []
        self._check_finite(plain if plain is not None else tl)
        self.trace: Trace | None = None
        self.lengths: LengthRule | None = None
        self.handles: PlainHandles | None = None
        if plain is not None:
            self.handles = find_handles(plain, text_config(plain).num_hidden_layers)
            self._plain = plain if self.handles is not None else None
        if self._plain is None:
            if tl is None:
                raise ModelError(
                    f"{name!r} of class {type(plain).__name__}",
                    "a decoder whose layers stand in one list",
                    "mechrep does not know this architecture",
                )
            self.anatomy: Anatomy = describe(tl)
            return
        assert plain is not None and self.handles is not None
        self.trace = trace(plain, self.handles, probe_of(plain))
        self.anatomy = describe(tl) if tl is not None else describe_plain(plain, self.handles, self.trace)
        self.lengths = length_rule(plain)
        self._parts = list(plain.modules())

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or another process, gets: a second view that was made here is made anew there."""
        made = {"_tl": None, "_tl_state": [], "_tl_hooks": [], "_tl_has_copies": False, "_copied_sums": b""}
        return vars(self) | (made if self._tl_made_here else {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("anatomy", "handles", "trace", "tokenizer", "name"):
            raise AttributeError(name)  # not set yet: a copy or a failed constructor, never a hook of the wrapped model
        return getattr(self.tl, name)

    @property
    def plain(self) -> nn.Module | None:
        """The Hugging Face module; ``None`` where there is none.

        Raises:
            InputError: it, or a part of it, is in training mode: dropout would make every number a draw; or parts of it
                are others than when it was loaded, which mechrep would not look at.
        """
        if self._plain is None:
            return None
        if any(part.training for part in self._same_parts()):
            raise InputError(
                f"{self.name!r} in training mode",
                "a model in evaluation mode: dropout would make every number a random draw",
                "call .eval() on the model (and .train() again after measuring)",
            )
        if self.lengths is not None:
            self.lengths.forget()
        self._check_finite(self._plain)
        return self._plain

    def _check_finite(self, module: Any) -> None:
        """Look at all weights again if torch says that some were written since the last look.

        Raises:
            ModelError: one is NaN or infinite.
        """
        now = versions(module)
        if now != self._finite:
            check_finite(self.name, module)
            self._finite = now

    def _same_parts(self) -> list[nn.Module]:
        """The parts of the plain view, which are those that were there when it was loaded."""
        assert self._plain is not None
        parts = list(self._plain.modules())
        if len(parts) != len(self._parts) or any(map(operator.is_not, parts, self._parts)):
            raise InputError(
                f"{self.name!r}, of which parts were added, taken away or replaced since it was loaded",
                "the parts that were there: what is where was found out then",
                "load the changed object: mechrep.load_model(module)",
            )
        if is_compiled(parts):
            raise InputError(
                f"{self.name!r}, of which parts were compiled since it was loaded: hooks can be passed over there",
                "a module that runs as it is written",
                "compile another object beside it, with torch.compile(module)",
            )
        return parts

    @plain.setter
    def plain(self, module: nn.Module | None) -> None:
        if module is None:
            _ = self.tl  # what is left then
            self._tl_made_here = False
        self._plain = module
        self._parts = [] if module is None else list(module.modules())

    @property
    def tl(self) -> Any:
        """The TransformerLens view, built on the first use, and anew when weights have changed that it copies.

        Raises:
            ModelError: TransformerLens does not know the architecture, or computes something else for it.
            InputError: the plain view computes as another model for a while, which this one would not.
        """
        if self._stands_for is not None:
            raise InputError(
                f"the TransformerLens view of {self.name!r}",
                "the plain view",
                "use shuffled(model) or reinitialised(model)",
            )
        if self._tl_made_here and (self._tl is None or self._tl_state != self._state()):
            self._build_tl()
        if self.lengths is not None:
            self.lengths.forget()
        self._check_finite(self._any_view())
        return self._tl

    def current_tl(self) -> Any:
        """The TransformerLens view, with the bytes of all weights compared that it holds copies of.

        For whoever runs it: such weights may have been written without torch knowing (``parameter.data``).

        Raises:
            InputError: a ``PatchedModel`` is at work in the plain view, which this one would not see.
        """
        if is_patched(self._plain):
            raise InputError(
                f"the TransformerLens view of {self.name!r} inside a PatchedModel, which patches the other view",
                "the plain view (view='auto')",
                "remove the patch, or pass it as an intervention",
            )
        tl = self.tl
        if self._tl_made_here and self._copied_sums != self._sums_of_copied():
            self._build_tl()
            tl = self._tl
        return tl

    def _state(self) -> list[Any]:
        """What the plain view computes with now; parts that remember the last call are shared by both views."""
        return state_of(self._plain, () if self.lengths is None else self.lengths.modules)

    def _sums_of_copied(self) -> bytes:
        """Sums over all weights, if TransformerLens has split some into pieces of its own; nothing if it shares all."""
        assert self._plain is not None
        return b"".join(byte_sums(p) for p in self._plain.parameters()) if self._tl_has_copies else b""

    @property
    def tl_is_built(self) -> bool:
        """Whether the TransformerLens view is there already."""
        return self._tl is not None

    @torch.no_grad()
    def _build_tl(self) -> None:
        if self._tl_is_hooked:
            raise ModelError(
                f"weights of {self.name!r} that were changed while hooks stand on its TransformerLens view",
                "hooks that are set after the weights",
                "call model.reset_hooks(), and add them again",
            )
        plain = self._plain
        assert plain is not None
        self._same_parts()
        try:
            dtype = next(plain.parameters()).dtype
            parts = () if self.lengths is None else self.lengths.modules
            self._tl = bridge(twin_sharing_parameters(plain, parts), self.tokenizer, self.name, dtype)
            self._tl.eval()
            logits = self._tl(self.probe_tokens())
        except _WRAPPING_FAILED as error:
            self._tl = None
            raise ModelError(
                f"the TransformerLens view of {self.name!r} ({type(plain).__name__})",
                "an architecture that TransformerLens can wrap and run",
                f"use what the plain view gives (view='auto'); TransformerLens said: {error!r}",
            ) from error
        self._tl_state, self._tl_hooks = self._state(), active_hooks(self._tl)
        own = {parameter.data_ptr() for parameter in plain.parameters()}
        self._tl_has_copies = any(parameter.data_ptr() not in own for parameter in self._tl.parameters())
        self._copied_sums = self._sums_of_copied()
        check_views(self, logits)

    @property
    def n_weights(self) -> int:
        """Weights in the layers; embeddings and the unembedding are left out."""
        layers = self.tl.blocks if self.handles is None else self.handles.layers
        return sum(weight.numel() for layer in layers for weight in layer.parameters())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.current_tl()(*args, **kwargs)

    def __repr__(self) -> str:
        a = self.anatomy
        views = "two views" if self.plain is not None else "TransformerLens view only"
        sizes = f"{a.n_layers} layers x {a.d_mlp} neurons, {a.n_heads} heads"
        return f"Model({self.name!r}, {a.architecture}, {sizes}, {views})"

    def _repr_html_(self) -> str:
        a = self.anatomy
        facts = {
            "architecture": a.architecture,
            "layers": a.n_layers,
            "heads of a layer": a.n_heads,
            "neurons of a layer": a.d_mlp,
            "d_model": a.d_model,
            "vocabulary": a.d_vocab,
            "context": f"{a.n_ctx:,} tokens",
            "weights": f"{self.dtype}, on {self.device}".removeprefix("torch."),
            "views": "plain and TransformerLens" if self.plain is not None else "TransformerLens",
        }
        return facts_html(facts, f"Model {self.name}")

    # -- what TransformerLens offers, made safe ---------------------------------------------------------------

    @property
    def is_bridge(self) -> bool:
        """Whether the TransformerLens view is a ``TransformerBridge`` (else a ``HookedTransformer``)."""
        return self._tl is None or hasattr(self._tl, "original_model")

    def run_with_cache(self, *args: Any, names_filter: Any = None, **kwargs: Any) -> Any:
        """TransformerLens' ``run_with_cache``; refuses a ``names_filter`` that names a hook which does not exist."""
        check_filter(names_filter, hook_names(self.tl))
        tl = self.current_tl()
        try:
            return tl.run_with_cache(*args, names_filter=names_filter, **kwargs)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ModelError(
                f"a cache of all activations of {self.name!r} ({type(self._any_view()).__name__})",
                "a family whose every hook TransformerLens can serve",
                f"name the hooks that you need (names_filter=), or use CorpusCache; TransformerLens said: {error!r}",
            ) from error

    def run_with_hooks(self, *args: Any, fwd_hooks: Sequence[tuple[Any, Callable]] = (), **kwargs: Any) -> Any:
        """TransformerLens' ``run_with_hooks``; see the class for what is different at ``hook_resid_mid``."""
        fwd_hooks = honest_hooks(fwd_hooks, hook_names(self.tl), in_place=self.is_bridge)
        with edits_count(self.name):
            return self.current_tl().run_with_hooks(*args, fwd_hooks=fwd_hooks, **kwargs)

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[Any, Callable]] = (), **kwargs: Any) -> Iterator[Model]:
        """TransformerLens' ``hooks`` context; see the class for what is different at ``hook_resid_mid``."""
        with (
            edits_count(self.name),
            self.current_tl().hooks(
                fwd_hooks=honest_hooks(fwd_hooks, hook_names(self.tl), in_place=self.is_bridge), **kwargs
            ),
        ):
            yield self

    def add_hook(self, name: Any, hook: Callable, *args: Any, **kwargs: Any) -> None:
        """TransformerLens' ``add_hook``; see the class for what is different at ``hook_resid_mid``."""
        ((name, hook),) = honest_hooks([(name, hook)], hook_names(self.tl), in_place=self.is_bridge)
        self.current_tl().add_hook(name, hook, *args, **kwargs)

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
        tokens, _ = self.probe_tokens(), self.tl
        self._tl_made_here = False  # its weights are its own from here on
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
        return next(self._any_view().parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return next(self._any_view().parameters()).device

    def _any_view(self) -> Any:
        """Something that has the parameters, without building the TransformerLens view for it."""
        return self._plain if self._plain is not None else self._tl

    @property
    def config(self) -> Any:
        """The configuration of the text decoder; TransformerLens' own where there is no other."""
        return text_config(self._plain) if self._plain is not None else self.tl.cfg

    @property
    def bos_id(self) -> int | None:
        """The id that starts a text: the tokenizer's BOS, else its EOS (GPT-NeoX), else the configuration's."""
        for source in (self.tokenizer, self.config, getattr(self._tl, "cfg", None)):
            for field in ("bos_token_id", "eos_token_id"):
                value = getattr(source, field, None)
                if isinstance(value, int) and 0 <= value < self.anatomy.d_vocab:
                    return value
        return None

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        sources = (self.tokenizer, getattr(self._plain, "generation_config", None), self.config)
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
        """Whether texts start with BOS: :attr:`prepends_bos`, or TransformerLens' habit for this family."""
        if self.prepends_bos is not None:
            return self.prepends_bos
        if self._tl is not None:
            return bool(self._tl.cfg.default_prepend_bos)
        return getattr(self.config, "model_type", "") not in WITHOUT_BOS

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Identity of the vocabulary: equal for two tokenizers that give every token the same id."""
        if self.tokenizer is None:
            return None
        known = self._vocabulary
        if known is None or known[0] is not self.tokenizer or known[1] != len(self.tokenizer):
            vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=True)
            digest = hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
            known = self._vocabulary = (self.tokenizer, len(self.tokenizer), digest)
        return known[2]

    def fingerprint(self) -> str:
        """Identity of the model as it computes now; of a steered one another at every call, which no store has.

        SHA-256 over the bytes of every weight and over every setting: equal when the model is.

        The bytes are summed at every call, and hashed again where a sum has changed: weights that were written in
        place, in whatever way, are seen.
        """
        if self.steered:
            return f"steered {uuid.uuid4().hex[:16]}"
        if self._stands_for is not None:
            return self._stands_for[1]
        source: Any = self._plain if self._plain is not None and not self.processed else self._tl
        if self.lengths is not None:
            self.lengths.forget()
        facts = dataclasses.asdict(self.anatomy) | {"missing": sorted(self.anatomy.missing), "reasons": ()}
        tensors = sorted([*source.named_parameters(), *buffers_of(source)], key=lambda pair: pair[0])
        names = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors]
        known = repr((facts, self.processed, self._settings(), names)).encode()
        sums = hashlib.sha256(known)
        for _, tensor in tensors:
            sums.update(byte_sums(tensor))
        if self._fingerprint is None or self._fingerprint[0] != sums.digest():
            check_finite(self.name, source)  # written in a way that torch does not know of
            digest = hashlib.sha256(known)
            for _, tensor in tensors:
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._fingerprint = (sums.digest(), digest.hexdigest()[:16])
        return self._fingerprint[1]

    def _settings(self) -> str:
        """What is no weight yet decides logits (rope, windows, epsilons, autocast), without names and versions."""
        device = self.device.type
        cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
        config = getattr(self._plain, "config", None)
        if self._plain is None or config is None:
            return cast
        about = {"name_or_path", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
        settings = {key: value for key, value in config.to_dict().items() if key not in about}
        return json.dumps([settings, settings_of(self._plain), cast], sort_keys=True, default=str)

    @guarded
    def probe_tokens(self, length: Count = 16) -> Int[Tensor, "batch pos"]:
        """Two fixed rows of ordinary ids, for checking the model against itself."""
        return probe(self.anatomy.d_vocab, min(length, self.anatomy.n_ctx)).to(self.device)

    # -- text -------------------------------------------------------------------------------------------------

    @guarded
    def encode(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """Ids of a text; BOS in front by the family's habit, or as asked, and never a second one.

        A text that begins with the BOS token itself (a chat template written out, decoded ids) keeps that one.

        Raises:
            MissingPartError: the model has no tokenizer, or no id to serve as BOS.
        """
        if self.tokenizer is None:
            raise MissingPartError(
                f"text for {self.name!r}", "token ids: this model has no tokenizer", "use Corpus.from_tokens"
            )
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self.bos_id
        begins = bos is not None and ids[:1] == [bos]
        if begins and not text.lstrip().startswith(self.tokenizer.decode([bos])):
            ids, begins = ids[1:], False  # the tokenizer put it there, whatever it was asked
        if not (self.default_prepend_bos if prepend_bos is None else prepend_bos) or begins:
            return ids
        if bos is None:
            raise MissingPartError("prepend_bos=True", "a model with a BOS id", "encode with prepend_bos=False")
        return [bos, *ids]

    @guarded
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; the ids themselves, separated by blanks, for a model without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        for one in {min(ids), max(ids)} if len(ids) else ():
            within("id", one, 0, max(self.anatomy.d_vocab, len(self.tokenizer)) - 1, "an id")
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    @property
    def fast(self) -> bool:
        """Whether the plain view serves: it exists, and computes with the weights and hooks as they are now.

        The one place that decides which view computes logits, losses and generation.  Hooks of the user's own on the
        TransformerLens view (``add_hook``, ``with model.hooks(...)``) are honoured by taking that view.

        Raises:
            InputError: hooks of the user's own on both views.
        """
        if self._plain is None or self.processed:
            return False
        hooked = self._tl_is_hooked
        if hooked and (own_hooks(self._plain) or is_patched(self._plain)):
            raise InputError(
                f"hooks on the Hugging Face module and on the TransformerLens view of {self.name!r}",
                "hooks on one of the two: neither view would see all of them",
                "put all of them on one view",
            )
        return not hooked

    @property
    def steered(self) -> bool:
        """Whether hooks of the user's own or a ``PatchedModel`` stand on one of the views, unknown to a fingerprint."""
        on_plain = self._plain is not None and bool(own_hooks(self._plain))
        return on_plain or is_patched(self._plain) or self._tl_is_hooked

    @property
    def _tl_is_hooked(self) -> bool:
        """Whether the TransformerLens view has hooks that were not there when it was built."""
        return self._tl is not None and active_hooks(self._tl) != self._tl_hooks

    @property
    def stands_for_another(self) -> bool:
        """Whether this object computes as another model for a while, see :meth:`standing_for`."""
        return self._stands_for is not None

    @contextmanager
    def standing_for(self, name: str, fingerprint: str) -> Iterator[None]:
        """While open, this object goes by another name and fingerprint: whoever calls makes it compute so."""
        before, self.name, self._stands_for = self.name, name, (name, fingerprint)
        try:
            yield
        finally:
            self.name, self._stands_for = before, None

    @contextmanager
    def each_alone(self, lengths: Int[Tensor, " row"]) -> Iterator[None]:
        """While open, passes over right-padded rows of these lengths give every row the positions that it has alone.

        Only models whose positions depend on the length of the text need it (:attr:`lengths`).

        Args:
            lengths: of the text in each row.
        """
        if self.lengths is None:
            yield
            return
        with self.lengths.each_alone(lengths):
            yield

    def plain_logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the fast view (of the TransformerLens view where there is no other)."""
        if self.plain is None:
            return self.current_tl()(tokens)
        if self.lengths is not None:
            self.lengths.check(tokens)
        return self.plain(input_ids=tokens, use_cache=False).logits


# Families whose texts do not begin with BOS by TransformerLens' habit, by the configuration's ``model_type``.
WITHOUT_BOS = frozenset(
    [
        "bloom",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone",
        "exaone4",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt_neox",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "minimax_m2",
        "mpt",
        "phi",
        "phimoe",
        "qwen2",
        "qwen2_5_vl_text",
        "qwen2_moe",
        "qwen3",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_text",
        "recurrent_gemma",
        "seed_oss",
        "smollm3",
        "starcoder2",
    ]
)
