"""``python -m mechrep``: the command line."""

from mechrep import cli

cli.run()
