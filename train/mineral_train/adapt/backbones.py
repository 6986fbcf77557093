"""Frozen backbones of timm as models to adapt: exported once to an ONNX file whose last layer is still empty.

From then on such a file is a model like any other for `adapt`: its features are computed by ONNX Runtime, cached, and
get a new last layer. Which of several is best for a user's photographs only those photographs can say.

Importing this module does not import torch; making a file does.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch import system
from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.images.decode import load_image
from mineral_batch.model.contract import ModelContract
from mineral_batch.types import Failure
from mineral_train.data.labels import NEGATIVE_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.model.contract import InputSpec

#: What `--backbone auto` compares: strong frozen features for their size, weights that anybody may use and give away.
SHORT_LIST = (
    "vit_pe_core_tiny_patch16_384.fb",
    "vit_pe_core_small_patch16_384.fb",
    "vit_pe_core_base_patch16_224.fb",
    "vit_base_patch16_siglip_224.v2_webli",
    "vit_little_patch16_reg4_gap_256.sbb_in1k",
    "vit_medium_patch16_reg4_gap_256.sbb_in12k_ft_in1k",
    "convnext_tiny.in12k_ft_in1k",
    "vit_small_patch14_dinov2.lvd142m",
)

#: Licenses that ask for no more than to be named.
FREE_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")

_LARGEST_SIDE, _OTHERWISE = 384, 224  # pixels; 224 is a multiple of 14 and 16
_CHECKED = 4
_TOLERANCE = 2e-3  # of the spread of the features
_OPSET = 20


@dataclass(frozen=True)
class Backbone:
    """A timm model with weights.

    Attributes:
        name: of timm, with the tag of its weights.
        weights: a file; None for timm's hub.
    """

    name: str
    weights: Path | None = None

    @property
    def license(self) -> str:
        """What timm records of these weights, in lower case; empty if it says nothing."""
        from mineral_train.model.backbones import pretrained_cfg

        return str(pretrained_cfg(self.name).license or "").lower()

    @property
    def is_free(self) -> bool:
        """Whether the weights, and what is made of them, may be used and given away without further conditions."""
        return self.license in FREE_LICENSES


def require_packages() -> None:
    """Check that a backbone can be loaded and exported.

    Raises:
        DataError: naming the packages that are missing.
    """
    system.require_packages("--backbone", "export", "torch", "timm", "onnxscript")


def license_warning(backbone: Backbone) -> str:
    """Say what a license that is not free means; empty for a free one."""
    if backbone.is_free:
        return ""
    terms = {
        "dinov3-license": "its terms pass on to every model made from it and forbid military and nuclear uses",
        "cc-by-nc-4.0": "non-commercial use only, also of every model made from it",
        "fair-noncommercial-research-license": "research only, no commercial use, also of every model made from it",
    }
    known = backbone.license or "no license that timm knows of"
    return f"{backbone.name}: {known}; {terms.get(known, 'read its terms before you use or give away the model')}"


def require_license(backbone: Backbone, *, accepted: bool) -> None:
    """Refuse a backbone whose license restricts what is made of it, unless the user accepted that.

    Raises:
        DataError: with the license in words.
    """
    warning = license_warning(backbone)
    if warning and not accepted:
        raise DataError(f"{warning}; if that suits you: --accept-license")


def reachable(names: Sequence[str], say: Callable[[str], None]) -> list[Backbone]:
    """Of the given backbones those whose weights are cached or can be downloaded; asks no further if the hub is silent.

    Args:
        names: of timm.
        say: gets one line if there are fewer.
    """
    from mineral_train.model.pretrained import NoWeightsError, require_hub_weights

    found = []
    for place, name in enumerate(names):
        try:
            require_hub_weights(name)
        except NoWeightsError as error:
            left = ", ".join(names[place:])
            say(f"Not compared, because their weights cannot be downloaded ({error.reason}; {error.address}): {left}")
            break
        found.append(Backbone(name))
    return found


def make_base(backbone: Backbone, folder: Path, photos: Sequence[Path]) -> Path:
    """Export a backbone to an ONNX file with an empty last layer, or take the one that is there.

    Args:
        backbone: which.
        folder: where files are kept; created if missing.
        photos: on the first few of them the file's features are compared with torch's.

    Returns:
        The file: `pixels` (N, H, W, 3) uint8 to `probabilities` (N, 1), features (N, C) before the last layer.

    Raises:
        DataError: if the weights cannot be had, or the file's features differ from torch's.
    """
    path = folder / f"{backbone.name}-{_identity(backbone)}.onnx"
    if path.exists():
        return path
    model, contract, loaded = _load(backbone)
    contract = _contract(backbone, contract.input, loaded)
    content = _export(model, contract)
    _require_parity(backbone, content, model, contract.input, photos)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    return path


def _identity(backbone: Backbone) -> str:
    """A few letters that change with the weights and with timm."""
    from mineral_train.model.backbones import import_timm

    found = backbone.weights.stat() if backbone.weights and backbone.weights.is_file() else None
    facts = [import_timm().__version__, backbone.weights, found and (found.st_size, found.st_mtime_ns)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def _load(backbone: Backbone) -> tuple[Any, ModelContract, str]:
    """The network with an empty layer, a contract with its input, and where the weights came from."""
    from mineral_train.adapt.network import FrozenBackbone
    from mineral_train.model.backbones import input_spec_of, pretrained_cfg
    from mineral_train.model.presets import ModelConfig
    from mineral_train.model.pretrained import NoWeightsError, load_backbone

    side = pretrained_cfg(backbone.name).input_size[-1]
    spec = input_spec_of(backbone.name, side if side <= _LARGEST_SIDE else _OTHERWISE)
    try:
        body, loaded = load_backbone(ModelConfig(backbone.name, spec.height), backbone.weights or True)
    except NoWeightsError as error:
        raise DataError(
            f"cannot get the weights of {backbone.name} from {error.address} ({error.reason}); download that file on "
            "another machine and give it with --weights FILE, or leave --backbone out to adapt the starter"
        ) from None
    return FrozenBackbone(body, spec), ModelContract(NEGATIVE_NAMES[:1], (0.5,), spec), loaded.source


def _contract(backbone: Backbone, spec: InputSpec, source: str) -> ModelContract:
    from mineral_train.model.backbones import import_timm

    return ModelContract(
        NEGATIVE_NAMES[:1],
        (0.5,),
        spec,
        name=backbone.name,
        license=f"{backbone.license or 'unknown'} (weights of the backbone, as timm records it)",
        provenance={
            "backbone": f"{backbone.name} of timm {import_timm().__version__}, frozen",
            "weights": source,
            "features": "as timm pools them before its classifier",
        },
    )


def _export(model: Any, contract: ModelContract) -> bytes:
    import tempfile

    import torch

    from mineral_batch.model.onnx_file import write_contract

    example = torch.zeros(2, *contract.input.shape, dtype=torch.uint8)  # with 1, N would become a constant
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )
        write_contract(path, contract)
        return path.read_bytes()


def _require_parity(backbone: Backbone, content: bytes, model: Any, spec: InputSpec, photos: Sequence[Path]) -> None:
    """Compare the file's features with torch's, on photographs and on noise."""
    import tempfile

    import torch

    from mineral_train.adapt.graph import LinearHead

    pixels = np.stack([*_some_pixels(spec, photos), np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        path.write_bytes(content)
        session = LinearHead.read(path).feature_session()
        mine = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    with torch.inference_mode():
        theirs: NDArray[np.float32] = model.features(torch.from_numpy(pixels)).numpy()
    difference = float(np.abs(mine - theirs).max() / max(float(theirs.std()), 1e-6))
    if not difference <= _TOLERANCE:  # also NaN
        raise DataError(
            f"{backbone.name}: the exported file's features differ from torch's by {difference:.3g} of their spread; "
            "choose another backbone"
        )


def _some_pixels(spec: InputSpec, photos: Sequence[Path]) -> list[NDArray[np.uint8]]:
    images = [load_image(path, spec) for path in photos[:_CHECKED]]
    return [image.pixels for image in images if not isinstance(image, Failure)]
