"""``python -m mechrep.cli``."""

from mechrep.cli import app

app()
