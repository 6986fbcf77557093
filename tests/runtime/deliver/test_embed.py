"""`mineral-batch deliver --as xmp --embed`: answers in copies of the photographs, and not a pixel changed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageSequence
from PIL.PngImagePlugin import PngInfo

from mineral_batch.cli import main
from mineral_batch.deliver.packets import PacketError, read_packet, with_packet
from mineral_batch.deliver.xmp import DC, RDF
from mineral_batch.results.csv import write_csv

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The user's own keyword, beside which ours are written.
OWN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag>'
    b"<rdf:li>cabinet 7</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["deliver", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make_photos(folder: Path) -> list[str]:
    """A photograph of every kind that holds XMP, and some that do not."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "drawer 12"
    noise(0).save(folder / "plain.jpg")
    exif[0x0106] = 2  # not for JPEG: libraries leave it out when they write
    noise(0).save(folder / "odd exif.jpg", exif=exif)
    del exif[0x0106]
    noise(2, "CMYK").save(folder / "ü cmyk.jpg")
    noise(3).save(folder / "two.mpo", save_all=True, append_images=[noise(4)])
    noise(5, "RGBA").save(folder / "alpha.png", icc_profile=PROFILE)
    noise(6).save(folder / "moving.png", save_all=True, append_images=[noise(7)])
    noise(8).save(folder / "exact.webp", lossless=True, exif=exif)
    noise(9).save(folder / "lossy.webp", quality=60)
    noise(10).save(folder / "plain.tif")
    noise(11, "L").save(folder / "gray.tif")
    noise(12).save(folder / "wave.jp2")
    noise(13).save(folder / "no place.bmp")
    noise(14).save(folder / "no place.gif")
    (folder / "trailer.jpg").write_bytes((folder / "plain.jpg").read_bytes() + b"motion photo" * 500)
    noise(1).save(folder / "rich.jpg", exif=exif, icc_profile=PROFILE, comment=b"hello", progressive=True, xmp=OWN)
    noise(15).save(folder / "rich.webp", xmp=OWN)
    about = PngInfo()
    about.add_itxt("XML:com.adobe.xmp", OWN.decode(), zip=True)
    noise(16).save(folder / "rich.png", pnginfo=about)
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_photos(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def results(tmp_path: Path, photos: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    rows = [(str(path), "malachite", 0.1, 0.9) for path in sorted(photos.iterdir())]
    write_csv(folder / "predictions.csv", ("path", "minerals", "galena", "malachite"), rows)
    model = {"name": "tiny", "sha256": "abc123" * 9, "labels": ["galena", "malachite"], "thresholds": [0.5] * 2}
    (folder / "run.json").write_text(json.dumps({"model": model}))
    return folder


def frames(path: Path) -> list[NDArray[np.uint8]]:
    with Image.open(path) as image:
        return [np.asarray(frame).copy() for frame in ImageSequence.Iterator(image)]


def subjects(packet: bytes) -> list[str]:
    return [item.text for item in etree.fromstring(packet).iterfind(f".//{{{DC}}}subject//{{{RDF}}}li")]


def packet(path: Path) -> bytes:
    with Image.open(path) as image:
        found = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    return found if isinstance(found, bytes) else found.encode()


def is_insertion(original: bytes, longer: bytes) -> bool:
    """Whether the longer bytes are the original ones with something put in at one place."""
    put_in = len(longer) - len(original)
    return any(longer[:at] + longer[at + put_in :] == original for at in range(len(original)))


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def copies(tree: Path) -> dict[str, Path]:
    return {path.name: path for path in tree.rglob("*") if path.is_file() and path.suffix not in (".xmp", ".csv")}


def test_copies_hold_the_answer_and_every_pixel(results: Path, photos: Path) -> None:
    before = digests(photos)
    text = run(results, "--as", "xmp", "--embed")
    assert digests(photos) == before, "originals are only read"
    found = copies(results / "embedded")
    assert len(found) == len(before) == 17
    for path in photos.iterdir():
        one, other = frames(path), frames(found[path.name])
        assert len(one) == len(other), path
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True)), path
        with Image.open(path) as original, Image.open(found[path.name]) as copy:
            assert original.info.get("icc_profile") == copy.info.get("icc_profile")
            assert original.info.get("exif") == copy.info.get("exif")
        beside = path.suffix in (".tif", ".jp2", ".bmp", ".gif")
        sidecar = found[path.name].with_name(f"{path.name}.xmp")
        assert sidecar.exists() == beside
        expected = ["cabinet 7", "malachite"] if path.stem == "rich" else ["malachite"]
        assert subjects(sidecar.read_bytes() if beside else packet(found[path.name])) == expected, path
    assert "12 copies with the answer embedded" in text
    assert "5 copies with a sidecar instead: only JPEG, PNG and WebP are written" in text


def test_all_other_bytes_stay(results: Path, photos: Path) -> None:
    run(results, "--as", "xmp", "--embed")
    found = copies(results / "embedded")
    for name in ("plain.jpg", "odd exif.jpg", "ü cmyk.jpg", "trailer.jpg", "alpha.png", "moving.png"):
        assert is_insertion((photos / name).read_bytes(), found[name].read_bytes()), name
    with Image.open(found["two.mpo"]) as image:
        sizes = [entry["Size"] for entry in image.mpinfo[0xB002]]
    assert sum(sizes) == found["two.mpo"].stat().st_size, "the list of images counts the bytes of the longer one"


def test_a_second_delivery_updates_the_copies_and_undo_removes_them(results: Path, photos: Path) -> None:
    run(results, "--as", "xmp", "--embed")
    first = digests(results / "embedded")
    run(results, "--as", "xmp", "--embed")
    assert digests(results / "embedded") == first
    run(results, "--as", "xmp", "--embed", "--min-probability", 0.95, "--root", "Rocks")
    for name in ("rich.jpg", "rich.png", "rich.webp"):
        assert subjects(packet(copies(results / "embedded")[name])) == ["cabinet 7"]
    edited = copies(results / "embedded")["plain.jpg"]
    edited.write_bytes(edited.read_bytes() + b"edited elsewhere")
    assert "1 file changed since, left there" in run(results, "--as", "xmp", "--embed", "--undo")
    assert [path.name for path in (results / "embedded").rglob("*") if path.is_file()] == ["plain.jpg"]
    assert len(list(photos.iterdir())) == 17


def test_damaged_files_and_foreign_xmp_get_a_sidecar(results: Path, photos: Path) -> None:
    (photos / "plain.jpg").write_bytes(b"\xff\xd8\xff no more")
    (photos / "rich.png").write_bytes((photos / "rich.png").read_bytes()[:60])
    (photos / "rich.webp").write_bytes((photos / "rich.webp").read_bytes()[:-9])
    segment = b"http://ns.adobe.com/xap/1.0/\0<not-xmp/>"
    content = (photos / "trailer.jpg").read_bytes()
    start, rest = content[:2], content[2:]
    (photos / "trailer.jpg").write_bytes(start + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + rest)
    text = run(results, "--as", "xmp", "--embed")
    assert "its XMP is not XMP (no rdf:RDF in it)" in text
    assert "3 copies with a sidecar instead: the file is damaged" in text
    found = copies(results / "embedded")
    for name in ("plain.jpg", "rich.png", "rich.webp", "trailer.jpg"):
        assert found[name].read_bytes() == (photos / name).read_bytes()
        assert subjects(found[name].with_name(f"{name}.xmp").read_bytes()) == ["malachite"]


def test_a_file_in_the_way_and_wrong_options_are_one_line(results: Path, tmp_path: Path, photos: Path) -> None:
    place = tmp_path / "tree/photographs" / (photos / "plain.jpg").relative_to("/")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    text = run(results, "--as", "xmp", "--embed", "-o", tmp_path / "tree", code=1)
    assert "holds other files" in text
    assert place.read_bytes() == b"mine"
    assert [path for path in (tmp_path / "tree").rglob("*") if path.is_file()] == [place]
    assert "leave --beside out" in run(results, "--as", "xmp", "--embed", "--beside", code=2)
    assert "--embed is for --as xmp" in run(results, "--as", "excel", "--embed", code=2)


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed (libimage-exiftool-perl)")
@pytest.mark.slow
def test_exiftool_reads_the_copies_and_finds_them_sound(results: Path, photos: Path) -> None:
    def read(folder: Path) -> dict[str, dict[str, object]]:
        arguments = ["exiftool", "-json", "-r", "-validate", "-Subject", "-ImageDescription", folder]
        found = json.loads(subprocess.run(arguments, capture_output=True, check=False).stdout)
        return {Path(str(one["SourceFile"])).name: one for one in found}

    def warnings(one: dict[str, object]) -> int:
        found = re.match(r"\d+", str(one.get("Validate", "")))
        return int(found[0]) if found else 0

    run(results, "--as", "xmp", "--embed")
    before, after = read(photos), read(results / "embedded")
    for name, one in before.items():
        assert warnings(after[name]) <= warnings(one), name
        assert after[name].get("ImageDescription") == one.get("ImageDescription")
        assert name.endswith((".tif", ".jp2", ".bmp", ".gif")) or "malachite" in str(after[name]["Subject"])


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("embed") / "photos"
    names = make_photos(folder)
    return [(folder / name).read_bytes() for name in names if name.endswith((".jpg", ".mpo", ".png", ".webp"))]


@given(st.integers(0), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4), st.integers(0))
def test_damaged_bytes_are_refused_or_kept(
    contents: list[bytes], which: int, changes: list[tuple[int, int]], end: int
) -> None:
    """Never another error; and what was written can be read back."""
    content = bytearray(contents[which % len(contents)])
    for place, value in changes:
        content[place % 600 % len(content)] = value
    damaged = bytes(content[: end % (4 * len(content)) + 1])
    try:
        read_packet(damaged)
        longer = with_packet(damaged, "<packet/>")
    except PacketError:
        return
    assert read_packet(longer) == "<packet/>"


def test_a_packet_that_unpacks_to_too_much_is_not_read(tmp_path: Path) -> None:
    about = PngInfo()
    about.add_itxt("XML:com.adobe.xmp", " " * 20_000_000, zip=True)
    noise(1).save(tmp_path / "bomb.png", pnginfo=about)
    with pytest.raises(PacketError, match="too long"):
        read_packet((tmp_path / "bomb.png").read_bytes())
