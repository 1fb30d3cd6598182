"""The one tree of errors that diffcodec raises for bad input.

Every message says what was found, what was expected and what to do.
"""


class DiffcodecError(Exception):
    """Base of all errors about input, files and models."""


class FormatError(DiffcodecError):
    """The data is not a diffcodec file, or its structure is invalid."""


class TruncatedError(FormatError):
    """The data ends before the file does."""


class CorruptError(FormatError):
    """A checksum does not match: the data was damaged."""


class UnsupportedError(DiffcodecError):
    """A valid request or file that this version cannot handle."""


class UnsupportedFileError(UnsupportedError):
    """A file that takes another version of diffcodec."""


class LimitError(DiffcodecError):
    """A size in the input exceeds a limit."""


class ModelMismatchError(DiffcodecError):
    """The model at hand is not the one that the file was made with, or cannot be loaded."""


class WorkerDiedError(DiffcodecError):
    """The process that worked on an input ended before it was done."""
