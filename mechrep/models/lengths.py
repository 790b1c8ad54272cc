"""Positions that depend on how long the text is, and how every text keeps its own.

Some rotary positions are other angles in a long text than in a short one.  *Longrope* (Phi-3, Phi-4-mini) has one
set of angles up to some length and another beyond it; with *dynamic NTK* every length beyond has angles of its own.
transformers looks at the highest position of the whole batch, so a short text beside a long one would get the angles
of the long one; and dynamic angles stay as they were until a short text comes by, so numbers would depend on what was
run before.

Which models do this, and from which length on, is found by asking the rotary modules themselves: do the angles of the
first positions change when a later position is moved further away?  While :meth:`LengthRule.each_alone` is open, a
forward pass over a padded batch gives every row the angles that it has alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.models.describe import context_of
from mechrep.models.parts import probe_of, text_config

_FAR = 8  # angles are asked for up to so many times the model's context: dynamic ones change behind its end


@dataclass(frozen=True)
class _Call:
    """How a module is asked for its positions.

    Attributes:
        args, named: of the call.
        name: of the positions among the named ones, or their place among the others.
    """

    args: tuple[Any, ...]
    named: dict[str, Any]
    name: str | int

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> _Call:
        """Of a call as a hook sees it."""
        return cls(args, named, _POSITIONS if _POSITIONS in named else _takes(type(module)).index(_POSITIONS))

    @property
    def positions(self) -> Int[Tensor, "*row pos"]:
        """The positions that it is asked for."""
        return self.named[self.name] if isinstance(self.name, str) else self.args[self.name]

    def answer(self, module: nn.Module, positions: Int[Tensor, "*row pos"]) -> Any:
        """What the module says about other positions; whatever it remembers of longer texts is forgotten first."""
        self._ask(module, torch.zeros_like(positions[..., :1]))
        return self._ask(module, positions)

    def _ask(self, module: nn.Module, positions: Tensor) -> Any:
        if isinstance(self.name, str):
            return module.forward(*self.args, **{**self.named, self.name: positions})
        return module.forward(*self.args[: self.name], positions, *self.args[self.name + 1 :], **self.named)


_POSITIONS = "position_ids"


class LengthRule:
    """From which length on a model's positions are other ones, and how each row of a batch keeps its own.

    Attributes:
        switch: all texts of up to so many tokens have the same angles at the same positions.
        every: beyond it every length has angles of its own; otherwise all longer texts share a second set.

    Example:
        >>> import mechrep
        >>> mechrep.load_model("mechrep-tiny").lengths is None  # its positions do not depend on length
        True
    """

    def __init__(self, modules: Sequence[tuple[nn.Module, _Call]], switch: int, every: bool) -> None:
        self.switch, self.every = switch, every
        self._modules = list(modules)
        self._told: Tensor | None = None

    def __repr__(self) -> str:
        return f"LengthRule(switch={self.switch}, every={self.every})"

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that give other angles in long texts; both views of a model share them."""
        return tuple({id(module): module for module, _ in self._modules}.values())

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module, tokens: Int[Tensor, "batch pos"], context: int) -> LengthRule | None:
        """Find a decoder's rule; ``None`` where positions do not depend on length, as in most models.

        Args:
            module: a Hugging Face decoder.
            tokens: a short probe.
            context: positions of the model.
        """
        calls = _calls(module, tokens)
        far = _FAR * context
        changing = [(part, call) for part, call in calls if not _same(_early(part, call, 0), _early(part, call, far))]
        if not changing:
            return None
        switches = [_switch(part, call, tokens.shape[1], far) for part, call in changing]
        switch = min(switches)
        every = len(set(switches)) > 1 or any(
            not _same(_early(part, call, switch + 1), _early(part, call, far)) for part, call in changing
        )
        return cls(changing, switch, every)

    def alike(self, length: int) -> int:
        """A number that is equal for texts that have the same angles."""
        return 0 if length <= self.switch else length if self.every else 1

    def forget(self) -> None:
        """Make the next pass independent of the passes before it."""
        for module, call in self._modules:
            call.answer(module, call.positions[..., :1])

    def check(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Refuse several rows that pass the switch, where nobody said how long each of them is.

        Raises:
            InputError: saying so.
        """
        if len(tokens) > 1 and tokens.shape[1] > self.switch and self._told is None:
            raise InputError(
                f"{len(tokens)} rows of {tokens.shape[1]} positions, for a model whose positions are other "
                f"ones in texts of more than {self.switch} tokens",
                "the length of every row, so that each gets the positions that it has alone",
                "read a Corpus (CorpusCache), pass lengths=, or run one text at a time",
            )

    @contextmanager
    def each_alone(self, lengths: Int[Tensor, " row"]) -> Iterator[None]:
        """While open, forward passes give every row the angles of a text of its own length.

        Args:
            lengths: of the texts in the rows; positions behind a row's end are padding.
        """
        before, self._told = self._told, lengths
        with ExitStack() as stack:
            stack.callback(setattr, self, "_told", before)
            for module in self.modules:
                hook = module.register_forward_hook(partial(self._answer, lengths.tolist()), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _answer(self, lengths: list[int], module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call = _Call.of(module, args, kwargs)
        if not _is_told(call, lengths):
            width = call.positions.shape[-1]
            if width > self.switch:
                raise InputError(
                    f"a pass over other rows than the {len(lengths)} told", "these rows", "tell their lengths"
                )
            return None  # a short pass beside it: the first tokens alone
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            groups.setdefault(self.alike(length), []).append(row)
        pieces = []
        for rows in groups.values():
            longest = max(lengths[row] for row in rows)
            own = call.positions
            own = own[..., rows, :] if own.shape[-2] == len(lengths) else own.expand(*own.shape[:-2], len(rows), -1)
            pieces.append(_tensors(call.answer(module, _up_to(own, longest))))
        place = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
        whole = [_rows(torch.cat([t[..., :-1, :] for t in same], -3), place) for same in zip(*pieces, strict=True)]
        return tuple(whole) if isinstance(output, tuple) else whole[0]


def _up_to(positions: Int[Tensor, "*row pos"], length: int) -> Int[Tensor, "*row one_more"]:
    """Positions of texts of a length, and one column with the last of them, which tells the module that length."""
    return torch.cat([positions, torch.full_like(positions[..., :1], length - 1)], -1).clamp_max(length - 1)


def _is_told(call: _Call, lengths: list[int]) -> bool:
    """Whether a pass holds the rows whose lengths are known: seen by the tensor that comes beside the positions."""
    beside = [value for value in (*call.args, *call.named.values()) if isinstance(value, Tensor)]
    return all(len(value) == len(lengths) for value in beside if value.is_floating_point() and value.ndim == 3)


def _rows(tensor: Tensor, place: Tensor) -> Tensor:
    return tensor.index_select(-3, place.to(tensor.device))


def _tensors(answer: Any) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _calls(module: nn.Module, tokens: Tensor) -> list[tuple[nn.Module, _Call]]:
    """Modules without weights that turn positions into something, and how they are asked in a pass over the probe."""
    found: list[tuple[nn.Module, _Call]] = []

    def note(part: nn.Module, args: Any, kwargs: Any) -> None:
        call = _Call.of(part, *_exact(args, kwargs))
        if isinstance(call.positions, Tensor) and call.positions.shape[-1] == tokens.shape[1]:
            found.append((part, call))

    asked = [part for part in module.modules() if _asks(part)]
    if asked:
        with ExitStack() as stack:
            for part in asked:
                stack.callback(part.register_forward_pre_hook(note, with_kwargs=True).remove)
            module(input_ids=tokens, use_cache=False)
    return found


def _asks(part: nn.Module) -> bool:
    return _POSITIONS in _takes(type(part))[1:] and next(part.parameters(), None) is None


@functools.cache
def _takes(kind: type[nn.Module]) -> list[str]:
    """What modules of a class are given."""
    return list(inspect.signature(kind.forward).parameters)[1:]


def _exact(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with a small tensor in single precision where it names device and type only."""

    def small(value: Any) -> Any:
        return value[:1, :1].float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(small, args)), {name: small(value) for name, value in kwargs.items()}


def _early(part: nn.Module, call: _Call, length: int) -> list[Tensor]:
    """Angles of the probe's positions but the last, in a text of some length (0: of the probe's own)."""
    positions = call.positions.clone()
    if length:
        positions[..., -1] = length - 1
    return [tensor[..., :-1, :].clone() for tensor in _tensors(call.answer(part, positions))]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _switch(part: nn.Module, call: _Call, known: int, far: int) -> int:
    """The longest text whose angles are those of the probe."""
    usual: Callable[[int], bool] = lambda length: _same(_early(part, call, 0), _early(part, call, length))  # noqa: E731
    below, above = known, far
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if usual(middle) else (below, middle)
    return below


def length_rule(plain: nn.Module) -> LengthRule | None:
    """How the positions of a Hugging Face decoder depend on the length of the text; ``None``: not at all."""
    return LengthRule.of(plain, probe_of(plain), context_of(text_config(plain)))
