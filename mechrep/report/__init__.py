"""The report: sections as data, laid on one page, in one JSON file, or in a terminal."""
