"""The Python interface, and the same answer by every road."""

from __future__ import annotations

import csv
import inspect
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as PILImage

from mineral_batch import (
    BackendError,
    DataError,
    Failure,
    Image,
    Input,
    MineralError,
    ModelContract,
    OptionError,
    Prediction,
    Predictor,
    find_images,
    load_image,
)
from mineral_batch import predictor as predictor_module
from mineral_batch.cli import main
from mineral_batch.engines.registry import open_backend
from mineral_batch.images import decode
from mineral_batch.results.run import run

pytest.importorskip("onnxruntime")


def test_it_says_what_is_open(model_path: Path, contract: ModelContract) -> None:
    with Predictor(model_path, backend="onnx-cpu", batch_size=3) as predictor:
        assert predictor.contract == contract
        assert (predictor.backend, predictor.device, predictor.model) == ("onnx-cpu", "CPU, float32", model_path)
        assert predictor.batch_size == 3


def test_folders_files_and_failures_in_order(album: Path, model_path: Path) -> None:
    (album / "05.png").write_bytes(b"not a picture")
    with Predictor(model_path, backend="onnx-cpu", batch_size=2) as predictor:
        results = list(predictor.predict([album / "09.png", album]))
    assert [result.path[-6:] for result in results] == ["09.png", *(f"{n:02}.png" for n in range(11) if n != 9)]
    assert [type(result) for result in results] == [Prediction if n != 6 else Failure for n in range(11)]


def test_it_answers_more_than_once(album: Path, model_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        first, second = list(predictor.predict([album])), list(predictor.predict([str(album)]))
    assert [result.path for result in first] == [result.path for result in second]


def test_pictures_in_memory_beside_files(album: Path, model_path: Path) -> None:
    path = album / "04.png"
    picture = PILImage.open(path).convert("RGB")
    pixels = np.asarray(picture)
    with Predictor(model_path, backend="onnx-cpu", batch_size=2) as predictor:
        inputs: list[Input] = [picture, str(path), pixels]
        results = list(predictor.predict(inputs))
    assert [result.path for result in results] == ["picture 0", str(path), "picture 1"]
    assert all(isinstance(result, Prediction) for result in results)
    for result in results:
        assert (result.width, result.height) == picture.size
        np.testing.assert_array_equal(result.probabilities, results[1].probabilities)


def test_junk_in_memory_is_a_failure_in_its_place(album: Path, model_path: Path) -> None:
    closed = io.BytesIO()
    closed.close()
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        for junk in (b"not an image", b"", closed, io.BytesIO(b"GIF89a")):
            failure, result = predictor.predict([junk, album / "00.png"])
            assert predictor.predict_one(junk) == failure
            assert isinstance(failure, Failure)
            assert failure.path == "picture 0"
            assert isinstance(result, Prediction)


NO_IMAGES = [
    *(np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), io.StringIO("text")),
    *(7, None, {}, [], object(), True, 0.5),
]


@pytest.mark.parametrize("value", NO_IMAGES, ids=lambda value: type(value).__name__)
def test_what_can_be_no_image_is_an_error_of_the_program(album: Path, model_path: Path, value: Any) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        for ask in (predictor.predict_one, lambda value: list(predictor.predict([album / "00.png", value]))):
            with pytest.raises(OptionError, match=r"picture 0: .* is not an image: give a path, bytes,"):
                ask(value)
        assert isinstance(predictor.predict_one(album / "00.png"), Prediction)


def _is_int(value: object, low: int, high: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


# Each argument, and which of the values below it takes.
TAKES: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: value is None or (isinstance(value, (str, Path)) and value != ""),
    "backend": lambda value: value == "auto",
    "devices": lambda value: isinstance(value, (list, tuple)) and all(_is_int(index, 0) for index in value),
    "precision": lambda value: value == "auto",
    "batch_size": lambda value: value is None or _is_int(value, 1, 4096),
    "decode_threads": lambda value: value is None or _is_int(value, 1, 1024),
    "decode_processes": lambda value: value is None or _is_int(value, 0, 1024),
    "exact": lambda value: isinstance(value, bool),
    "decode": lambda value: value == "auto",
    "familiarity": lambda value: isinstance(value, bool),
    "damaged": lambda value: False,
    "max_pixels": lambda value: _is_int(value, 1),
}
VALUES = [None, -1, 0, 1, 10**6, True, 0.5, float("nan"), "", "auto", "no", b"auto", [], [0], [-1], ["0"], {}, object()]


@pytest.mark.parametrize("name", TAKES)
def test_a_wrong_argument_is_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    assert TAKES.keys() == inspect.signature(Predictor).parameters.keys()
    for value in VALUES[name == "model" :]:  # None opens the starter
        with pytest.raises(MineralError) as caught:  # of a model that is not there, if the argument is taken
            Predictor(**{"model": tmp_path / "none.onnx", name: value})
        is_refused = isinstance(caught.value, OptionError)
        assert is_refused is not TAKES[name](value), (value, caught.value)
        assert not is_refused or name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wrong_arguments_of_the_other_functions(album: Path, model_path: Path, contract: ModelContract) -> None:
    anything: Any = 5
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        for call, name in [
            (lambda: predictor.predict(anything), "inputs"),
            (lambda: predictor.predict([album], with_exif=anything), "with_exif"),
            (lambda: predictor.predict_one(album / "00.png", with_exif=anything), "with_exif"),
            (lambda: load_image(anything, contract.input), "path"),
            (lambda: load_image(album / "00.png", anything), "spec"),
            (lambda: load_image(album / "00.png", contract.input, exact=anything), "exact"),
            (lambda: find_images(anything), "inputs"),
            (lambda: find_images("photos"), "inputs"),
            (lambda: find_images([album, anything]), "each of inputs"),
        ]:
            with pytest.raises(OptionError, match=f"^{name} must be "):
                call()


def test_bytes_and_file_objects_are_images(album: Path, model_path: Path) -> None:
    path = album / "04.png"
    content = path.read_bytes()
    with Predictor(model_path, backend="onnx-cpu") as predictor, path.open("rb") as file:
        inputs: list[Any] = [content, bytearray(content), memoryview(content), io.BytesIO(content), file, path]
        results = list(predictor.predict(inputs))
    for result in results:
        assert isinstance(result, Prediction)
        np.testing.assert_array_equal(result.probabilities, results[-1].probabilities)  # type: ignore[union-attr]


@pytest.mark.parametrize("single", ["photo.jpg", b"content", PILImage.new("RGB", (4, 4)), Path("photo.jpg"), 7])
def test_a_single_input_is_refused_with_the_fix(model_path: Path, single: Any) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor, pytest.raises(DataError, match="predict_one"):
        predictor.predict(single)


def test_one_image_is_answered_as_many_are(album: Path, model_path: Path) -> None:
    path = album / "04.png"
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        alone, (together,) = predictor.predict_one(path), predictor.predict([path])
        assert isinstance(alone, Prediction)
        assert isinstance(together, Prediction)
        np.testing.assert_array_equal(alone.probabilities, together.probabilities)
        assert (alone.path, alone.width, alone.height) == (together.path, together.width, together.height)
        assert isinstance(predictor.predict_one(b"damaged"), Failure)
        assert predictor.predict_one(Failure("a", "read", "gone")) == Failure("a", "read", "gone")
        with pytest.raises(DataError, match=r"more than one image: use predict"):
            predictor.predict_one(album)
        with pytest.raises(DataError, match="no such file"):
            predictor.predict_one("nowhere.jpg")


def test_a_result_says_its_minerals_and_the_best(album: Path, model_path: Path, contract: ModelContract) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        results = list(predictor.predict([album]))
    for result in results:
        assert isinstance(result, Prediction)
        by_label = dict(zip(contract.labels, result.probabilities.tolist(), strict=True))
        present = {
            name for name, cut in zip(contract.labels, contract.thresholds, strict=True) if by_label[name] >= cut
        }
        assert set(result.minerals) == present
        assert result.minerals == sorted(result.minerals, key=by_label.__getitem__, reverse=True)
        assert result.best == max(by_label.items(), key=lambda item: item[1])


def test_after_closing_every_use_is_one_clear_error(album: Path, model_path: Path) -> None:
    predictor = Predictor(model_path, backend="onnx-cpu")
    begun = predictor.predict([album])
    predictor.close()
    predictor.close()
    for use in (lambda: predictor.predict([album]), lambda: predictor.predict_one(album / "00.png")):
        with pytest.raises(BackendError, match="this Predictor is closed: open a new one"):
            use()
    assert list(begun) == [], "what was begun has ended"


def test_several_threads_share_one_predictor(album: Path, model_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu", batch_size=3) as predictor:
        alone = list(predictor.predict([album]))
        paths = sorted(album.iterdir())
        with ThreadPoolExecutor(4) as pool:
            many = [pool.submit(lambda: list(predictor.predict([album]))) for _ in range(4)]
            single = [pool.submit(predictor.predict_one, path) for path in paths * 4]
            answers = [future.result() for future in many]
            ones = [future.result() for future in single]
    for results in [*answers, ones[:11], ones[-11:]]:
        for result, expected in zip(results, alone, strict=True):
            assert isinstance(result, Prediction)
            np.testing.assert_array_equal(result.probabilities, expected.probabilities)  # type: ignore[union-attr]


def test_a_predictor_can_be_pickled(album: Path, model_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu", batch_size=3, exact=True) as predictor:
        expected = list(predictor.predict([album]))
        data = pickle.dumps(predictor)
    with pickle.loads(data) as again:
        assert (again.batch_size, again.backend) == (3, "onnx-cpu")
        for result, other in zip(again.predict([album]), expected, strict=True):
            np.testing.assert_array_equal(result.probabilities, other.probabilities)


def test_lack_of_memory_is_no_verdict_on_the_image(
    album: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that cannot be read it is tried again by the next run."""
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        with monkeypatch.context() as patch:
            patch.setattr(decode, "resize", lambda *_: (_ for _ in ()).throw(MemoryError))
            summary = run(predictor, [album], tmp_path / "out")
            assert (summary.predicted, summary.failed) == (0, 11)
            assert summary.counts is not None
            assert summary.counts.failures == {"read": 11}
        assert run(predictor, [album], tmp_path / "out").predicted == 11


def test_nothing_is_read_before_the_first_result_is_asked_for(model_path: Path, tmp_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        photo = tmp_path / "not there yet.png"
        results = predictor.predict([photo])
        PILImage.new("RGB", (8, 8)).save(photo)
        (result,) = results
        assert isinstance(result, Prediction)


def test_a_name_that_does_not_exist_is_a_failure_in_its_place(album: Path, model_path: Path, tmp_path: Path) -> None:
    gone, image = tmp_path / "gone.jpg", (album / "02.png").read_bytes()
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        for inputs in ([album / "00.png", gone, album / "01.png"], [image, gone, image], [album / "00.png", gone]):
            results = list(predictor.predict(inputs))
            assert results.pop(1) == Failure(str(gone), "read", "no such file or folder")
            assert {type(result) for result in results} == {Prediction}
            assert len(results) == len(inputs) - 1


class Closing:
    """An engine or a decoder that notes when it is closed, and which threads of a prediction there are then."""

    def __init__(self, real: Any, noted: list[tuple[str, list[str]]], fails: bool = False) -> None:
        self._real, self._noted, self._fails = real, noted, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def close(self) -> None:
        names = [thread.name for thread in threading.enumerate()]
        threads = [name for name in names if name.startswith(("decode", "engine"))]
        self._noted.append((type(self._real).__name__, threads))
        self._real.close()
        if self._fails:
            raise BackendError("the decoder does not close")


def test_threads_end_before_what_they_use_is_closed(
    album: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[str, list[str]]] = []
    _note_closings(monkeypatch, noted)

    def fail_at_the_first() -> None:
        with Predictor(model_path, backend="onnx-cpu", batch_size=2) as predictor:
            results = predictor.predict([album])
            for _ in results:
                raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        fail_at_the_first()
    assert noted == [("CpuDecoder", []), ("OnnxCpuEngine", [])], "though the error keeps the results"
    assert caught.value.__traceback__ is not None


def test_the_engine_is_closed_also_if_the_decoder_does_not_close(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[str, list[str]]] = []
    _note_closings(monkeypatch, noted, decoder_fails=True)
    with pytest.raises(BackendError, match="the decoder does not close"):
        Predictor(model_path, backend="onnx-cpu").close()
    assert noted == [("CpuDecoder", []), ("OnnxCpuEngine", [])]


def _note_closings(
    monkeypatch: pytest.MonkeyPatch, noted: list[tuple[str, list[str]]], *, decoder_fails: bool = False
) -> None:
    open_decoder, open_engine = predictor_module.open_decoder, predictor_module.choose_backend

    def engine(*arguments: Any, **options: Any) -> Any:
        choice = open_engine(*arguments, **options)
        return replace(choice, backend=Closing(choice.backend, noted))

    monkeypatch.setattr(predictor_module, "choose_backend", engine)
    monkeypatch.setattr(
        predictor_module, "open_decoder", lambda *given: Closing(open_decoder(*given), noted, fails=decoder_fails)
    )


def test_one_photograph_by_three_roads(tmp_path: Path, model_path: Path, photos: dict[str, Any]) -> None:
    """Decoder and engine by hand, the Python interface, the command: the same probabilities."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in photos.items():
        (folder / name).write_bytes(photo.content)
    with Predictor(model_path, backend="onnx-cpu", batch_size=7) as predictor:
        by_interface = {result.path: result.probabilities for result in predictor.predict([folder])}
    assert len(by_interface) == len(photos)

    backend = open_backend(model_path, "onnx-cpu")
    for path, probabilities in by_interface.items():
        image = load_image(path, backend.contract.input)
        assert isinstance(image, Image)
        np.testing.assert_array_equal(backend.infer(image.pixels[None])[0], probabilities)

    out = tmp_path / "out"
    arguments = ["predict", str(folder), "-o", str(out), "-m", str(model_path), "--backend", "onnx-cpu", "-q"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as table:
        by_command = {row["path"]: row for row in csv.DictReader(table)}
    assert list(by_command) == list(by_interface)
    for path, probabilities in by_interface.items():
        values = [float(by_command[path][label]) for label in backend.contract.labels]
        np.testing.assert_allclose(values, probabilities.astype(float), rtol=1e-6)
