"""The errors that mechrep raises on purpose.

Each message says what was given, what was expected and what to do about it.  Anything else that is raised is a
bug in mechrep or in a library below it.
"""

from __future__ import annotations


class MechrepError(Exception):
    """Base of all of mechrep's own errors; the command line prints them without a traceback.

    Args:
        given: what the user or the disk handed over.
        expected: what would have been right.
        remedy: what to do now.

    Example:
        >>> print(InputError("k = 0", "k >= 1", "ask for at least one neuron"))
        given: k = 0; expected: k >= 1; to do: ask for at least one neuron
    """

    def __init__(self, given: str, expected: str, remedy: str) -> None:
        super().__init__(given, expected, remedy)
        self.given, self.expected, self.remedy = given, expected, remedy

    def __str__(self) -> str:
        return f"given: {self.given}; expected: {self.expected}; to do: {self.remedy}"


class InputError(MechrepError, ValueError):
    """An argument, a corpus or a text that cannot be used as it is."""


class ModelError(MechrepError):
    """A model that cannot be loaded, or that breaks the contract every analysis relies on."""


class MissingPartError(InputError, ModelError):
    """Something that other models have and this one has not: a site, heads of its own, a tokenizer.

    A report leaves out what raises it, with this reason, and goes on.
    """


class NothingFoundError(MechrepError):
    """A search that ended without finding what was asked for."""


class StoreError(MechrepError):
    """A file or folder that cannot be read, written, or belongs to another run."""


class EngineError(MechrepError):
    """Workers that cannot be had, that cannot do the work, or that were lost; what they had finished is kept."""
