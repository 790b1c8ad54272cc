"""TransformerLens' view of a module: how it is made, and two of its traps closed.

A list of hook names drops a name that does not exist without a word; and on a ``TransformerBridge`` a tensor that a
hook at ``hook_resid_mid`` *returns* reaches the MLP only, while the residual stream keeps the old value
(``HookedTransformer`` changed both).
"""

from __future__ import annotations

import copy
import difflib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import RESIDUAL_MID_SUFFIX
from mechrep.models.state import own_hooks


def hook_names(tl: Any) -> set[str]:
    """Every hook name, aliases included, of a TransformerBridge or a HookedTransformer."""
    return set(tl.hook_dict)


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


def twin_sharing_parameters(module: nn.Module, parts: Sequence[nn.Module] = ()) -> nn.Module:
    """A second module tree over the very same parameter and buffer tensors, and the very same modules ``parts``."""
    shared: list[Any] = [*module.parameters(), *module.buffers(), *parts, *(hook for _, hook in own_hooks(module))]
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
        made = build_bridge_from_module(
            module, type(module).__name__, hf_config=config, tokenizer=None, model_name=name, dtype=dtype
        )
    if tokenizer is not None:  # not through TransformerLens, which would read it from disk once more
        if tokenizer.bos_token_id is None or tokenizer.pad_token_id is None:
            tokenizer = copy.deepcopy(tokenizer)  # the user's own stays as it is
            tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
        made.tokenizer = tokenizer
        plain, ends = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        made.cfg.tokenizer_prepends_bos = len(plain) > len(ends) and plain[0] == tokenizer.bos_token_id
        made.cfg.tokenizer_appends_eos = len(plain) > len(ends) and plain[-1] == tokenizer.eos_token_id
    return made


@contextmanager
def edits_count(name: str) -> Iterator[None]:
    """Refuse an edit that TransformerLens says it has thrown away, which it does with a warning only.

    Raises:
        ModelError: an edit at a place that the family computes elsewhere.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*edit is discarded.*")
        try:
            yield
        except UserWarning as discarded:
            raise ModelError(
                f"an edit on the TransformerLens view of {name!r}",
                "a place where TransformerLens computes what the model uses",
                f"edit on the plain view (view='auto'); TransformerLens said: {discarded}",
            ) from discarded
