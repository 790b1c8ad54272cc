"""The command line: what it prints, writes and refuses, and that asking for help is quick."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechrep
from mechrep import cli, commands
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import Effects
from mechrep.errors import InputError, NothingFoundError
from mechrep.models import tiny
from mechrep.sections import Section
from mechrep.text.corpus import Corpus
from mechrep.text.shown import marked_text, printable

LOOP = " the sea, the sea, the sea, the sea"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one command in a folder of its own; gives (standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        ended = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert ended == code, said.out + said.err
        return said.out, said.err

    return command


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        f"import sys\nfrom mechrep.cli import main\nassert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'plotly', 'pandas', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_every_command_is_listed_and_explains_itself_with_an_example(run: Any) -> None:
    listed, _ = run("--help")
    for name in cli.COMMANDS:
        assert name in listed
        explained, _ = run(name, "--help")
        for example in cli.COMMANDS[name][1:]:
            words = f"mechrep {name} {example}".split()
            assert re.search(r"\s+".join(map(re.escape, words)), explained), f"an example of {name} is not shown"
        assert "--json" in explained
        if name not in ("models", "doctor"):
            assert all(option in explained for option in ("--effort", "--seed", "--out", "--quiet", "MODEL"))
    assert mechrep.__version__ in run("--version")[0]


def test_shells_can_complete_commands_and_options(run: Any) -> None:
    script = cli.app.generate_completion(shell="bash")
    assert all(name in script for name in cli.COMMANDS) and "--sink-layer" in script
    assert "--install-completion" in run("--help")[0]


def test_one_option_has_one_meaning_in_every_command() -> None:
    kinds: dict[str, dict[bool, list[str]]] = {}
    for name in cli.COMMANDS:
        command = cli.app[name]
        for argument in command.assemble_argument_collection(parse_docstring=False):
            if not argument.children:
                takes_file = "Path" in str(argument.hint)
                for option in argument.names:
                    kinds.setdefault(option, {}).setdefault(takes_file, []).append(name)
    assert {"--prompts", "--held-out", "--sink-layer", "--n-prompts"} <= set(kinds), sorted(kinds)
    twofold = {option: found for option, found in kinds.items() if len(found) > 1}
    assert not twofold, "an option that is a file here and something else there"


def test_options_are_those_of_the_study() -> None:
    from mechrep.studies.neurons import run_repetition_study

    own = set(inspect.signature(run_repetition_study).parameters)
    offered = set(inspect.signature(commands.neurons).parameters)
    assert offered - {"options"} == own - {"run", "controls"}, "all but what no command line can hold"


def test_components_have_one_notation(tmp_path: Path) -> None:
    circuit = commands.read_components("L3H1, L2N57,L0N0")
    assert (circuit.heads, circuit.neurons) == (((3, 1),), ((0, 0), (2, 57)))
    Circuit("saved", heads=[(1, 0)]).save(tmp_path / "one.json")
    assert commands.read_components(str(tmp_path / "one.json")).heads == ((1, 0),)
    for wrong in ("3:1", "L3", "H1L3", "L3H1;L2N5", ""):
        with pytest.raises(InputError, match="L3H1"):
            commands.read_components(wrong)


def test_a_study_is_told_its_options_kept_and_printed(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Study:
        def section(self) -> Section:
            from mechrep.ablation.effects import example_effects

            effects = example_effects()
            return Section("neurons", effects.provenance, {"model": "m"}, tables={"made_up": effects.summary()})

    def study(model: Any, *, ks: list[int] | None = None, run: Any = None) -> Any:
        told.append((model.name, ks, run))
        return Study()

    monkeypatch.setattr("mechrep.report.build.write_page", lambda out, **_: Path(out) / "report.html")
    monkeypatch.setattr(commands, "print_section", lambda section, **_: sys.stdout.write(f"[{section.name}]"))
    command = commands._from_study("neurons", study)
    command(
        "mechrep-tiny", ks="7,98", options=commands.StudyOptions(out=tmp_path / "x", effort="quick", seed=3, quiet=True)
    )
    ((name, ks, options),) = told
    assert (name, ks, options.effort, options.seed, options.progress) == ("mechrep-tiny", [7, 98], "quick", 3, False)
    assert options.store == tmp_path / "x" / "store" and (tmp_path / "x" / "sections" / "neurons").is_dir()
    with pytest.raises(InputError, match="whole numbers"):
        command("mechrep-tiny", ks="seven", options=commands.StudyOptions(out=tmp_path / "y"))


def test_ablate_prints_verdicts_and_keeps_the_table(run: Any, small_effort: None, tmp_path: Path) -> None:
    command = ["ablate", "mechrep-tiny", "L2H0", "--outcomes", "copy_accuracy", "--effort", "quick", "--out", "kept"]
    out, _ = run(*command)
    assert "copy accuracy" in out and "verdict" in out
    effects = Effects.load(tmp_path / "kept" / "effects")
    assert effects.conditions[1].components == {"heads": [[2, 0]]}
    assert len(pd.read_parquet(tmp_path / "kept" / "values.parquet")) > 0
    assert {row["measure"] for row in json.loads(run(*command, "--json")[0])} == {"copy_accuracy", "copy_loss_drop"}


def test_eval_compares_a_patch_and_an_ablation_with_the_baseline(run: Any, small_effort: None, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    out, _ = run("eval", "mechrep-tiny", "--tasks", "recall", "--limit", 2, "--ablate", "L0H0", "--patch", "L1N5,L1N9",
                 "--effort", "quick")  # fmt: skip
    assert "held at the first token after BOS: L1N5, L1N9" in out and "zero: L0H0" in out and "recall" in out
    assert {c.name for c in Effects.load(tmp_path / "eval" / "effects").conditions} == {
        "baseline",
        "ablated",
        "patched",
    }
    for patch in ("L1N5,L2N9", "L1H0", "L1H0,L1N5"):
        assert "neurons of one layer" in run("eval", "mechrep-tiny", "--tasks", "recall", "--patch", patch, code=1)[1]


def test_generate_continues_each_prompt_and_says_where_it_loops(run: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{LOOP}\n\nIt was\n", encoding="utf-8")
    out, _ = run("generate", "mechrep-tiny", "--prompts", "prompts.txt", "--max-new-tokens", 30)
    assert "[1/2]" in out and "[2/2]" in out and "the sea" in out
    ablated, _ = run(
        "generate", "mechrep-tiny", LOOP, "--max-new-tokens", 30, "--ablate", "L0H0,L0H1,L1H0,L1H1,L2H0,L2H1,L3H0,L3H1"
    )
    assert ablated != run("generate", "mechrep-tiny", LOOP, "--max-new-tokens", 30)[0]
    texts = json.loads(run("generate", "mechrep-tiny", "It was", "--max-new-tokens", 4, "--json")[0])
    assert len(texts) == 1 and texts[0]["text"].startswith("<|bos|>It was")


def test_text_in_a_terminal_is_marked_and_harmless() -> None:
    def decode(ids: Any) -> str:
        return "".join({1: "a ", 2: "b ", 3: "\x1b[2J"}[token] for token in ids)

    assert marked_text([1, 2, 1, 2, 1], decode, prompt_length=0, start=0, onset=2).count("⟪") == 1
    assert "\x1b" not in printable("\x1b[2J") and printable("tab\tand line\n") == "tab\tand line\n"


def test_compare_shows_where_two_texts_part(run: Any, tmp_path: Path) -> None:
    command = [
        "compare",
        "mechrep-tiny",
        "The sea was",
        "--zero",
        "L2H0",
        "--ablate",
        "L0H1,L1N5",
        "--max-new-tokens",
        16,
    ]
    out, _ = run(*command, "--html", "both.html", "--out", "kept")
    assert out.count("⟦") == 2 and "without L2H0" in out and "nats" in out
    assert "<span" in (tmp_path / "both.html").read_text(encoding="utf-8")
    rows = json.loads(run(*command, "--json")[0])
    assert [row["condition"] for row in rows] == ["baseline", "without L2H0", "without L0H1,L1N5"]
    kept = mechrep.load(tmp_path / "kept" / "comparison").to_frame()
    assert kept["continuation"].tolist() == [row["continuation"] for row in rows]
    assert "--ablate" in run("compare", "mechrep-tiny", "x", code=1)[1]


def test_models_that_cannot_stand_side_by_side_are_refused_before_the_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechrep.commands.build_report", lambda *_, **__: pytest.fail("a model was measured"))
    for other in ("mechrep-tiny", "Mechrep.Tiny"):
        assert "each once" in run("report", "mechrep-tiny", other, code=1)[1]
    (tmp_path / "one" / "sections").mkdir(parents=True)
    (tmp_path / "one" / "sections" / "parts.json").write_text("{}")
    assert "--out" in run("report", "mechrep-tiny", "mechrep-tiny-repeats", "--out", "one", code=1)[1]


def test_look_lays_out_a_loop_and_writes_the_viewer(run: Any, tmp_path: Path) -> None:
    command = ["look", "mechrep-tiny", LOOP, "--max-new-tokens", 0]
    out, _ = run(*command, "--by", "L2N5,L2H0", "--html", "l.html")
    assert len(re.findall(r"(?m)^ +\d+ │", out)) >= 3 and "L2N5" in out and "\x1b" not in out
    assert "<script" in (tmp_path / "l.html").read_text(encoding="utf-8")
    told = json.loads(run(*command, "--json")[0])
    assert len(told["values"]) == len(told["tokens"]) == len(told["ids"]) and told["loop"]["period"] >= 1
    assert "surprisal" in told["name"] and told["values"][1] > 0
    assert "attention of the last token" in run(*command, "--by", "L2H0")[0]
    assert "one prompt" in run("look", "mechrep-tiny", "a", "b", code=1)[1]
    assert "surprisal" in run(*command, "--by", "nosuch", code=1)[1]


def test_models_lists_what_the_history_says(run: Any) -> None:
    out, _ = run("models")
    for line in tiny.history():
        assert f"{line['tokens']:,}" in out and f"{line['held_out_loss']:.3f}" in out
    assert set(json.loads(run("models", "--json")[0])) == set(tiny.NAMES)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["neurons"],
        ["neurons", "mechrep-tiny", "--nosuch", "1"],
        ["report", "mechrep-tiny", "--effort", "hasty"],
        ["generate", "mechrep-tiny", "x", "--max-new-tokens", "many"],
    ],
)
def test_a_command_line_that_makes_no_sense_exits_with_two(run: Any, arguments: list[str]) -> None:
    run(*arguments, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "mechrep-tiny"],
        ["generate", "mechrep-tiny", "--prompts", "missing.txt"],
        ["generate", "mechrep-tiny", "x", "--ablate", "L9H0"],
        ["generate", "mechrep-tiny", "x", "--device", "nosuch"],
        ["generate", "./missing", "x"],
        ["report", "mechrep-tiny", "--only", "nosuch"],
        ["ablate", "mechrep-tiny", "missing.json"],
        ["eval", "mechrep-tiny", "--tasks", "nosuch"],
        ["compare", "mechrep-tiny", "x", "--zero", "L9H0"],
        ["look", "mechrep-tiny", "x", "--by", "L9N0"],
    ],
)
def test_errors_are_one_line_without_traceback(run: Any, arguments: list[str]) -> None:
    _, said = run(*arguments, code=1)
    assert re.fullmatch(r"error: .*expected: .*to do: .*\n", said)


def test_an_interruption_says_how_to_go_on_and_a_bug_is_not_hidden(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException) -> Any:
        def load(*_: Any, **__: Any) -> Any:
            raise error

        return load

    monkeypatch.setattr(commands, "load_model", raising(KeyboardInterrupt()))
    assert "the same command goes on" in run("generate", "mechrep-tiny", "x", code=130)[1]
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(commands, "load_model", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert "the same command goes on" in run("generate", "mechrep-tiny", "x", code=143)[1]
    assert signal.getsignal(signal.SIGTERM) == handler
    monkeypatch.setattr(commands, "load_model", raising(NothingFoundError("a", "b", "c")))
    assert run("generate", "mechrep-tiny", "x", code=1)[1] == "error: given: a; expected: b; to do: c\n"
    monkeypatch.setattr(commands, "load_model", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "mechrep-tiny", "x"])


def test_texts_come_from_a_file_of_texts_or_a_saved_corpus(tmp_path: Path) -> None:
    model = mechrep.load_model("mechrep-tiny")
    (tmp_path / "texts.txt").write_text("\ufeffone two\n\nthree\n", encoding="utf-8")
    corpus = commands._read_corpus(tmp_path / "texts.txt", model)
    assert [model.decode(corpus.row(i)[1:]) for i in range(2)] == ["one two", "three"]
    corpus.save(tmp_path / "texts.parquet")
    assert isinstance(commands._read_corpus(tmp_path / "texts.parquet", model), Corpus)


def test_the_command_line_is_the_package_run_as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda: 7)
    with pytest.raises(SystemExit) as left:
        runpy.run_module("mechrep", run_name="__main__")
    assert left.value.code == 7
