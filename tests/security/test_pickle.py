"""Nothing is unpickled: not by mechrep, and not by a library that it asks to load something."""

from __future__ import annotations

import ast
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import mechrep
from mechrep.errors import ModelError
from mechrep.models.load import load_model

SOURCE = Path(mechrep.__file__).parent
UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
OWN = {"guards.py: eval"}  # annotations of mechrep's own functions, as typing.get_type_hints reads them
TRAVELS = {"ray_engine.py"}  # objects between a cluster's processes, as Ray itself sends them
CALLS = {
    "torch.load",
    "numpy.load",
    "np.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "eval",
    "exec",
    "compile",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
}


def test_the_source_reads_no_pickle() -> None:
    found = []
    for path in (path for path in SOURCE.rglob("*.py") if path.name not in TRAVELS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE:
                names = [node.module]
            elif isinstance(node, ast.Call):
                names = [name for name in [_called(node.func)] if name in CALLS]
            found += [f"{path.relative_to(SOURCE)}: {name}" for name in names]
    assert set(found) == OWN


def _called(function: ast.expr) -> str:
    """``"eval"`` or ``"torch.load"``; nothing for what is called otherwise."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


class Harm:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def harm(path: Path, mark: Path) -> None:
    """A pickle file, also in the zip form of torch."""
    path.write_bytes(pickle.dumps(Harm(mark)))
    pickle.loads(path.read_bytes())  # it works
    mark.rmdir()
    if path.stem.endswith("zip"):
        torch.save(Harm(mark), path)


def folder_of(path: Path) -> Path:
    model = load_model("mechrep-tiny")
    model.plain.save_pretrained(path)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    model.tokenizer.save_pretrained(path)  # pyright: ignore[reportOptionalMemberAccess]
    return path


def refused(trust: Callable[..., None], where: str) -> None:
    what = f"a pickle file that would run something in {where}: refused by name, nothing run"
    trust(section="security", what=what, asked="refused", measured="refused", holds=True)


def only_bin(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    harm(folder / "pytorch_model.bin", mark)


def beside_others(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    harm(folder / "pytorch_model.bin", mark)


def shards(folder: Path, mark: Path) -> None:
    """An index of safetensors whose shard is a pickle."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    harm(folder / "zip.bin", mark)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "zip.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def named_by_config(folder: Path, mark: Path) -> None:
    """A configuration that names the file of weights."""
    harm(folder / "weights.bin", mark)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "weights.bin"}))


@pytest.mark.parametrize("way", [only_bin, beside_others, shards, named_by_config])
def test_a_folder_that_would_run_something(
    way: Callable[[Path, Path], None], tmp_path: Path, trust: Callable[..., None]
) -> None:
    folder, mark = folder_of(tmp_path / "net"), tmp_path / "mark"
    way(folder, mark)
    with pytest.raises(ModelError):
        load_model(folder)
    assert not mark.exists()
    refused(trust, f"a folder ({way.__name__.replace('_', ' ')})")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub of one's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, name: str) -> Path:
    """The folder of a model in the cache, as the hub's client lays it out."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    folder = home / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_model_of_the_hub_is_refused_by_name(
    file: str, cache: Path, tmp_path: Path, trust: Callable[..., None]
) -> None:
    folder, mark = cached(cache, "somebody/net"), tmp_path / "mark"
    folder_of(folder)
    assert load_model("somebody/net").anatomy.n_layers
    (folder / "model.safetensors").unlink()
    harm(folder / file, mark)
    for name in ("somebody/net", str(folder)):
        with pytest.raises(ModelError, match=rf"{file.partition('.index')[0]}.*save_pretrained"):
            load_model(name)
    assert not mark.exists()
    refused(trust, f"the hub's cache ({file})")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*merged into its base:UserWarning")
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_an_adapter_that_would_run_something(
    place: str, cache: Path, tmp_path: Path, trust: Callable[..., None]
) -> None:
    peft = pytest.importorskip("peft")
    base, mark = folder_of(tmp_path / "base"), tmp_path / "mark"
    module = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(target_modules=["q_proj"]))
    folder = tmp_path / "adapter" if place == "folder" else cached(cache, "somebody/adapter")
    module.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    name = str(folder) if place == "folder" else "somebody/adapter"
    assert load_model(name).anatomy.n_layers
    (folder / "adapter_model.safetensors").unlink()
    harm(folder / "adapter_model.bin", mark)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_model(name)
    assert not mark.exists()
    refused(trust, f"an adapter ({place})")


def test_torch_reads_again_afterwards(tmp_path: Path) -> None:
    """Only while a model is loaded pickles are refused: a user's own are none of mechrep's business."""
    read = torch.load
    with pytest.raises(ModelError):
        load_model(tmp_path)
    load_model(folder_of(tmp_path / "net"))
    assert torch.load is read
