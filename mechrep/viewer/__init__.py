"""A text, its loop and what heads look at, to be looked at: in a notebook, in a file, on the report's page."""
