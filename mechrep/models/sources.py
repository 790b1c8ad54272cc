"""Reading a model from a disk or the hub: what a name stands for, and how it is read."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import re
import socket
import struct
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError, safe_open

from mechrep.disk import read_json
from mechrep.errors import ModelError
from mechrep.models import tiny
from mechrep.models.checks import check_causal, check_declared, check_report, is_wrapper
from mechrep.models.tokenizers import first_line, has_tokenizer, read_tokenizer
from mechrep.models.wrapped import quiet_boot

_EXTRAS = {"gguf": "gguf", "bitsandbytes": "bnb"}  # package: extra of mechrep


@dataclass(frozen=True)
class Options:
    """How a model is to be loaded; see :func:`~mechrep.models.load.load_model`."""

    revision: str | None = None
    dtype: torch.dtype | str = "auto"
    device_map: str | dict[str, Any] | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Source:
    """What a name stands for.

    Attributes:
        name: as the user wrote it.
        where: an absolute path of a folder, or a hub name.
        gguf: the name of a GGUF file in it, or ``None``.
        local: whether it is a folder of this machine.
        offline: whether the hub cannot be reached, so that only what was loaded before is there.
    """

    name: str
    where: str
    gguf: str | None = None
    local: bool = True
    offline: bool = False

    @property
    def called(self) -> str:
        """What the model goes by in titles: the folder's or file's own name, a hub name as it is.

        A folder of the hub's cache is called as on the hub.

        Example:
            >>> Source("~/nets/smol", "/home/me/nets/smol").called, Source("gpt2", "gpt2", local=False).called
            ('smol', 'gpt2')
            >>> Source("x", "/cache/models--openai-community--gpt2/snapshots/607a30d").called
            'openai-community/gpt2'
        """
        if not self.local:
            return self.name
        folder = Path(self.where)
        cached = folder.parent.parent.name
        if folder.parent.name == "snapshots" and cached.startswith("models--"):
            return cached.removeprefix("models--").replace("--", "/")
        return Path(self.gguf).stem if self.gguf is not None else folder.name


@dataclass
class Reading:
    """What was read: a module, its tokenizer (or ``None``), and what the user should be told about it."""

    module: Any
    tokenizer: Any
    notes: list[str] = field(default_factory=list)


# -- names ------------------------------------------------------------------------------------------------------------


def locate(name: str) -> Source:
    """What a name stands for: a folder, a GGUF file, or a model on the hub.

    Raises:
        ModelError: a path that is not there, or that holds no model that can be read.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path.resolve())
    if path.is_file():
        return _file(name, path.resolve())
    if name.count("/") == 2 and name.endswith(".gguf") and not name.startswith((".", "/", "~")):
        owner, repository, file = name.split("/")
        return Source(name, f"{owner}/{repository}", file, local=False, offline=not hub_is_known())
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ModelError(f"path {name!r}", "an existing folder with config.json and weights", "check the path")
    near = difflib.get_close_matches(name, tiny.NAMES, n=1, cutoff=0.8)
    if near:
        raise ModelError(f"model {name!r}", f"one of {', '.join(tiny.NAMES)}, or another", f"did you mean {near[0]!r}?")
    return Source(name, name, local=False, offline=not hub_is_known())


def hub_is_known() -> bool:
    """Whether the hub's address is known here; without it every file would be asked for again and again.

    Offline mode and proxies are left to huggingface_hub.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return True
    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(hub.hostname, hub.port or 443)
    except OSError:
        return False
    return True


def _folder(name: str, path: Path) -> Source:
    weights = [file for file in path.glob("*.safetensors") if not file.name.startswith("adapter_")]
    gguf = sorted(path.glob("*.gguf"))
    adapter, config = (path / "adapter_config.json").is_file(), (path / "config.json").is_file()
    if adapter and weights:
        raise ModelError(
            f"folder {name!r} with weights ({weights[0].name}) and an adapter (adapter_config.json)",
            "one model",
            "move the adapter into a folder of its own and load that, or take it away",
        )
    if adapter or (config and (weights or not gguf)):
        pickled = [] if weights or adapter else sorted(path.glob("pytorch_model*.bin*"))
        if pickled:
            raise _pickled(f"folder {name!r}", pickled[0].name)
        return Source(name, str(path))
    if len(gguf) > 1:
        listed = ", ".join(file.name for file in gguf[:4])
        raise ModelError(f"folder {name!r} with {len(gguf)} GGUF files", "one of them", f"name the file: {listed}")
    if gguf:
        return _file(name, gguf[0])
    raise ModelError(
        f"folder {name!r} without config.json", "a model in Hugging Face format", "save it with save_pretrained"
    )


def _pickled(what: str, file: str) -> ModelError:
    return ModelError(
        f"{what} with its weights in {file} alone",
        "weights as safetensors: a pickle file can run code when it is read, and mechrep reads none",
        "if you trust it, convert it once: transformers.AutoModelForCausalLM.from_pretrained(it)"
        ".save_pretrained(new_folder), the tokenizer likewise",
    )


def _file(name: str, path: Path) -> Source:
    if path.suffix != ".gguf":
        raise ModelError(f"file {name!r}", "a folder with config.json and weights, or a GGUF file", "give its folder")
    if re.search(r"-\d{5}-of-\d{5}$", path.stem):
        raise ModelError(
            f"file {name!r}, one of several parts", "a GGUF file in one part", "join them: llama-gguf-split --merge"
        )
    return Source(name, str(path.parent), path.name)


# What the readers of damaged files raise: transformers and gguf take what they find in them for what it should be.
_UNREADABLE = (
    OSError, ValueError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError, AssertionError,
    MemoryError, struct.error, SafetensorError, getattr(hub_errors, "StrictDataclassError", OSError),
)  # fmt: skip


# -- reading ----------------------------------------------------------------------------------------------------------


def read_model(source: Source, options: Options, *, tokenizer: bool = True) -> Reading:
    """The module and tokenizer of a source, every weight of its file in its place.

    Args:
        source: what :func:`locate` found.
        options: how to load it.
        tokenizer: read its tokenizer too.

    Raises:
        ModelError: it cannot be read, is no causal language model, or is not the model that its configuration names.
    """
    from transformers import AutoConfig

    shared: dict[str, Any] = {"revision": options.revision} if options.revision else {}
    shared |= {"local_files_only": True} if source.local or source.offline else {}
    shared |= {"gguf_file": source.gguf} if source.gguf else {}
    with listening(source) as said:
        try:
            config = AutoConfig.from_pretrained(source.where, trust_remote_code=options.trust_remote_code, **shared)
            _refuse_pickled(source, options.revision)
            check_causal(source.name, config, saved=True)
            if source.local and (size := _bytes_of_weights(source)):
                check_declared(source.name, config, size)
            module, report, notes = _read_weights(source, config, options, shared)
        except ImportError as error:
            raise _missing_package(source, error) from error
        except _UNREADABLE as error:
            raise _unreadable(source, options.revision, error) from error
        left_out = check_report(source.name, config, module, report, _names_in_file(source, options.revision))
        own = None
        if tokenizer and (source.gguf or not source.local or has_tokenizer(Path(source.where))):
            own = read_tokenizer(source.where, trust_remote_code=options.trust_remote_code, **shared)
    return Reading(module, own, [*notes, *left_out, *said])


def _bytes_of_weights(source: Source) -> int:
    """Size of the files of weights of a local source."""
    folder = Path(source.where)
    files = [folder / source.gguf] if source.gguf else [*folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)


def _refuse_pickled(source: Source, revision: str | None) -> None:
    """Refuse a model of the hub, or of its cache, that has pickled weights only, before they are fetched.

    Raises:
        ModelError: naming the file.
    """
    if source.local or source.gguf:
        return  # a folder was looked at before
    from transformers.utils.hub import has_file

    def there(file: str) -> bool:
        return has_file(source.where, file, revision=revision, local_files_only=source.offline)

    if not any(there(f"model.safetensors{end}") for end in ("", ".index.json")):
        for file in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            if there(file):
                raise _pickled(f"model {source.name!r}", file)


def _read_weights(
    source: Source, config: Any, options: Options, shared: dict[str, Any]
) -> tuple[Any, dict[str, Any], list[str]]:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    extra, notes = _dequantised(source, config)
    unpacked = bool(notes)
    extra |= {"device_map": options.device_map} if options.device_map is not None else {}
    extra |= {} if source.gguf else {"use_safetensors": True}
    kind: Any = AutoModelForCausalLM
    if is_wrapper(config):
        kind = AutoModelForImageTextToText
        notes.append("a vision-language model, of which the text decoder is measured")
    module, report = kind.from_pretrained(
        source.where,
        config=config,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        ignore_mismatched_sizes=True,  # the report says which, and check_report refuses them
        output_loading_info=True,
        **shared,
        **extra,
    )
    if hasattr(module, "hf_quantizer"):
        module = module.dequantize(dtype=None if options.dtype == "auto" else options.dtype)
    if unpacked:
        embedding = module.get_input_embeddings().weight.dtype
        _settle_dtype(module, options.dtype if isinstance(options.dtype, torch.dtype) else embedding)
    return module, report, notes


def _settle_dtype(module: Any, dtype: torch.dtype) -> None:
    """What was not packed in a quantised file keeps the file's type; here all get one."""
    wide = [*(getattr(module, "_keep_in_fp32_modules", None) or [])]
    wide += [*(getattr(module, "_keep_in_fp32_modules_strict", None) or [])]
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not any(part in name.split(".") for part in wide):
            weight.data = weight.data.to(dtype)


@contextlib.contextmanager
def listening(source: Source) -> Iterator[list[str]]:
    """Collect what the libraries warn of while they load, instead of letting them print it beside their reports.

    Progress bars of local folders are off; a download shows its own.
    """
    from transformers.utils import logging as transformers_logging

    logger, bars = transformers_logging.get_logger("transformers"), transformers_logging.is_progress_bar_enabled()
    before = logger.handlers[:], logger.level
    said: list[str] = []
    collector = _Collector(said)
    logger.handlers[:] = [collector]
    logger.setLevel(logging.WARNING)
    if source.local:
        transformers_logging.disable_progress_bar()
    quiet = contextlib.redirect_stderr(io.StringIO()) if source.gguf else contextlib.nullcontext()  # bars of its own
    with quiet, quiet_boot(), _nothing_unpickled(source), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            logger.handlers[:], level = before
            logger.setLevel(level)
            if source.local and bars:
                transformers_logging.enable_progress_bar()
            said.extend(str(one.message) for one in caught if one.category is UserWarning)


_LOADING = threading.RLock()


@contextlib.contextmanager
def _nothing_unpickled(source: Source) -> Iterator[None]:
    """While a library loads, a pickle is refused by name, whatever led there: an index, a configuration, an adapter."""
    with _LOADING:  # two threads would leave it refused
        read = torch.load

        def refuse(file: Any, *_args: Any, **_options: Any) -> Any:
            raise _pickled(f"model {source.name!r}", Path(str(getattr(file, "name", file))).name)

        torch.load = refuse
        try:
            yield
        finally:
            torch.load = read


class _Collector(logging.Handler):
    """Keeps warnings; the report on weights and the unpacking are told by mechrep itself."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not any(known in message for known in ("LOAD REPORT", "is deprecated", "dequantize")):
            self.said.append(" ".join(message.split()))


# -- what transformers is told and what it says -----------------------------------------------------------------------


def _dequantised(source: Source, config: Any) -> tuple[dict[str, Any], list[str]]:
    """Options that make transformers unpack quantised weights while it loads, and what to say about it.

    Raises:
        ModelError: transformers cannot unpack this kind.
    """
    if source.gguf:
        import transformers

        kind = getattr(transformers, "GgufConfig", None)  # older versions always unpack
        unpack = {} if kind is None else {"quantization_config": kind(dequantize=True)}
        return unpack, [f"the GGUF file {source.gguf}: quantised weights are unpacked"]
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return {}, []
    import inspect

    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.base import HfQuantizer

    settings = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(settings.get("quant_method", ""))
    if method == "bitsandbytes":
        method += "_8bit" if settings.get("load_in_8bit") else "_4bit"
    note = f"weights are those of the quantisation {method!r}, unpacked; activations are not rounded"
    kind, quantizer = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method), AUTO_QUANTIZER_MAPPING.get(method)
    if kind is not None and "dequantize" in inspect.signature(kind.__init__).parameters:
        config.quantization_config = settings | {"dequantize": True}
        return {}, [note]
    if quantizer is not None and quantizer._dequantize is not HfQuantizer._dequantize:
        return {}, [note]
    raise ModelError(
        f"{source.name!r}, whose weights are packed by {method!r}",
        "weights as numbers: analyses read them, and transformers cannot unpack these",
        "load the model that it was made from, or a version in bf16, fp8 or GGUF",
    )


def _unreadable(source: Source, revision: str | None, error: Exception) -> ModelError:
    check = "its files" if source.local else "the spelling and the network"
    check = "the network: the hub's address is not known here" if source.offline else check
    return ModelError(
        f"model {source.name!r}" + (f" at revision {revision!r}" if revision else ""),
        f"one of the embedded models ({', '.join(tiny.NAMES)}), a hub name that can be reached, or a local folder "
        "with config.json and weights",
        f"check {check}; the loader said: {first_line(error)}",
    )


def _missing_package(source: Source, error: ImportError) -> ModelError:
    said = str(error)
    package = next((package for package in _EXTRAS if package in said.lower()), None)
    remedy = f"pip install 'mechrep[{_EXTRAS[package]}]'" if package else "install it"
    return ModelError(
        f"model {source.name!r}, which needs a package that is not installed",
        f"{package or 'that package'} beside transformers",
        f"{remedy}; the loader said: {first_line(error)}",
    )


def _names_in_file(source: Source, revision: str | None) -> Iterable[str]:
    """Names of all tensors of a model, off its index or the header of its one file."""
    if source.gguf:
        return []
    from transformers.utils.hub import cached_file

    where: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    where |= {"local_files_only": True}
    index = cached_file(source.where, "model.safetensors.index.json", **where)
    if index is not None:
        return list(read_json(Path(index))["weight_map"])
    file = cached_file(source.where, "model.safetensors", **where)
    if file is None:
        return []
    with safe_open(file, "pt") as weights:
        return list(weights.keys())
