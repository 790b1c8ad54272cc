"""Files that were damaged: whatever is in them, loading ends, in bounded memory, with mechrep's own error or whole."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mechrep
from mechrep.disk import SUMS
from mechrep.errors import MechrepError
from mechrep.sections import Section
from mechrep.store import Store
from tests.badinput.damage import damaged
from tests.badinput.world import World

FAST, MANY, MODELS = 12, 400, 300  # of each kind of file
ROOM = 6 * 2**30  # bytes of memory beside what is in use
SECONDS = 20.0


def saved_result(world: World, folder: Path) -> list[Path]:
    world.neurons.save(folder / "result")
    return [folder / "result" / "result.json", folder / "result" / "tensors.safetensors"]


def saved_corpus(world: World, folder: Path) -> list[Path]:
    world.corpus.save(folder / "corpus.parquet")
    return [folder / "corpus.parquet"]


def saved_circuit(world: World, folder: Path) -> list[Path]:
    mechrep.Circuit.from_heads(world.heads, 2).save(folder / "circuit.json")
    return [folder / "circuit.json"]


def saved_section(world: World, folder: Path) -> list[Path]:
    section = Section("x", world.neurons.provenance, {"model": "m"}, tables={"t": world.effects.summary()})
    section.save(folder / "section")
    return [*(folder / "section").glob("*.json"), *(folder / "section").rglob("*.parquet")]


def saved_store(world: World, folder: Path) -> list[Path]:
    """A store with a finished result and half-finished sums."""
    cache = mechrep.CorpusCache(world.model, world.corpus, store=folder / "store", progress=False)
    cache.run(mechrep.SinkNorms(positions=8))
    store, other = Store(folder / "store"), mechrep.SinkNorms(positions=9)
    mechrep.CorpusCache(world.model, world.corpus, progress=False).run(other)
    store.checkpoint({0: store.key(world.model, world.corpus, other)}, {0: other}, 1, now=True)
    return [*(folder / "store").rglob("*.json"), *(folder / "store").rglob("*.safetensors")]


def read_store(world: World, folder: Path) -> Any:
    cache = mechrep.CorpusCache(world.model, world.corpus, store=folder / "store", progress=False)
    return cache.run(mechrep.SinkNorms(positions=8), mechrep.SinkNorms(positions=9))


KINDS: dict[str, tuple[Callable[[World, Path], list[Path]], Callable[[World, Path], Any]]] = {
    "result": (saved_result, lambda w, f: mechrep.load(f / "result")),
    "result of a known kind": (saved_result, lambda w, f: type(w.neurons).load(f / "result")),
    "corpus": (saved_corpus, lambda w, f: mechrep.Corpus.load(f / "corpus.parquet")),
    "corpus of a model": (saved_corpus, lambda w, f: mechrep.Corpus.load(f / "corpus.parquet", w.model)),
    "circuit": (saved_circuit, lambda w, f: mechrep.load(f / "circuit.json")),
    "section": (saved_section, lambda w, f: mechrep.load(f / "section")),
    "store": (saved_store, read_store),
}


def outcomes(kind: str, world: World, folder: Path, seeds: range) -> Counter[str]:
    """How loading ended, damage by damage; anything else than an error of mechrep's or a loaded thing is raised."""
    save, read = KINDS[kind]
    whole, found = folder / "whole", Counter[str]()
    whole.mkdir()
    names = [path.relative_to(whole) for path in sorted(save(world, whole))]
    for seed in seeds:
        shutil.copytree(whole, folder / "now")
        way = damaged(folder / "now" / names[seed % len(names)], seed)
        if seed % 3:  # as mechrep 0.1 wrote it, without sums that tell
            for sums in (folder / "now").rglob(SUMS):
                sums.unlink()
        try:
            read(world, folder / "now")
            found["loaded"] += 1
        except MechrepError:
            found["refused"] += 1
        except BaseException as error:
            error.add_note(f"{kind}, {names[seed % len(names)]}, seed {seed}, {way}")
            raise
        finally:
            shutil.rmtree(folder / "now")
    return found


@pytest.fixture
def little_room() -> Any:
    """A limit to the memory of this process, above what it has now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_or_whole(kind: str, world: World, tmp_path: Path, little_room: None) -> None:
    found = outcomes(kind, world, tmp_path, range(FAST))
    assert found.total() == FAST and found["refused"] >= FAST // 3


@pytest.mark.slow
def test_thousands_of_damaged_files(
    world: World, tmp_path: Path, little_room: None, trust: Callable[..., None]
) -> None:
    found = Counter[str]()
    for number, kind in enumerate(KINDS):
        (tmp_path / str(number)).mkdir()
        found += outcomes(kind, world, tmp_path / str(number), range(1000, 1000 + MANY))
    trust(
        section="bad input",
        what=f"damaged corpora, results, circuits, sections, stores: refused, or loaded (in {ROOM >> 30} GiB)",
        asked="no other error, crash or hang",
        measured=f"{found['refused']:,} refused, {found['loaded']:,} loaded of {found.total():,}",
        holds=True,
    )
    assert found.total() == MANY * len(KINDS)


# --- models -----------------------------------------------------------------------------------------------------------

# A process of its own: what reads them is C and Rust, and a crash there would end the tests.
LOADER = """
import collections, json, pathlib, shutil, sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import mechrep
from mechrep.errors import MechrepError
from tests.badinput.damage import damaged
whole, names, first, last, seconds = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), *map(float, sys.argv[3:6])
ended = collections.Counter()
for seed in range(int(first), int(last)):
    now = whole.with_name("now")
    shutil.copytree(whole, now)
    name = names[seed % len(names)]
    way, begin = damaged(now / name, seed), time.process_time()  # a busy machine is not slow code
    try:
        mechrep.load_model(now / name if name.endswith(".gguf") else now)
        ended["loaded"] += 1
    except MechrepError:
        ended["refused"] += 1
    except BaseException as error:
        ended[f"{name}, seed {seed}, {way}: {type(error).__name__}: {error}"[:300]] += 1
    if time.process_time() - begin > seconds:
        ended[f"{name}, seed {seed}, {way}: {time.process_time() - begin:.0f} s"] += 1
    shutil.rmtree(now)
print(json.dumps(ended))
"""


def loaded_in_a_process(whole: Path, names: list[str], first: int, last: int) -> dict[str, int]:
    """How loading of damaged models ended, in a process with a limit to its memory."""
    limit = 12 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(whole), ",".join(names), str(first), str(last), str(SECONDS)],
        capture_output=True,
        text=True,
        timeout=3000,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def folder_of_a_model(world: World, folder: Path) -> list[str]:
    world.fresh().save_pretrained(folder)
    return ["config.json", "model.safetensors"]


def file_of_a_model(_world: World, folder: Path) -> list[str]:
    from tests.models.test_inputs import write_gguf
    from tests.tiny_models import fresh

    folder.mkdir()
    write_gguf(folder / "model.gguf", fresh("qwen2"))
    return ["model.gguf"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "save"), [("folder", folder_of_a_model), ("GGUF", file_of_a_model)])
def test_damaged_models(
    kind: str,
    save: Callable[[World, Path], list[str]],
    world: World,
    tmp_path: Path,
    trust: Callable[..., None],
) -> None:
    names = save(world, tmp_path / "whole")
    ended = loaded_in_a_process(tmp_path / "whole", names, 0, MODELS)
    other = {key: count for key, count in ended.items() if key not in ("loaded", "refused")}
    trust(
        section="bad input",
        what=f"damaged models ({kind}): refused by mechrep, or loaded (12 GiB, {SECONDS:.0f} s of computing each)",
        asked="no other error, crash or hang",
        measured=f"{ended.get('refused', 0)} refused, {ended.get('loaded', 0)} loaded of {MODELS}",
        holds=not other,
    )
    assert not other


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
        {"intermediate_size": 10**12},
        {"num_attention_heads": 10**9},
        {"num_hidden_layers": -1},
        {"hidden_size": "wide"},
        {"model_type": "nosuch"},
        {"model_type": 7},
        {"architectures": 3},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused_before_there_is_room_made(
    change: dict[str, Any], world: World, tmp_path: Path, little_room: None
) -> None:
    names = folder_of_a_model(world, tmp_path / "model")
    config = tmp_path / "model" / names[0]
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(mechrep.errors.ModelError):
        mechrep.load_model(tmp_path / "model")
