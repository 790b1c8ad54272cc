"""The command line: what it prints, writes and refuses, and that asking for help is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mechrep import __version__
from mechrep.cli import app
from mechrep.errors import NothingFoundError
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.report.page import marked_text, printable
from mechrep.studies.card import CardResult
from mechrep.text.corpus import Corpus

LOOP = " the sea, the sea, the sea, the sea"


def run(*arguments: object, code: int = 0):
    """Run one command and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom mechrep.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'plotly', 'pandas', 'numpy', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_every_command_is_listed() -> None:
    listed = run("--help").output
    assert all(command in listed for command in ("report", "neurons", "generate", "card", "models"))


def test_version() -> None:
    assert run("--version").output.strip() == f"mechrep {__version__}"


def test_models_lists_what_the_history_says() -> None:
    output = run("models").output
    assert "mechrep-tiny" in output and "hub name" in output
    for line in tiny.history():
        assert f"{line['tokens']:,}" in output and f"{line['held_out_loss']:.3f}" in output


def test_generate_continues_each_prompt_and_says_where_it_loops() -> None:
    output = run("generate", "mechrep-tiny", "--prompt", LOOP, "--prompt", "Once", "--max-new-tokens", 24).output
    assert "[1/2] " in output and "[2/2] " in output and "the sea│" in output


def test_generate_reads_prompts_and_cuts_from_files(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Once upon\n\nThe king\n", encoding="utf-8")
    (tmp_path / "top.json").write_text(json.dumps([[3, 1], [3, 2]]))
    common = ["generate", "mechrep-tiny", "--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 8]
    from_file = run(*common, "--cut", tmp_path / "top.json").output
    assert "[2/2]" in from_file
    assert from_file == run(*common, "--cut", "3:1,3:2").output


def test_cutting_everything_changes_the_text() -> None:
    common = ["generate", "mechrep-tiny", "--prompt", "Once upon", "--max-new-tokens", 12]
    everything = ",".join(f"{layer}:{neuron}" for layer in range(4) for neuron in range(352))
    assert run(*common).output != run(*common, "--cut", everything).output


def test_text_in_a_terminal_is_marked_and_harmless() -> None:
    words = ["<s>", " a", " b", "\x1b[2J"]

    def decode(ids) -> str:  # like SentencePiece: no leading space at the beginning
        return "".join(words[i] for i in ids).lstrip()

    assert marked_text([1, 2, 1, 2, 1], decode, prompt_length=0, start=0, onset=2) == "│⟨a b⟩⟪ a b a⟫"
    assert marked_text([1, 3], decode, prompt_length=1, start=None, onset=None) == "a│\\x1b[2J"
    assert printable("tab\tand line\n, right-to-left \u202e") == "tab\tand line\n, right-to-left \\u202e"


@pytest.fixture
def few_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looping texts at once instead of a search."""

    def collect(model, n_loops: int, **_: object) -> Corpus:
        texts = [[0, *range(9, 49), *[40, 41, 42, 43] * 9], [0, *range(60, 99), *[7, 8, 9] * 12]][:n_loops]
        return Corpus.from_tokens(texts, model=model).with_cycles()

    monkeypatch.setattr("mechrep.generation.loops.collect_loops", collect)


def test_neurons_prints_and_writes(tmp_path: Path, few_loops: None) -> None:
    output = run("neurons", "mechrep-tiny", "--out", tmp_path, "--texts", 2).output
    result = RepetitionNeuronResult.load(tmp_path / "neurons")
    assert len(output.splitlines()) == 1 + 20 + 1 and output.splitlines()[-1] == str(tmp_path / "neurons")
    assert len(pd.read_parquet(tmp_path / "neurons.parquet")) == result.n_neurons
    assert [tuple(pair) for pair in json.loads((tmp_path / "top.json").read_text())] == result.top(result.published_k)
    run("generate", "mechrep-tiny", "--prompt", "a", "--max-new-tokens", 2, "--cut", tmp_path / "top.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "mechrep-tiny", "--ks", "0,many"],
        ["report", "mechrep-tiny", "--ks", "-5"],
        ["report", "mechrep-tiny", "--texts", "0"],
        ["report", "mechrep-tiny", "--preset", "other"],
        ["report", "mechrep-tiny", "--held-out", "/no/such/file"],
        ["report", "mechrep-tiny", "--only", "neurons,noses"],
        ["report"],
        ["neurons", "mechrep-tiny"],
        ["generate", "mechrep-tiny"],
        ["generate", "mechrep-tiny", "--prompt", "a", "--cut", "three"],
        ["generate", "mechrep-tiny", "--prompt", "a", "--device", "abacus"],
        ["nonsense"],
    ],
)
def test_wrong_arguments_exit_with_two(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(*arguments, code=2)


def test_errors_are_one_line_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}}")
    (tmp_path / "file").write_text("")
    for arguments in (
        ["report", tmp_path / "no-such-model", "--out", tmp_path / "out"],
        ["report", "mechrep-tiny", "--revision", "step7", "--out", tmp_path / "out"],
        ["report", "mechrep-tiny", "--out", tmp_path / "file" / "out"],
        ["generate", "mechrep-tiny", "--prompt", "a", "--cut", "9:0"],
        ["generate", "mechrep-tiny", "--prompt", "a", "--cut", tmp_path / "bad.json"],
        ["generate", "mechrep-tiny", "--prompt", "a", "--cut", tmp_path / "none.json"],
    ):
        result = run(*arguments, code=1)
        assert result.stdout == "" and result.stderr.startswith("error: given: ")
        assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


def test_what_the_floors_below_refuse_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise NothingFoundError("no\nloops", "some", "try again")

    monkeypatch.setattr("mechrep.studies.neurons.run_repetition_study", nothing)
    result = run("report", "mechrep-tiny", "--out", tmp_path, "--only", "neurons", code=1)
    assert result.stderr == "error: given: no loops; expected: some; to do: try again\n"


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mechrep.studies.neurons.run_repetition_study", interrupted)
    result = run("report", "mechrep-tiny", "--out", tmp_path, code=130)
    assert result.stderr == "stopped; run the same command again to go on\n"


def test_a_bug_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mechrep.studies.neurons.run_repetition_study", broken)
    result = CliRunner().invoke(app, ["report", "mechrep-tiny", "--out", str(tmp_path)])
    assert isinstance(result.exception, ZeroDivisionError)


def test_options_of_the_model_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(name: str, **options: object):
        asked.update(options, name=name)
        return load_model("mechrep-tiny")

    monkeypatch.setattr("mechrep.models.load.load_model", load)
    run(
        "generate",
        "net",
        "--prompt",
        "a",
        "--max-new-tokens",
        1,
        "--dtype",
        "float16",
        "--device",
        "cpu",
        "--revision",
        "r",
    )
    assert (asked["name"], str(asked["dtype"]), str(asked["device"]), asked["revision"]) == (
        "net",
        "torch.float16",
        "cpu",
        "r",
    )


def test_card_measures_a_model_and_its_checkpoints(tmp_path: Path) -> None:
    wanted = [tiny.revisions()[0], tiny.revisions()[-1]]
    arguments = ["card", "mechrep-tiny", "--prompts", 8, "--nulls", 0, "--revisions", ",".join(wanted)]
    output = run(*arguments, "--out", tmp_path).output
    card = CardResult.load(tmp_path / "card")
    for row in card.rows:
        assert row.measure in output and f"{row.value:.4f}" in output
    history = pd.read_json(tmp_path / "history.jsonl", lines=True)
    assert history["revision"].unique().tolist() == wanted
    assert "plotly" in (tmp_path / "history.html").read_text(encoding="utf-8")
    assert str(tmp_path) in output


def test_card_of_all_checkpoints_needs_a_model_that_has_them(tmp_path: Path, shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    refused = run("card", folder, "--prompts", 8, "--revisions", "all", "--out", tmp_path, code=2)
    assert "embedded models only" in refused.output
    refused = run("card", "mechrep-tiny", "--prompts", 8, "--revision", "step3", "--out", tmp_path, code=1)
    assert "step3" in refused.output and tiny.revisions()[1] in refused.output
