"""Weights to start from: timm's hub, or a file."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mineral_batch.errors import DataError, plain_reason
from mineral_train.model.backbones import create_backbone, import_timm, pretrained_cfg

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_train.model.presets import ModelConfig

State = dict[str, Tensor]

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_TIMEOUT = 10.0  # seconds
_NOT_FOUND = 404


class NoWeightsError(DataError):
    """The hub's weights of a backbone cannot be had.

    Attributes:
        address: of the file.
        reason: in a few words.
    """

    def __init__(self, name: str, address: str, reason: str) -> None:
        super().__init__(
            f"cannot get the weights of {name} from {address} ({reason}); download that file (safetensors) on another "
            "machine and give it with --pretrained FILE, or go on from the model that is installed: --recipe few, or "
            "use --no-pretrained for random weights"
        )
        self.address, self.reason = address, reason


@dataclass(frozen=True)
class Loaded:
    """Where a backbone's weights came from, for the log and the provenance.

    Attributes:
        source: a file's name without its folder (a model that is given away need not tell of the machine that made
            it), a hub, or `random`.
        tensors: how many of the backbone's tensors were filled.
        matched: how the file's names were matched with timm's: `name` or `order`.
        resampled: names whose shape differed and was interpolated (position embeddings on another grid).
        dropped: names in the file that the backbone has no use for (the classifier).
    """

    source: str
    tensors: int
    matched: str = "name"
    resampled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.tensors == 0:
            return "backbone: random weights"
        parts = [f"backbone: {self.tensors} tensors by {self.matched} from {self.source}"]
        parts += [f"resampled {', '.join(self.resampled)}"] if self.resampled else []
        parts += [f"left out {', '.join(self.dropped)}"] if self.dropped else []
        return "; ".join(parts)


def load_backbone(config: ModelConfig, pretrained: bool | Path) -> tuple[nn.Module, Loaded]:
    """Load a backbone with random weights (False), timm's (True) or a file's.

    Raises:
        DataError: if the weights cannot be loaded, saying how to fix that.
    """
    if pretrained is False:
        return create_backbone(config.backbone, config.image_size, config.drop_path), Loaded("random", 0)
    if pretrained is True:
        return _from_hub(config)
    return _from_file(config, pretrained)


def require_hub_weights(name: str) -> None:
    """Check that a backbone's weights are in the hub's cache or can be reached, within a few seconds.

    Raises:
        DataError: with the address, the file and what to do without a network.
    """
    if not pretrained_cfg(name).has_weights:
        raise DataError(f"timm has no weights for {name}: use --pretrained FILE or --no-pretrained")
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    repository = pretrained_cfg(name).hf_hub_id
    if not repository:
        return  # timm downloads it from elsewhere
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in _HUB_FILES):
        return
    address = hf_hub_url(repository, _HUB_FILES[0])
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        get_hf_file_metadata(address, timeout=_HUB_TIMEOUT)
    except HfHubHTTPError as error:
        if error.response.status_code == _NOT_FOUND:  # the hub answers; the file has another name
            return
        raise _no_weights(name, address, error) from error
    except Exception as error:  # the hub's client raises errors of several libraries' own
        raise _no_weights(name, address, error) from error


def _no_weights(name: str, address: str, error: Exception) -> DataError:
    return NoWeightsError(name, address, " ".join(str(error).split())[:120] or type(error).__name__)


def _from_hub(config: ModelConfig) -> tuple[nn.Module, Loaded]:
    name = config.backbone
    require_hub_weights(name)
    # Without a network its client reports a dozen attempts; one line at the end is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        backbone = create_backbone(name, config.image_size, config.drop_path, pretrained=True)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries' own
        raise _no_weights(name, pretrained_cfg(name).hf_hub_id or "timm's hub", error) from error
    return backbone, Loaded(f"timm's hub ({name})", len(backbone.state_dict()))


def _from_file(config: ModelConfig, path: Path) -> tuple[nn.Module, Loaded]:
    """Load by timm's own rules (its conversions and its resampling of position embeddings), strictly."""
    state, matched = _with_timm_names(config.backbone, read_state(path))
    classifier = _classifier_names(config.backbone)
    dropped = tuple(name for name in state if name.rpartition(".")[0] in classifier)
    kept = {name: tensor for name, tensor in state.items() if name not in dropped}
    overlay = {"state_dict": kept, "num_classes": 0, "label_offset": 0}
    try:
        backbone = create_backbone(
            config.backbone, config.image_size, config.drop_path, pretrained=True, overlay=overlay
        )
    except (RuntimeError, KeyError) as error:
        raise DataError(
            f"{path} does not hold the weights of {config.backbone}: {_difference(config.backbone, kept, error)}"
        ) from error
    _forget_state(backbone)
    filled = backbone.state_dict()
    resampled = tuple(n for n, t in kept.items() if n in filled and filled[n].shape != t.shape)
    return backbone, Loaded(path.name, len(filled), matched, resampled, dropped)


def read_state(path: Path) -> State:
    """Read the tensors of a .safetensors file, or of a torch file without unpickling objects.

    Common wrappers are removed: a record with `state_dict` or `model`, the prefixes of distributed and compiled
    training, and the `backbone.` of this package's own checkpoints.

    Raises:
        DataError: if the file is missing, damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise DataError(f"no such weights file: {path}")
    state = _unwrapped(_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path))
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} has no named tensors: save model.state_dict() to it")
    return state


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {path} as safetensors: {plain_reason(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} is not a torch file, or needs more than tensors to be read, which is not safe: save "
            "model.state_dict() as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"cannot read {path} as a torch file: {plain_reason(error)}") from error


def _unwrapped(record: Any) -> State:
    for wrapper in ("state_dict", "model"):
        if isinstance(record, dict) and isinstance(record.get(wrapper), dict):
            record = record[wrapper]
    if not isinstance(record, dict):
        return {}
    import_timm()
    from timm.models import clean_state_dict

    state: State = clean_state_dict(record)
    ours = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    return ours or state


def _with_timm_names(name: str, state: State) -> tuple[State, str]:
    """Rename the state to timm's names; also says whether they were matched by `name` or by `order`.

    Ports of a model often differ in names only. If every tensor has the same shape in the same order, it is the same
    model; everything else is left to timm's own conversions, which read several original releases.
    """
    references = [_reference_state(name, classes) for classes in (0, pretrained_cfg(name).num_classes)]
    if set(references[0]) <= set(state):
        return state, "name"
    for reference in references:
        if [t.shape for t in state.values()] == [t.shape for t in reference.values()]:
            return dict(zip(reference, state.values(), strict=True)), "order"
    return state, "name"


def _reference_state(name: str, classes: int) -> State:
    with torch.device("meta"):
        state: State = import_timm().create_model(name, num_classes=classes).state_dict()
    return state


def _classifier_names(name: str) -> tuple[str, ...]:
    classifier = pretrained_cfg(name).classifier or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _forget_state(backbone: nn.Module) -> None:
    """Drop the record that timm loaded from: with it the model would hold every weight twice."""
    record: Any = backbone.pretrained_cfg
    record.pop("state_dict", None)


def _difference(name: str, state: State, error: Exception) -> str:
    """Say why a file is not this model: the first name or shape that differs."""
    reference = _reference_state(name, 0)
    missing = [n for n in reference if n not in state]
    if missing:
        return f"{len(missing)} of the model's {len(reference)} tensors are missing, the first is {missing[0]}"
    for n, tensor in reference.items():
        if state[n].shape != tensor.shape:
            return f"{n} is {tuple(state[n].shape)}, the model's is {tuple(tensor.shape)}"
    return " ".join(str(error).split())[:300]
