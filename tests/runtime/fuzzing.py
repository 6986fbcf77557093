"""Damaged pictures of every format through the whole pipeline: `fuzzing.py MUTANTS SEED MODEL`.

In a process of its own, so that a crash or a hang of a decoder is seen from outside. Each mutant has an intact
neighbor on either side. Prints a JSON object: how many mutants were predicted and failed, and the reasons.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from conftest import awkward_photos, encode, scene

from mineral_batch import Failure, Predictor
from mineral_batch.types import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mineral_batch import Prediction


def flipped(content: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """One to twenty bits turned over, half of the time near the beginning, where the structure is."""
    mutant = bytearray(content)
    reach = min(len(mutant), 300) if dice.random() < 0.5 else len(mutant)
    for _ in range(dice.randint(1, 20)):
        mutant[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    return bytes(mutant)


def truncated(content: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """The beginning, at times of no length at all."""
    return content[: dice.randrange(len(content))]


def swapped(content: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """The head of another file on this one's body."""
    cut = dice.choice((4, 8, 16, 64, 256))
    return dice.choice(others)[:cut] + content[cut:]


def inflated(content: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """A bomb: the largest numbers in two or four bytes of the head, where width and height are."""
    mutant = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        at, size = dice.randrange(min(len(mutant), 200)), dice.choice((2, 4))
        mutant[at : at + size] = dice.choice((b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"\0\x01\0\0"[:size]))
    return bytes(mutant)


def blanked(content: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """A stretch of zeros, as a damaged disk gives."""
    start = dice.randrange(len(content))
    return content[:start] + bytes(min(dice.randint(1, 4096), len(content) - start)) + content[start + 4096 :]


def shuffled(content: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """A stretch left out and another one twice."""
    a, b, c = sorted(dice.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[b:]


MUTATIONS: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...] = (
    flipped, truncated, swapped, inflated, blanked, shuffled,
)  # fmt: skip


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Every format by every mutation, round and round."""
    dice = random.Random(seed)
    photos = [photo.content for photo in awkward_photos().values()]
    for index in range(count):
        mutate = MUTATIONS[index // len(photos) % len(MUTATIONS)]
        yield mutate(photos[index % len(photos)], dice, photos)


def sources(count: int, seed: int, good: list[bytes]) -> Iterator[Source]:
    for index, content in enumerate(mutants(count, seed)):
        yield in_memory(f"good {index}", good[index % len(good)])
        yield in_memory(f"mutant {index}", content)
    yield in_memory(f"good {count}", good[count % len(good)])


def in_memory(name: str, content: bytes) -> Source:
    return Source(name, len(content), 0, partial(bytes, content))


def main(count: int, seed: int, model: str, decode_processes: int) -> None:
    """Run and check."""
    warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
    good = [encode(scene(40 + 9 * n, 60 - 5 * n, seed=n), kind) for n, kind in enumerate(("PNG", "JPEG", "BMP"))]
    with Predictor(
        model, backend="onnx-cpu", batch_size=7, decode_threads=3, decode_processes=decode_processes
    ) as predictor:
        expected = [alone(predictor, content).probabilities for content in good]
        names, reasons, predicted = [], Counter[str](), 0
        for result in predictor.predict(sources(count, seed, good)):
            names.append(result.path)
            kind, index = result.path.split()
            if isinstance(result, Failure):
                assert kind == "mutant", result
                assert result.stage in ("read", "decode"), result
                assert result.reason.strip(), result
                assert len(result.reason.splitlines()) == 1, result
                reasons[result.reason] += 1
            elif kind == "good":
                np.testing.assert_array_equal(result.probabilities, expected[int(index) % len(good)])
            else:
                assert np.isfinite(result.probabilities).all()
                predicted += 1
    assert names == [name for n in range(count) for name in (f"good {n}", f"mutant {n}")] + [f"good {count}"]
    print(json.dumps({"predicted": predicted, "failed": reasons.total(), "reasons": reasons}))


def alone(predictor: Predictor, content: bytes) -> Prediction:
    (result,) = predictor.predict([in_memory("alone", content)])
    assert not isinstance(result, Failure)
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
