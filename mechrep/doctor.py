"""``mechrep doctor``: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

State = Literal["ok", "missing", "note"]
_SIGNS: dict[State, str] = {"ok": "ok", "missing": "missing", "note": "note"}
_NEEDED = ("torch", "transformers", "transformer-lens", "numpy", "pandas", "plotly", "safetensors", "pyarrow")
# Extra: its packages by the name they are imported by, and what they are for.
EXTRAS: dict[str, tuple[dict[str, str], str]] = {
    "figures": ({"kaleido": "kaleido"}, "figures as SVG, PNG or PDF files"),
    "widget": ({"anywidget": "anywidget"}, "the viewer beside a running kernel"),
    "evals": ({"lm_eval": "lm_eval"}, "benchmarks: mechrep eval"),
    "notebooks": ({n: n for n in ("ipykernel", "jupytext", "nbclient", "nbformat")}, "running the notebooks"),
    "gguf": ({"gguf": "gguf"}, "models in .gguf files"),
    "peft": ({"peft": "peft"}, "adapters (LoRA)"),
    "ray": ({"ray": "ray"}, "studies on many machines: --engine ray"),
    "bnb": ({"bitsandbytes": "bitsandbytes"}, "models in 8 or 4 bits"),
    "lab": ({"jupyterlab": "jupyterlab"}, "notebooks in JupyterLab, and the test that starts it"),
    "docs": ({"furo": "furo", "myst-nb": "myst_nb", "sphinx": "sphinx"}, "building the documentation"),
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "brave", "msedge")
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        what: what was looked for.
        state: ``"ok"``, ``"missing"``, or ``"note"`` for what may be as it should.
        found: what there is.
        cure: how to get what is missing.
    """

    what: str
    state: State
    found: str
    cure: str = ""

    @property
    def line(self) -> str:
        """The finding for a terminal."""
        cure = f"; to get it: {self.cure}" if self.cure else ""
        return f"{_SIGNS[self.state]:>8}  {self.what}: {self.found}{cure}"


def findings() -> list[Finding]:
    """Everything that was looked at; nothing is installed, loaded from a network or changed.

    Example:
        >>> {one.state for one in findings()} <= {"ok", "missing", "note"}
        True
    """
    return [*_packages(), *_extras(), _browser(), *_machine(), *_models(), *_settings()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    from mechrep import __version__

    found = [Finding("mechrep", "ok", f"{__version__}, Python {sys.version.split()[0]}")]
    for name in _NEEDED:
        version = _version(name)
        if version is None:
            found.append(Finding(name, "missing", "not installed", f"pip install {name}"))
        else:
            found.append(Finding(name, "ok", version))
    return found


def _extras() -> list[Finding]:
    found = []
    for extra, (packages, use) in EXTRAS.items():
        lacking = [name for name, module in packages.items() if importlib.util.find_spec(module) is None]
        if lacking:
            cure = f"pip install 'mechrep[{extra}]'"
            found.append(Finding(f"extra {extra}", "missing", f"{use}: without {', '.join(lacking)}", cure))
        else:
            found.append(Finding(f"extra {extra}", "ok", use))
    return found


def _browser() -> Finding:
    path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        return Finding("Chrome or Chromium", "missing", "kaleido draws with it", "install it, or kaleido_get_chrome")
    return Finding("Chrome or Chromium", "ok", path)


def _machine() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        sizes = [torch.cuda.get_device_properties(i).total_memory / _GIB for i in range(len(names))]
        gpu = ", ".join(f"{name} ({size:.0f} GiB)" for name, size in zip(names, sizes, strict=True))
        device = Finding("GPU", "ok", gpu)
    elif torch.backends.mps.is_available():
        device = Finding("GPU", "ok", "Apple (mps)")
    else:
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch sees none"
        cure = "pytorch.org/get-started names the build for your card" if torch.version.cuda is None else ""
        device = Finding("GPU", "note", f"none, {built}: models run on the CPU", cure)
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    return [
        device,
        Finding("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"),
        _memory(),
        Finding("disk", "note" if free < 5 else "ok", f"{free:.0f} GiB free here"),
    ]


def _memory() -> Finding:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", "note", "this system does not say")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    weights = total * 0.7 * _GIB / 4 / 1e9  # in float32, with room for activations
    return Finding("memory", "ok", f"{total:.0f} GiB: on the CPU models up to about {weights:.1f} billion weights")


def _models() -> list[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from mechrep.models import tiny

    cache = Path(HF_HUB_CACHE)
    kept = sorted(one.name.removeprefix("models--").replace("--", "/") for one in cache.glob("models--*"))
    named = f"{len(kept)} models in {cache}" + (f" ({', '.join(kept[:3])}{', ...' * (len(kept) > 3)})" if kept else "")
    found = [Finding("embedded models", "ok", ", ".join(tiny.NAMES)), Finding("models from the hub", "note", named)]
    given = os.environ.get("MECHREP_REAL_MODELS")
    folder = Path(given) if given else Path("real-models")
    there = sorted(one.parent.name for one in folder.glob("*/config.json"))
    if there:
        found.append(Finding("real models", "ok", f"{', '.join(there)} in {folder}"))
    else:
        cure = "make real-models, or set MECHREP_REAL_MODELS to their folder"
        found.append(Finding("real models", "missing", f"none in {folder}; tests on real models need them", cure))
    return found


def _settings() -> list[Finding]:
    offline = bool(os.environ.get("HF_HUB_OFFLINE"))
    terminal = "colours" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else "no colours"
    return [
        Finding("network", "note", "off (HF_HUB_OFFLINE)" if offline else "used where a hub name is given"),
        Finding("output", "note", f"{terminal} (NO_COLOR, FORCE_COLOR)"),
    ]


def doctor(
    *, json_: Annotated[bool, Parameter(name="--json", help="Print the findings as JSON.", negative=())] = False
) -> None:
    """Say what is installed, what is missing, and how to get it; nothing is changed."""
    found = findings()
    if json_:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n")
        return
    for one in found:
        sys.stdout.write(one.line + "\n")
    missing = sum(one.state == "missing" for one in found)
    sys.stdout.write(f"{missing} missing; mechrep itself needs none of the extras\n")
