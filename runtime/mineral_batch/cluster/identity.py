"""What the results of a run depend on, as the worker with the open engine knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mineral_batch.predictor import Predictor
from mineral_batch.results.fingerprint import shared_fingerprint
from mineral_batch.results.manifest import describe_model
from mineral_batch.types import Failure, Source


@dataclass(frozen=True)
class Identity:
    """An open engine, in words.

    Attributes:
        fingerprint: as `mineral_batch.results.fingerprint.shared_fingerprint` makes it.
        model: the model's part of run.json.
        contract: of the model, as JSON.
    """

    fingerprint: Mapping[str, str]
    model: Mapping[str, Any]
    contract: str


class Identify(Protocol):
    """Says what would predict the images of a run; a decoder that is chosen by measurement looks at the first ones."""

    def __call__(
        self, sources: Iterator[Source | Failure], earlier: str | None = None
    ) -> tuple[Identity, Iterator[Source | Failure]]:
        """Return the identity and all of the sources; see `Predictor.choose_decoder` for the arguments."""
        ...


def identify(
    predictor: Predictor, sources: Iterator[Source | Failure], earlier: str | None = None
) -> tuple[Identity, Iterator[Source | Failure]]:
    """Return the identity of an open predictor, and the sources; see `Identify`."""
    decoder, sources = predictor.choose_decoder(sources, earlier)
    model = describe_model(predictor.model, predictor.contract)
    return Identity(shared_fingerprint(predictor, decoder), model, predictor.contract.to_json()), sources
