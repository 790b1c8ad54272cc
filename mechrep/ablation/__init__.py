"""Floor 4: what is cut, what is counted afterwards, and the controls beside it."""
