"""What several commands have in common: their options, and reading what they name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechrep.errors import InputError, StoreError

if TYPE_CHECKING:
    import pandas as pd

    from mechrep.models.model import Model


class Preset(StrEnum):
    """Protocols that tell looping texts from others."""

    mechrep = "mechrep"
    hiraoka2025 = "hiraoka2025"


class Dtype(StrEnum):
    """Types that weights can have."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


SinkLayer = Annotated[
    int | None, typer.Option(min=0, help="A layer to take as the sink layer; that of the largest jump by default.")
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="mechrep-tiny, a hub name, or a local folder.")]
Revision = Annotated[str | None, typer.Option(help="Checkpoint of the model, e.g. step512.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Type of the weights; float32 on the CPU by default.")
]
PresetOption = Annotated[Preset, typer.Option("--preset", help="Whose protocol decides what a loop is.")]
Texts = Annotated[int, typer.Option("--texts", min=1, help="Looping texts to collect.")]
Seed = Annotated[int, typer.Option(help="Of the prompts and the split.")]


def existing_file(help_text: str) -> Any:
    """An option that takes a file, which is looked for before anything else is done."""
    return typer.Option(exists=True, dir_okay=False, readable=True, help=help_text)


def load_named(name: str, revision: str | None, device: str | None, dtype: Dtype | None) -> Model:
    """The model on the command line, with its options."""
    import torch

    from mechrep.models.load import load_model

    try:
        place = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{device!r} is no device; try cpu, cuda, cuda:1 or mps", param_hint="--device"
        ) from error
    kind = None if dtype is None else getattr(torch, dtype.value)
    return load_model(name, revision=revision, device=place, dtype=kind)


def parse_numbers(text: str | None) -> list[int] | None:
    """Numbers of neurons written as ``0,10,100``."""
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 0,10,100", param_hint="--ks") from error
    if min(numbers) < 0:
        raise typer.BadParameter(f"{text!r} has a negative number", param_hint="--ks")
    return numbers


def parse_units(text: str) -> list[tuple[int, int]]:
    """Neurons written as ``L:N,L:N``, or read from a JSON file that lists them."""
    import json

    if text.endswith(".json"):
        try:
            pairs = json.loads(read_text(Path(text)))
            return [(int(layer), int(neuron)) for layer, neuron in pairs]
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{text} ({error})", "a JSON list of [layer, neuron]", "see top.json of `mechrep neurons`"
            ) from error
    try:
        return [(int(layer), int(neuron)) for layer, neuron in (part.split(":") for part in text.split(","))]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither L:N,L:N nor a .json file", param_hint="--cut") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} ({error})", "a text file in UTF-8", "check the path and the encoding") from error


def make_folder(folder: Path) -> None:
    """Before the long work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"folder {folder} ({error.strerror})", "a place to write", "choose another with --out"
        ) from error


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """A table as Parquet."""
    try:
        frame.to_parquet(path)
    except OSError as error:
        raise StoreError(
            f"table {path} ({error.strerror})", "a place to write", "free space or choose another folder"
        ) from error
