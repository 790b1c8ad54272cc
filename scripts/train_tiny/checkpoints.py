"""What a training run writes: the weights of kept steps, and the state from which a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_STATE, _HISTORY = "state.safetensors", "history.jsonl"


def kept_steps(total: int) -> set[int]:
    """Log-spaced steps whose weights are kept: 0, powers of two from 32, two more per octave from 512, and the last.

    Example:
        >>> sorted(kept_steps(1000))
        [0, 32, 64, 128, 256, 512, 645, 812, 1000]
    """
    steps = {0, total} | {2**i for i in range(5, 30)} | {int(2 ** (i + j / 3)) for i in range(9, 30) for j in (1, 2)}
    return {step for step in steps if step <= total}


def save_weights(model: nn.Module, path: Path) -> None:
    """float16 weights, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", torch.float16).contiguous() for name, p in model.named_parameters()}
    temporary = path.with_suffix(".partial")
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def add_history(folder: Path, record: Mapping[str, Any]) -> None:
    """One more line of ``history.jsonl``."""
    with (folder / _HISTORY).open("a", encoding="utf-8") as history:
        history.write(json.dumps(record) + "\n")


def forget_history(folder: Path, step: int) -> None:
    """Drop what was noted from ``step`` on: a run that goes on from there notes it again."""
    path = folder / _HISTORY
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] < step), encoding="utf-8")


def save_state(folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Everything that a resumed run needs, as one safetensors file replaced in one move."""
    tensors: dict[str, Tensor] = {f"model/{n}": p.detach().cpu().contiguous() for n, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer/{index}/{parameter}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    temporary = folder / "state.partial"
    save_file(tensors, temporary, metadata={"step": str(step)})
    temporary.replace(folder / _STATE)


def load_state(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Restore what :func:`save_state` wrote; returns the step to go on with (0 when there is nothing)."""
    path = folder / _STATE
    if not path.exists():
        return 0
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{index}/"):
                _, _, parameter_index, name = key.split("/")
                state.setdefault(int(parameter_index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])
