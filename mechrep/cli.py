"""The command line: ``mechrep COMMAND MODEL``.

This file only names the commands, so that ``mechrep --help`` does not pay for torch; each command is made from the
signature of its study in :mod:`mechrep.commands` when it is asked for.

Exit codes: 0 done; 1 an error, said in one line; 2 a command line that makes no sense; 130 interrupted (Ctrl-C) and 143
terminated (SIGTERM, as batch systems send it): what is finished is kept, and the same command goes on.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from cyclopts import App

from mechrep.errors import MechrepError

_INTERRUPTED, _TERMINATED = 130, 143  # what shells say of a program that was stopped

# Name: what it does, and lines to try.
COMMANDS = {
    "report": (
        "Everything about a model as one page; several models side by side.",
        "mechrep-tiny --effort quick",
        "mechrep-tiny ./my-model --out both",
        "./my-model --only sinks,patch",
    ),
    "neurons": ("Which neurons rise when a loop begins, and what happens without them.", "mechrep-tiny --ks 7,98"),
    "heads": ("Which heads copy, and what happens without them.", "mechrep-tiny --effort quick"),
    "sinks": ("What marks the first position, and what repeated tokens do.", "mechrep-tiny-repeats --sink-layer 1"),
    "first-layer": ("Does the first layer tell the first token from others?", "mechrep-tiny-repeats --effort quick"),
    "patch": ("Hold the sink neurons: what that repairs, and what it costs.", "mechrep-tiny --tasks recall"),
    "text-kinds": ("Natural loops against copying in context, head by head.", "mechrep-tiny --effort quick"),
    "information": ("Do loops look at tokens that carry little information?", "mechrep-tiny --ways mask"),
    "checkpoints": ("Which mechanism appears when in training.", "mechrep-tiny --revisions all"),
    "card": ("Which phenomena a model shows, as one table.", "mechrep-tiny --revisions step0,step23000 --nulls 0"),
    "verify": ("What is published about a model, against what is measured.", "./real-models/smollm2-135m"),
    "ablate": (
        "Ablate components of your own, beside controls.",
        "mechrep-tiny L2H0,L3H1 --outcomes loss",
    ),
    "eval": ("What an ablation or a patch costs on benchmarks.", "mechrep-tiny --ablate L2H0 --limit 20"),
    "compare": (
        "Two continuations of one prompt side by side: where an ablation makes them part.",
        'mechrep-tiny "The sea was" --ablate L2H0',
        'mechrep-tiny --prompt "The sea was" --zero L2H0 --zero L0H1 --html both.html',
    ),
    "look": (
        "One text in the terminal, its tokens coloured, its loop laid out.",
        'mechrep-tiny "And the king" --by L2N5',
        'mechrep-tiny --prompt "And the king" --by surprisal,L2H0 --html king.html',
    ),
    "generate": ("Continue prompts and mark the loops.", 'mechrep-tiny "The sea was" --ablate L2H0'),
    "doctor": ("What is installed, what is missing, and how to get it.", "", "--json"),
    "models": ("The embedded models; or what can be measured on one, and why not the rest.", "mechrep-tiny --explain"),
}

_HOMES = {"compare": "mechrep.commands_texts", "look": "mechrep.commands_texts", "doctor": "mechrep.doctor"}

app = App(
    name="mechrep",
    help="Why does this language model repeat itself, and what happens if that mechanism is switched off?\n\n"
    "`mechrep report mechrep-tiny` is the first thing to try; `mechrep COMMAND --help` explains a command.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    version=lambda: __import__("mechrep").__version__,
)
for _name, (_help, *_examples) in COMMANDS.items():
    _lines = "\n".join(f"    mechrep {_name} {example}" for example in _examples)
    _place = f"{_HOMES.get(_name, 'mechrep.commands')}:{_name.replace('-', '_')}"
    app.command(_place, name=_name, help=f"{_help}\n\nFor example:\n\n{_lines}")
app.register_install_completion_command(help="Teach this shell to complete commands and options.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: by default those of the program.

    Returns:
        The exit code.
    """
    # Models write any character; a terminal that cannot show one gets a replacement and not a crash.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _terminate) if _in_main_thread() else None
    try:
        app(arguments, exit_on_error=True, result_action="return_value")
    except MechrepError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt as stop:
        sys.stderr.write("stopped; what is finished is kept: the same command goes on from there\n")
        return _TERMINATED if isinstance(stop, _Terminated) else _INTERRUPTED
    except SystemExit as end:
        return 2 if end.code not in (0, None) else 0
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM: everything that an interruption leaves in order, this leaves in order too."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    raise _Terminated


def _in_main_thread() -> bool:
    """Whether signals can be caught here."""
    return threading.current_thread() is threading.main_thread()


def run() -> None:
    """The program."""
    raise SystemExit(main())


if __name__ == "__main__":
    run()
