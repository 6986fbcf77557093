"""What can go wrong for a user, each as one line that says what to do about it.

A bad image ends no run: `ImageError` says why it cannot be read, and becomes a `mineral_batch.types.Failure`.
"""

import re

_MISSING = re.compile(r"missing \d+ required [\w-]+ arguments?: (.+)")
_UNKNOWN = re.compile(r"got an unexpected keyword argument (.+)")
# What a terminal obeys instead of showing it: control characters, and marks that turn the direction of writing.
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class MineralError(Exception):
    """A mistake or a lack that stops the command: one line saying what is wrong, what exists, how to fix it."""


class ContractError(MineralError):
    """A model file's description of itself is missing, unreadable or contradicts itself."""


class BackendError(MineralError):
    """The inference engine that was asked for cannot be opened or does not answer on this machine."""


class DataError(MineralError):
    """A table, folder or checkpoint that the user named is missing, empty or not of the expected form."""


class OptionError(DataError):
    """An option of a command, or an argument of the Python API, has a value that it cannot have: exit code 2."""


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


def harmless(text: str) -> str:
    r"""Return a text that a terminal shows as it is: what it would obey is written as in Python, but for line feeds.

    >>> harmless("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain_reason(error: BaseException) -> str:
    """Say in one line what keeps a file of the user's from being read: no class, no error number, not the file's name.

    >>> plain_reason(TypeError("Row.__init__() missing 1 required positional argument: 'labels'"))
    "it lacks 'labels'"
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, UnicodeError):
        text = "it is not text in UTF-8"
    elif isinstance(error, RecursionError):
        text = "it is nested too deeply"
    elif isinstance(error, KeyError):
        text = f"it lacks {error.args[0]!r}" if error.args else "it is incomplete"
    elif isinstance(error, TypeError | AttributeError):
        text = _of_other_type(str(error))
    else:
        text = str(error)
    return " ".join(text.split()) or "no details"


def _of_other_type(text: str) -> str:
    if missing := _MISSING.search(text):
        return f"it lacks {missing[1]}"
    if unknown := _UNKNOWN.search(text):
        return f"it has an unknown entry {unknown[1]}"
    return "a part of it is of another type than it should be"
