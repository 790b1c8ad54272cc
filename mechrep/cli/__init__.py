"""The command line: parses, calls the floors below, prints; everything heavy is imported inside the commands."""

from mechrep.cli import (  # noqa: F401 - each adds its command
    ablate,
    card,
    checkpoints,
    contrast,
    eval,
    first_token,
    generate,
    heads,
    models,
    neurons,
    report,
    sinks,
)
from mechrep.cli.app import app as app
