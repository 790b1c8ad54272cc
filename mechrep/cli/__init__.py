"""The command line: parses, calls the floors below, prints; everything heavy is imported inside the commands."""

from mechrep.cli import ablate, card, generate, heads, models, neurons, report  # noqa: F401 - each adds its command
from mechrep.cli.app import app as app
