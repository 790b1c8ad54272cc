"""Two views of one set of weights: the TransformerLens view and the plain Hugging Face view.

TransformerLens consumes the Hugging Face object that it wraps.  So the module tree is copied *without* its
parameters: every parameter and buffer of the copy is the original's own tensor, and only the copy is wrapped.
Where a family fuses query, key and value in one matrix and TransformerLens splits it (GPT-2, GPT-NeoX, BLOOM),
the wrapped view holds its own copy of that matrix; everything else is shared.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
