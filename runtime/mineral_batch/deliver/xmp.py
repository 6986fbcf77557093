"""XMP sidecars: what Lightroom, digiKam, darktable, Bridge and exiftool read beside a photograph.

Written are `dc:subject` (the names of the minerals), `lr:hierarchicalSubject` (`Mineral|Carbonates|malachite`, all
under one root keyword, which removes them at once), and in a namespace of our own the model, its probabilities, who
decided and when. A sidecar that is there is merged: everything else in it stays, and `mb:added` remembers which
keywords came from us, so that a second delivery replaces them and `remove` takes them back without touching a keyword
of the user's.

Format: XMP Specification Part 1 (ISO 16684-1:2019); hierarchicalSubject as Adobe Lightroom writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mineral_batch.deliver.packets import PacketError
from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.minerals.table import lineage
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mineral_batch.deliver.records import Delivery, Record
    from mineral_batch.minerals.table import Table

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META = "adobe:ns:meta/"
DC = "http://purl.org/dc/elements/1.1/"
LR = "http://ns.adobe.com/lightroom/1.0/"
MB = "urn:mineral-batch:xmp:1:"
_PREFIXES = {"x": META, "rdf": RDF, "dc": DC, "lr": LR, "mb": MB}

SidecarChange = Literal["new", "updated", "merged"]

ROOT = "Mineral"
SEPARATOR = "|"
# A packet in an image, as the specification wraps it (7.3.2).
_PACKET_START = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_PACKET_END = '<?xpacket end="w"?>'
# Keyword lists split at these.
_FORBIDDEN = str.maketrans({"|": "/", ",": " ", ";": " "})


def sidecar(file: Path, *, with_suffix: bool) -> Path:
    """`photo.jpg.xmp` (digiKam, darktable, exiftool), or `photo.xmp` (Adobe, for camera raw)."""
    return file.with_name(f"{file.name}.xmp") if with_suffix else file.with_suffix(".xmp")


def keywords(
    minerals: Iterable[str], root: str = ROOT, names: Iterable[str] | None = None, table: Table | None = None
) -> tuple[list[str], list[str]]:
    """The flat and the hierarchical keywords of minerals: the class and group stand between the root and the name.

    Args:
        minerals: labels of the model.
        root: keyword above all others.
        names: of the minerals in the collection; None for the labels.
        table: of minerals; None for the package's.
    """
    flat, hierarchical = [], []
    minerals = list(minerals)
    for label, name in zip(minerals, minerals if names is None else names, strict=True):
        broader = [part for part in reversed(lineage(label, table)) if part != name]
        flat.append(name.translate(_FORBIDDEN))
        hierarchical.append(SEPARATOR.join(part.translate(_FORBIDDEN) for part in (root, *broader, name)))
    return flat, hierarchical


def write_sidecar(path: Path, record: Record, delivery: Delivery, root: str = ROOT) -> SidecarChange:
    """Write or merge the sidecar of an image.

    Returns:
        `new`, or what became of the one that was there: `updated` if an earlier delivery had written into it, `merged`
        if it was somebody else's.

    Raises:
        DataError: if one is there that is not XMP, or it cannot be written.
    """
    existed = path.exists()
    document = _read(path) if existed else _empty()
    had_ours = bool(_ours(document))
    _merge(document, record, delivery, root, created=not existed or _first(document, MB, "created") is not None)
    write_file(path, _serialized(document))
    if not existed:
        return "new"
    return "updated" if had_ours else "merged"


def merged_packet(packet: str, record: Record, delivery: Delivery, root: str = ROOT) -> str:
    """The XMP packet of an image with the answer in it, merged with what was there.

    Args:
        packet: as it lies in the image; empty if there is none.
        record: the answer.
        delivery: that it is of.
        root: keyword above all others.

    Raises:
        PacketError: if the packet is not XMP.
    """
    try:
        document = _parsed(packet.encode()) if packet.strip("\0 \r\n\t") else _empty()
    except DataError as error:
        raise PacketError(f"its XMP {error}") from None
    _merge(document, record, delivery, root, created=False)
    content = _lxml().tostring(document, encoding="unicode", pretty_print=True)
    return f"{_PACKET_START}\n{content}{_PACKET_END}"


def _merge(document: Any, record: Record, delivery: Delivery, root: str, *, created: bool) -> None:
    _take_back(document)
    _write_keywords(document, record, root, delivery.table)
    _write_facts(document, record, delivery.model, created=created)


def remove(path: Path) -> bool:
    """Take back what `write_sidecar` wrote; the file goes too if it came from us and has nothing else.

    Returns:
        Whether there was anything of ours.

    Raises:
        DataError: if it is not XMP, or cannot be written.
    """
    document = _read(path)
    if not _ours(document):
        return False
    created = _first(document, MB, "created") is not None
    _take_back(document)
    if created and not any(len(description) for description in _descriptions(document)):
        path.unlink()
    else:
        write_file(path, _serialized(document))
    return True


def _lxml() -> Any:
    try:
        from lxml import etree
    except ImportError:
        raise DataError(f"XMP needs lxml: {pip_install('deliver')}") from None
    return etree


def _read(path: Path) -> Any:
    try:
        return _parsed(path.read_bytes())
    except (OSError, DataError) as error:
        raise DataError(f"{path} {error}: move it away, or deliver to another folder with -o") from None


def _parsed(content: bytes) -> Any:
    etree = _lxml()
    # XMP comes from elsewhere: no entities, no network, no unbounded trees.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False, remove_blank_text=True)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise DataError(f"is not XMP ({error})") from None
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f".//{{{RDF}}}RDF")
    if rdf is None:
        raise DataError("is not XMP (no rdf:RDF in it)")
    return root


def _empty() -> Any:
    etree = _lxml()
    root = etree.Element(f"{{{META}}}xmpmeta", nsmap={"x": META})
    rdf = etree.SubElement(root, f"{{{RDF}}}RDF", nsmap={"rdf": RDF})
    etree.SubElement(rdf, f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""}, nsmap={"dc": DC, "lr": LR, "mb": MB})
    return root


def _descriptions(root: Any) -> list[Any]:
    return list(root.iter(f"{{{RDF}}}Description"))


def _description(root: Any) -> Any:
    """The top-level description that gets what has no place yet."""
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f".//{{{RDF}}}RDF")
    found = rdf.find(f"{{{RDF}}}Description")
    if found is None:
        found = _lxml().SubElement(rdf, f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""})
    return found


def _first(root: Any, namespace: str, name: str) -> Any:
    return next(root.iter(f"{{{namespace}}}{name}"), None)


def _ours(root: Any) -> list[Any]:
    return [element for element in root.iter() if isinstance(element.tag, str) and element.tag.startswith(f"{{{MB}}}")]


def _items(element: Any) -> Iterator[str]:
    if element is not None:
        yield from (item.text or "" for item in element.iter(f"{{{RDF}}}li"))


def _bag(root: Any, namespace: str, name: str) -> Any:
    """The rdf:Bag (or Seq) of a property, made if it is not there."""
    etree, element = _lxml(), _first(root, namespace, name)
    if element is None:
        prefix = next(prefix for prefix, known in _PREFIXES.items() if known == namespace)
        element = etree.SubElement(_description(root), f"{{{namespace}}}{name}", nsmap={prefix: namespace})
    for kind in ("Bag", "Seq", "Alt"):
        if (bag := element.find(f"{{{RDF}}}{kind}")) is not None:
            return bag
    return etree.SubElement(element, f"{{{RDF}}}Bag")


def _add(root: Any, namespace: str, name: str, values: Sequence[str]) -> list[str]:
    """Append values that are not in the bag yet; returns those."""
    bag = _bag(root, namespace, name)
    known = set(_items(bag))
    added = [value for value in dict.fromkeys(values) if value not in known]
    for value in added:
        _lxml().SubElement(bag, f"{{{RDF}}}li").text = value
    return added


def _write_keywords(root: Any, record: Record, root_keyword: str, table: Table) -> None:
    flat, hierarchical = keywords(record.minerals, root_keyword, record.names, table)
    added = [f"dc:{value}" for value in _add(root, DC, "subject", flat)] if flat else []
    added += [f"lr:{value}" for value in _add(root, LR, "hierarchicalSubject", hierarchical)] if hierarchical else []
    if added:
        _add(root, MB, "added", added)


def _take_back(root: Any) -> None:
    """Remove the keywords that an earlier delivery added, and everything in our namespace."""
    for entry in list(_items(_first(root, MB, "added"))):
        prefix, _, value = entry.partition(":")
        namespace, name = (DC, "subject") if prefix == "dc" else (LR, "hierarchicalSubject")
        _remove_item(_first(root, namespace, name), value)
    for element in _ours(root):
        if element.getparent() is not None:
            element.getparent().remove(element)


def _remove_item(element: Any, value: str) -> None:
    if element is None:
        return
    for item in list(element.iter(f"{{{RDF}}}li")):
        if (item.text or "") == value:
            item.getparent().remove(item)
    if not list(_items(element)):
        element.getparent().remove(element)


def _text(root: Any, name: str, value: str) -> None:
    _lxml().SubElement(_description(root), f"{{{MB}}}{name}", nsmap={"mb": MB}).text = value


def _write_facts(root: Any, record: Record, model: str, *, created: bool) -> None:
    facts = {"evidence": record.evidence, "model": model, "reviewer": record.reviewer, "decided": record.time}
    for name, value in facts.items():
        if value:
            _text(root, name, _printable(value))
    if created:
        _text(root, "created", "True")
    if record.specimen != record.path:
        _text(root, "specimen", _printable(record.specimen))
    if record.machine:
        _add(root, MB, "machine", record.machine)
    named = {*record.minerals, *record.machine, record.best}
    known = {**record.probabilities, **record.broader}
    probabilities = [f"{name} {value:.3f}" for name, value in known.items() if name in named]
    _add(root, MB, "probabilities", sorted(probabilities, key=lambda text: text.rsplit(" ", 1)[1], reverse=True))


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in shown)


def _serialized(root: Any) -> bytes:
    content: bytes = _lxml().tostring(root, encoding="UTF-8", xml_declaration=True, pretty_print=True)
    return content
