"""The starter model that comes with the package; `starter.md` beside it says what it can and cannot do."""

from pathlib import Path

_HERE = Path(__file__).parent


#: The name in the starter's contract.
STARTER_NAME = "mineral-batch starter"
#: What its user must know.
STARTER_WARNING = "This is the small starter model: for a first look, not for decisions."


def starter_path() -> Path:
    """The ONNX file of the starter model."""
    return _HERE / "starter.onnx"


def starter_card() -> Path:
    """Its model card: training data, accuracy per mineral, limits, commands."""
    return _HERE / "starter.md"
