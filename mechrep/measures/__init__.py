"""Floor 3: what is looked for, a file per phenomenon: its definition, its sums, its result and its figures."""
