"""A photo's XMP (ISO 16684-1): the position in it, read and put in, with all else kept as it is.

Prefixes are not resolved while parsing, so that everything is written back under the names it had. XMP has
no document type; one that declares some is refused, and with it entities that grow or fetch files.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from xml.parsers import expat

from indexer.errors import XmpError
from indexer.photos.metadata import position_or_none

MAX_BYTES = 16_000_000
MAX_DEPTH = 100

EXIF = "http://ns.adobe.com/exif/1.0/"
LOCI = "urn:geniusloci:xmp/1.0/"
"""Namespace of what says that a position was estimated."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XML = "http://www.w3.org/XML/1998/namespace"
_PREFIXES = {EXIF: "exif", LOCI: "loci", _RDF: "rdf"}
_OF_THE_OLD_FIX = (
    *("GPSLatitude", "GPSLongitude", "GPSHPositioningError", "GPSMapDatum", "GPSStatus", "GPSMeasureMode"),
    *("GPSDOP", "GPSSatellites", "GPSProcessingMethod", "GPSDifferential"),
)
_EMPTY = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
_COORDINATE = re.compile(
    r"(?P<degrees>\d{1,3}(?:\.\d+)?)(?:,(?P<minutes>\d{1,2}(?:\.\d+)?))?(?:,(?P<seconds>\d{1,2}(?:\.\d+)?))?"
    r"\s*(?P<letter>[NSEW])"
)
_DECIMAL = re.compile(r"[+-]?\d{1,3}(?:\.\d+)?")

Scope = Mapping[str, str]
"""What each prefix stands for at some element."""


class Xmp:
    """An XMP packet that can be changed; `Xmp.parse` reads one, `Xmp.empty` begins one."""

    def __init__(self, root: ET.Element, before: str, after: str) -> None:
        self._root = root
        self._before = before  # the declaration, and instructions around the root such as <?xpacket …?>
        self._after = after

    @classmethod
    def parse(cls, data: bytes) -> Xmp:
        """Read a packet or a sidecar's content.

        Raises:
            XmpError: it is not XML, or no XMP; it is too large or too deep, or declares a document type.
        """
        if len(data) > MAX_BYTES:
            raise XmpError(f"has {len(data):,} bytes, {MAX_BYTES:,} at most are read")
        reader = _Reader()
        xmp = cls(reader.read(data), "".join(reader.before), "".join(reader.after))
        if next(xmp._rdf(), None) is None:
            raise XmpError("is XML, but holds no rdf:RDF as XMP does")
        return xmp

    @classmethod
    def empty(cls) -> Xmp:
        """A packet without any property."""
        return cls.parse(_EMPTY.encode())

    def to_bytes(self) -> bytes:
        """The packet as UTF-8."""
        text = ET.tostring(self._root, encoding="unicode")
        # A carriage return in text can only have been written as a reference; bare, it would be read as \n.
        text = text.replace("\r", "&#13;")
        return f"{self._before}{text}\n{self._after}".encode()

    def get(self, uri: str, name: str) -> str | None:
        """The text of a simple property, None where it is not there."""
        for description, scope in self._descriptions():
            for attribute, value in description.attrib.items():
                if _is(attribute, scope, uri, name):
                    return value.strip()
            for child in _elements(description):
                if _is(child.tag, _inside(scope, child), uri, name):
                    return "".join(child.itertext()).strip()
        return None

    def put(self, uri: str, name: str, value: str) -> None:
        """Set a simple property, in place of whatever it was."""
        self.remove(uri, name)
        description, scope = self._first_description()
        description.set(f"{_prefix(description, scope, uri)}:{name}", value)

    def remove(self, uri: str, name: str) -> None:
        """Take a property out, if it is there."""
        for description, scope in self._descriptions():
            for attribute in [a for a in description.attrib if _is(a, scope, uri, name)]:
                del description.attrib[attribute]
            for child in _elements(description):
                if _is(child.tag, _inside(scope, child), uri, name):
                    description.remove(child)

    def position(self) -> tuple[float, float] | None:
        """Latitude and longitude in degrees, None where it has none, or one marked as void.

        Raises:
            XmpError: there is something that is no position.
        """
        lat, lon = self.get(EXIF, "GPSLatitude"), self.get(EXIF, "GPSLongitude")
        if not lat or not lon or (self.get(EXIF, "GPSStatus") or "").upper() == "V":
            return None
        return position_or_none(_degrees(lat, "N", "S", 90), _degrees(lon, "E", "W", 180))

    @property
    def estimated(self) -> bool:
        """Whether its position is one that `put_estimate` put there."""
        return self.get(LOCI, "Estimated") == "True"

    def put_estimate(
        self, lat: float, lon: float, radius_m: float, heading: float | None, remarks: Mapping[str, str]
    ) -> None:
        """Put an estimated position in, in place of one there is.

        Args:
            lat, lon: degrees, WGS 84.
            radius_m: how far off it may be, metres: EXIF's horizontal positioning error.
            heading: degrees clockwise from true north; where None, one that is there stays.
            remarks: properties of our own namespace, by name.
        """
        for name in _OF_THE_OLD_FIX:
            self.remove(EXIF, name)
        self.put(EXIF, "GPSLatitude", _coordinate(lat, "N", "S"))
        self.put(EXIF, "GPSLongitude", _coordinate(lon, "E", "W"))
        self.put(EXIF, "GPSMapDatum", "WGS-84")
        self.put(EXIF, "GPSHPositioningError", f"{round(radius_m * 10)}/10")
        if heading is not None:
            self.put(EXIF, "GPSImgDirection", f"{round(heading * 100) % 36_000}/100")
            self.put(EXIF, "GPSImgDirectionRef", "T")
        for name, value in ({"Estimated": "True"} | dict(remarks)).items():
            self.put(LOCI, name, value)

    def _rdf(self) -> Iterator[tuple[ET.Element, Scope]]:
        """rdf:RDF: the root, or within x:xmpmeta."""
        outer = _inside({"xml": _XML}, self._root)
        candidates = [(self._root, outer)]
        candidates += [(child, _inside(outer, child)) for child in _elements(self._root)]
        for element, scope in candidates:
            if _is(element.tag, scope, _RDF, "RDF"):
                yield element, scope

    def _descriptions(self) -> Iterator[tuple[ET.Element, Scope]]:
        for rdf, outer in self._rdf():
            for child in _elements(rdf):
                scope = _inside(outer, child)
                if _is(child.tag, scope, _RDF, "Description"):
                    yield child, scope

    def _first_description(self) -> tuple[ET.Element, Scope]:
        for found in self._descriptions():
            return found
        rdf, scope = next(self._rdf())
        prefix = _prefix(rdf, scope, _RDF)
        description = ET.SubElement(rdf, f"{prefix}:Description", {f"{prefix}:about": ""})
        return description, scope


class _Reader:
    """Builds the tree, and keeps what stands before and after it."""

    def __init__(self) -> None:
        self.before: list[str] = []
        self.after: list[str] = []
        self._builder = ET.TreeBuilder(insert_comments=True, insert_pis=True)
        self._depth = 0
        self._begun = False

    def read(self, data: bytes) -> ET.Element:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._builder.data
        parser.CommentHandler = self._comment
        parser.ProcessingInstructionHandler = self._instruction
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: its encoding
            raise XmpError(f"is not XML: {error}") from None
        return self._builder.close()

    def _declaration(self, *_: object) -> None:
        self.before.append('<?xml version="1.0" encoding="UTF-8"?>\n')  # as it is written, whatever it was

    def _doctype(self, *_: object) -> None:
        raise XmpError("declares a document type, which XMP never does")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._begun = True
        if self._depth > MAX_DEPTH:
            raise XmpError(f"is nested more than {MAX_DEPTH} deep")
        self._builder.start(name, attributes)

    def _end(self, name: str) -> None:
        self._depth -= 1
        self._builder.end(name)

    def _comment(self, text: str) -> None:
        if self._depth:  # the tree holds only what is within the root
            self._builder.comment(text)

    def _instruction(self, target: str, text: str) -> None:
        if self._depth:
            self._builder.pi(target, text)
        else:
            (self.after if self._begun else self.before).append(f"<?{target} {text}?>\n")


def _elements(parent: ET.Element) -> list[ET.Element]:
    """Its children without comments and processing instructions, in a list so that some may be removed."""
    return [child for child in parent if isinstance(child.tag, str)]


def _inside(scope: Scope, element: ET.Element) -> Scope:
    declared = {
        name[6:]: uri for name, uri in element.attrib.items() if name == "xmlns" or name.startswith("xmlns:")
    }
    return {**scope, **declared} if declared else scope


def _is(qualified: str, scope: Scope, uri: str, name: str) -> bool:
    """Whether `exif:GPSLatitude` or the like is this name of this namespace."""
    prefix, _, local = qualified.rpartition(":")
    return local == name and scope.get(prefix) == uri


def _prefix(element: ET.Element, scope: Scope, uri: str) -> str:
    """A prefix that stands for `uri` at the element, declared there if there is none yet."""
    bound = next((prefix for prefix, meant in scope.items() if prefix and meant == uri), None)
    if bound is not None:
        return bound
    names = (f"{_PREFIXES[uri]}{number or ''}" for number in range(len(scope) + 1))
    prefix = next(name for name in names if name not in scope)
    element.set(f"xmlns:{prefix}", uri)
    return prefix


def _coordinate(degrees: float, positive: str, negative: str) -> str:
    """Degrees as XMP writes them, `52,12.204000N`: to a millionth of a minute, 2 mm."""
    whole, rest = divmod(round(abs(degrees) * 60_000_000), 60_000_000)
    minutes, millionths = divmod(rest, 1_000_000)
    return f"{whole},{minutes}.{millionths:06}{negative if degrees < 0 else positive}"


def _degrees(text: str, positive: str, negative: str, most: int) -> float:
    """A coordinate in degrees: `52,12.204N`, `52,12,14N`, or a decimal number as some programs write it."""
    parts = _COORDINATE.fullmatch(text)
    if parts and parts["letter"] in (positive, negative):
        total = sum(float(parts[unit] or 0) / size for unit, size in _UNITS)
        degrees = -total if parts["letter"] == negative else total
    elif _DECIMAL.fullmatch(text):
        degrees = float(text)
    else:
        raise XmpError(f"has a position that cannot be read: {text[:40]!r}")
    if abs(degrees) > most:
        raise XmpError(f"has a position that is none on earth: {text[:40]!r}")
    return degrees


_UNITS = (("degrees", 1), ("minutes", 60), ("seconds", 3600))
