"""Same seed, same machine, same bytes: two processes with other hash seeds save the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.generation import sample_prompts
from mechrep.generation.decode import generate
from mechrep.models.load import load_model
from tests.numerics.analyzers import MAKERS, TINY
from tests.numerics.twice import sums

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["HeadScores", "SinkNorms", "RepetitionNeurons"])
def test_reading_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    model = load_model(TINY, check=False)
    for number in range(2):
        corpus, analyzer = MAKERS[name](model)
        CorpusCache(model, corpus, progress=False).run(analyzer).save(tmp_path / f"{number}")
    one, other = (sums(tmp_path / f"{number}") for number in range(2))
    assert one == other and "tensors.safetensors" in one


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0, "seed": 7}])
def test_writing_twice_gives_the_same_bytes(fields: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(TINY, check=False)
    for number in range(2):
        torch.rand(number)  # the state of torch's own generator is nobody's business
        made = generate(model, sample_prompts(model, 3), max_new_tokens=15, progress=False, **fields)
        made.save(tmp_path / f"{number}.parquet")
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


@pytest.mark.slow
def test_two_processes_save_the_same_files(tmp_path: Path, trust: Any) -> None:
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.numerics.twice", str(folder)],
            cwd=ROOT, env=environment, check=True,
        )  # fmt: skip
        found.append(sums(folder))
    one, other = found
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    trust(section="numerics", what="same seed, two processes with other hash seeds: files with the same bytes, but for "
          "the time in `provenance.made`", asked="all", measured=f"{len(one) - len(differ)} of {len(one)}",
          holds=not differ)  # fmt: skip
    assert not differ and len(one) > 30
