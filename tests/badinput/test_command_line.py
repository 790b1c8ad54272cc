"""Wrong command lines: each ends with a code, one line, and the right word, and without a traceback."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from mechrep import cli

TINY = "mechrep-tiny"
NO_SUCH = {int: "many", float: "hot"}

# Command line: the word that names what is wrong.  Code 1: said by mechrep; 2: no such option, or no value for it.
CASES: list[tuple[str, str, int]] = [
    ("nosuch", "nosuch", 2),
    ("reprot mechrep-tiny", "report", 2),
    ("report mechrep-tinny", "did you mean 'mechrep-tiny'", 1),
    ("report ./nowhere", "./nowhere", 1),
    ("report empty", "config.json", 1),
    ("report mechrep-tiny --only nosuch", "nosuch", 1),
    ("report mechrep-tiny --only snks", "did you mean 'sinks'", 1),
    ("report mechrep-tiny --only heads,heads", "each once", 1),
    ("report mechrep-tiny --only ''", "--only", 1),
    ("report mechrep-tiny --held-out nowhere.txt", "nowhere.txt", 1),
    ("report mechrep-tiny --held-out empty.txt", "empty.txt", 1),
    ("report mechrep-tiny --held-out empty", "empty", 1),
    ("report mechrep-tiny --sink-layer 9", "layer", 1),
    ("report mechrep-tiny --out file.txt", "file.txt", 1),
    ("report mechrep-tiny --seed -1", "seed", 1),
    ("report mechrep-tiny --device gpu", "device", 1),
    ("report mechrep-tiny --revision step1", "step1", 1),
    ("report mechrep-tiny --workers 2", "engine", 1),
    ("report mechrep-tiny --address host:1", "engine", 1),
    ("report mechrep-tiny mechrep-tiny", "each once", 1),
    ("neurons mechrep-tiny --ks seven", "whole numbers", 1),
    ("neurons mechrep-tiny --ks -1", "ks", 1),
    ("neurons mechrep-tiny --ks ''", "whole numbers", 1),
    ("neurons mechrep-tiny --preset nosuch", "preset", 1),
    ("neurons mechrep-tiny --corpus nowhere.parquet", "nowhere.parquet", 1),
    ("neurons mechrep-tiny --corpus broken.parquet", "broken.parquet", 1),
    ("neurons mechrep-tiny --corpus broken.jsonl", "broken.jsonl", 1),
    ("neurons mechrep-tiny --corpus broken.csv", "broken.csv", 1),
    ("heads mechrep-tiny --preset nosuch", "preset", 1),
    ("heads mechrep-tiny --ks -3", "ks", 1),
    ("sinks mechrep-tiny --sink-layer -1", "layer", 1),
    ("sinks mechrep-tiny --tokens 0", "tokens", 1),
    ("first-layer mechrep-tiny --triples 0", "triples", 1),
    ("first-layer mechrep-tiny --layer 9", "layer", 1),
    ("patch mechrep-tiny --tasks nosuch", "tasks", 1),
    ("patch mechrep-tiny --limit 0", "limit", 1),
    ("text-kinds mechrep-tiny --op nosuch", "op", 1),
    ("text-kinds mechrep-tiny --k 0", "k", 1),
    ("information mechrep-tiny --ways nosuch", "ways", 1),
    ("checkpoints mechrep-tiny --revisions step1", "step1", 1),
    ("checkpoints mechrep-tiny --measures nosuch", "measure", 1),
    ("card mechrep-tiny --nulls -1", "nulls", 1),
    ("card mechrep-tiny --n-prompts 0", "prompts", 1),
    ("card mechrep-tiny --sink-layer 9", "layer", 1),
    ("card mechrep-tiny --held-out nowhere.txt", "nowhere.txt", 1),
    ("verify mechrep-tinny", "did you mean", 1),
    ("ablate mechrep-tiny", "--components", 2),
    ("ablate mechrep-tiny nosuch", "L3H1", 1),
    ("ablate mechrep-tiny L9H0", "layer", 1),
    ("ablate mechrep-tiny L0H9", "head", 1),
    ("ablate mechrep-tiny L2H0,L2H0", "each once", 1),
    ("ablate mechrep-tiny L5E7", "expert", 1),
    ("ablate mechrep-tiny nowhere.json", "nowhere.json", 1),
    ("ablate mechrep-tiny broken.json", "broken.json", 1),
    ("ablate mechrep-tiny L2H0 --outcomes nosuch", "outcomes", 1),
    ("ablate mechrep-tiny L2H0 --outcomes los", "did you mean 'loss'", 1),
    ("ablate mechrep-tiny L2H0 --controls nosuch", "control", 1),
    ("ablate mechrep-tiny L2N0 --op to_bos", "to_bos", 1),
    ("eval mechrep-tiny --tasks nosuch", "tasks", 1),
    ("eval mechrep-tiny --tasks winogrande", "winogrande", 1),
    ("eval mechrep-tiny --tasks winogrande --data nowhere", "nowhere", 1),
    ("eval mechrep-tiny --limit 0", "limit", 1),
    ("eval mechrep-tiny --patch L2H0", "heads", 1),
    ("eval mechrep-tiny --patch L1N5,L2N5", "one layer", 1),
    ("compare mechrep-tiny Hello", "--ablate", 1),
    ("compare mechrep-tiny --ablate L2H0", "prompt", 1),
    ("compare mechrep-tiny Hello --ablate L2H0 --candidates 0", "candidates", 1),
    ("compare mechrep-tiny Hello --ablate L2H0 --max-new-tokens 0", "max_new_tokens", 1),
    ("compare mechrep-tiny Hello --ablate L2H0 --html no/where.html", "where.html", 1),
    ("look mechrep-tiny", "prompt", 1),
    ("look mechrep-tiny --prompt a --prompt b", "one to look at", 1),
    ("look mechrep-tiny Hello --by nosuch", "nosuch", 1),
    ("look mechrep-tiny Hello --by L9H0 --max-new-tokens 0", "layer", 1),
    ("look mechrep-tiny Hello --by surprisal,surprisal --max-new-tokens 0", "each once", 1),
    ("generate mechrep-tiny", "prompt", 1),
    ("generate mechrep-tiny Hello --top-k 5", "temperature", 1),
    ("generate mechrep-tiny Hello --top-k 0 --temperature 1", "top_k", 1),
    ("generate mechrep-tiny Hello --temperature -1", "temperature", 1),
    ("generate mechrep-tiny Hello --temperature nan", "temperature", 1),
    ("generate mechrep-tiny Hello --max-new-tokens 0", "max_new_tokens", 1),
    ("generate mechrep-tiny Hello --max-new-tokens 99999", "positions", 1),
    ("generate mechrep-tiny Hello --seed -1", "seed", 1),
    ("generate mechrep-tiny Hello --ablate L9H0", "layer", 1),
    ("generate mechrep-tiny --prompts nowhere.txt", "nowhere.txt", 1),
    ("generate mechrep-tiny --prompts table.csv::nosuch", "nosuch", 1),
    ("generate mechrep-tiny --prompts latin.txt", "UTF-8", 1),
    ("generate mechrep-tiny ''", "empty", 1),
    ("models mechrep-tinny", "did you mean", 1),
    ("models --explain", "--explain", 1),
    ("models empty", "config.json", 1),
    ("models file.txt", "file.txt", 1),
    ("models broken.gguf", "broken.gguf", 1),
    ("doctor extra", "extra", 2),
]


def made_from_signatures() -> Iterator[tuple[str, str, int]]:
    """Of every command an option that is not there; of every option of numbers or choices a value it cannot have."""
    for name in cli.COMMANDS:
        model = "" if name == "doctor" else f" {TINY}" + " L2H0" * (name == "ablate")
        yield f"{name}{model} --no-such-option", "--no-such-option", 2
        if name not in ("models", "doctor"):
            yield name, "--model", 2
        for argument in cli.app[name].assemble_argument_collection(parse_docstring=False):
            hint = argument.hint
            kinds = [one for one in (*typing.get_args(hint), hint) if one is not type(None)]
            value = next((NO_SUCH[one] for one in kinds if one in NO_SUCH), None)
            if value is None and any(typing.get_origin(one) is Literal for one in kinds):
                value = "nosuch"
            if value is not None and not argument.children:
                option = next(one for one in argument.names if one.startswith("--"))
                yield f"{name}{model} {option} {value}", option, 2


ALL = [*CASES, *made_from_signatures()]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that cannot be meant."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "empty").mkdir()
    contents = {
        "empty.txt": b"", "file.txt": b"Hello\n", "broken.parquet": b"PAR1 nothing", "broken.jsonl": b'{"text": \n',
        "broken.csv": b"a\nb,c,d\n", "broken.json": b"{", "table.csv": b"text,n\nHello,1\n", "latin.txt": b"caf\xe9\n",
        "broken.gguf": b"GGUF\x03\x00\x00\x00" + b"\xff" * 40,
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def said(line: str, place: Path, capsys: Any) -> tuple[int, str]:
    """Exit code of a command line, and what it printed, as one line."""
    import shlex

    before = Path.cwd()
    os.chdir(place)
    try:
        code = cli.main(shlex.split(line))
    finally:
        os.chdir(before)
    shown = capsys.readouterr()
    return code, " ".join((shown.err + (shown.out if code == 2 else "")).replace("│", " ").split())


@pytest.mark.parametrize(("line", "word", "code"), ALL, ids=[line for line, _, _ in ALL])
def test_a_wrong_command_line_ends_in_one_line(
    line: str, word: str, code: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, shown = said(line, place, capsys)
    assert (ended, "Traceback" in shown) == (code, False), shown
    assert word in shown
    assert code == 2 or shown.startswith("error: given: ") or "error: given: " in shown


def test_every_command_and_option_is_asked() -> None:
    commands = {line.split()[0] for line, _, _ in CASES}
    assert not set(cli.COMMANDS) - commands


@pytest.mark.slow
def test_the_figures(place: Path, capsys: pytest.CaptureFixture[str], trust: Callable[..., None]) -> None:
    answers = [(said(line, place, capsys), word, code) for line, word, code in ALL]
    right = sum(ended == code and word in shown and "Traceback" not in shown for (ended, shown), word, code in answers)
    trust(
        section="bad input",
        what="wrong command lines that end with the stated code and word, without a traceback",
        asked="all",
        measured=f"{right} of {len(ALL)}",
        holds=right == len(ALL),
    )
    assert right == len(ALL)
