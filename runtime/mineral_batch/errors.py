"""What can go wrong for a user, each as one line that says what to do about it.

A bad picture is not here: it is a value (`mineral_batch.types.Failure`) and the run goes on.
"""


class MineralError(Exception):
    """A mistake or a lack that stops the command: one line saying what is wrong, what exists, how to fix it."""


class ContractError(MineralError):
    """A model file's description of itself is missing, unreadable or contradicts itself."""


class BackendError(MineralError):
    """The inference engine that was asked for cannot be opened or does not answer on this machine."""


class DataError(MineralError):
    """A table, folder or checkpoint that the user named is missing, empty or not of the expected form."""
