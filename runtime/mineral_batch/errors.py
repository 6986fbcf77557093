"""What can go wrong for a user, each as one line that says what to do about it.

A bad image ends no run: `ImageError` says why it cannot be read, and becomes a `mineral_batch.types.Failure`.
"""


class MineralError(Exception):
    """A mistake or a lack that stops the command: one line saying what is wrong, what exists, how to fix it."""


class ContractError(MineralError):
    """A model file's description of itself is missing, unreadable or contradicts itself."""


class BackendError(MineralError):
    """The inference engine that was asked for cannot be opened or does not answer on this machine."""


class DataError(MineralError):
    """A table, folder or checkpoint that the user named is missing, empty or not of the expected form."""


class ImageError(Exception):
    """Why one image cannot be read, in words for its row of failures.csv."""


class MissingDecoderError(ImageError):
    """An image in a format whose decoder is not installed; nothing is wrong with the file."""


def one_line(error: BaseException) -> str:
    """Describe an exception in one line, without memory addresses and without the file's name."""
    if isinstance(error, (ImageError, MineralError)):
        return str(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or "no details"
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
