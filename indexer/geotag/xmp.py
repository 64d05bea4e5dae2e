"""A photo's XMP (ISO 16684-1): reads and sets the position, and keeps everything else.

XMP has no document type. A file that declares one is refused, so no entity is expanded or fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lxml import etree

from indexer.errors import XmpError
from indexer.photos.metadata import position_or_none

MAX_BYTES = 16_000_000
MAX_DEPTH = 100

EXIF = "http://ns.adobe.com/exif/1.0/"
LOCI = "urn:geniusloci:xmp/1.0/"
"""Namespace of the properties that mark a position as estimated."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_OLD_POSITION = (
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
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

etree.register_namespace("exif", EXIF)
etree.register_namespace("loci", LOCI)


class Xmp:
    """An XMP packet that can be changed; `Xmp.parse` reads one, `Xmp.empty` makes one."""

    def __init__(self, root: Any, *, declared: bool) -> None:
        self._root = root
        self._declared = declared

    @classmethod
    def parse(cls, data: bytes) -> Xmp:
        """Read a packet or the content of a sidecar.

        Raises:
            XmpError: not XML, not XMP, too large, too deep, or with a document type.
        """
        if len(data) > MAX_BYTES:
            raise XmpError(f"has {len(data):,} bytes, {MAX_BYTES:,} at most are read")
        parser = etree.XMLParser(resolve_entities=False, no_network=True, strip_cdata=False)
        try:
            root = etree.fromstring(data, parser)
        except (etree.XMLSyntaxError, ValueError, LookupError) as error:  # the latter two: its encoding
            raise XmpError(f"is not XML: {error}") from None
        if root.getroottree().docinfo.internalDTD is not None:
            raise XmpError("declares a document type, which XMP never does")
        if any(sum(1 for _ in element.iterancestors()) >= MAX_DEPTH for element in root.iter(etree.Element)):
            raise XmpError(f"is nested more than {MAX_DEPTH} deep")
        xmp = cls(root, declared=b"<?xml" in data[:200].replace(b"\0", b""))
        if xmp._rdf() is None:
            raise XmpError("is XML, but has no rdf:RDF, as XMP has")
        return xmp

    @classmethod
    def empty(cls) -> Xmp:
        """Return a packet without properties."""
        return cls.parse(_EMPTY.encode())

    def to_bytes(self) -> bytes:
        """Return the packet as UTF-8, with a declaration if it had one."""
        around = [
            [*self._root.itersiblings(preceding=True)][::-1],
            [self._root],
            [*self._root.itersiblings()],
        ]
        lines = [
            etree.tostring(node, encoding="unicode", with_tail=False) for part in around for node in part
        ]
        if self._declared:
            lines.insert(0, '<?xml version="1.0" encoding="UTF-8"?>')
        return "".join(f"{line}\n" for line in lines).encode()

    def get(self, uri: str, name: str) -> str | None:
        """Return the text of a simple property; None if it is missing."""
        for description in self._descriptions():
            value = description.get(f"{{{uri}}}{name}")
            if value is not None:
                return str(value).strip()
            for child in description.iterchildren(f"{{{uri}}}{name}"):
                return str(child.xpath("string()")).strip()
        return None

    def put(self, uri: str, name: str, value: str) -> None:
        """Set a simple property. Characters that XML does not allow become U+FFFD."""
        self.remove(uri, name)
        description = next(self._descriptions(), None)
        if description is None:
            description = etree.SubElement(self._rdf(), f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
        description.set(f"{{{uri}}}{name}", _NOT_XML.sub("\ufffd", value))

    def remove(self, uri: str, name: str) -> None:
        """Remove a property, if it is there."""
        for description in self._descriptions():
            description.attrib.pop(f"{{{uri}}}{name}", None)
            for child in [*description.iterchildren(f"{{{uri}}}{name}")]:
                description.remove(child)

    def position(self) -> tuple[float, float] | None:
        """Return latitude and longitude in degrees; None if missing or marked as void.

        Raises:
            XmpError: a value that is not a position.
        """
        lat, lon = self.get(EXIF, "GPSLatitude"), self.get(EXIF, "GPSLongitude")
        if not lat or not lon or (self.get(EXIF, "GPSStatus") or "").upper() == "V":
            return None
        return position_or_none(_degrees(lat, "N", "S", 90), _degrees(lon, "E", "W", 180))

    @property
    def estimated(self) -> bool:
        """Whether `put_estimate` set its position."""
        return self.get(LOCI, "Estimated") == "True"

    def put_estimate(
        self, lat: float, lon: float, radius_m: float, heading: float | None, remarks: Mapping[str, str]
    ) -> None:
        """Set an estimated position, in place of any other.

        Args:
            lat, lon: degrees, WGS 84.
            radius_m: EXIF's horizontal positioning error, metres.
            heading: degrees clockwise from true north; None leaves an existing one.
            remarks: properties of our own namespace, by name.
        """
        for name in _OLD_POSITION:
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

    def _rdf(self) -> Any:
        """Return rdf:RDF, the root or a child of x:xmpmeta; None if there is none."""
        return self._root if self._root.tag == f"{{{_RDF}}}RDF" else self._root.find(f"{{{_RDF}}}RDF")

    def _descriptions(self) -> Iterator[Any]:
        roots = (
            [self._root] if self._root.tag == f"{{{_RDF}}}RDF" else self._root.iterchildren(f"{{{_RDF}}}RDF")
        )
        for rdf in roots:
            yield from rdf.iterchildren(f"{{{_RDF}}}Description")


def _coordinate(degrees: float, positive: str, negative: str) -> str:
    """Return degrees as XMP writes them, `52,12.204000N`: to a millionth of a minute, 2 mm."""
    whole, rest = divmod(round(abs(degrees) * 60_000_000), 60_000_000)
    minutes, millionths = divmod(rest, 1_000_000)
    return f"{whole},{minutes}.{millionths:06}{negative if degrees < 0 else positive}"


def _degrees(text: str, positive: str, negative: str, most: int) -> float:
    """Read a coordinate: `52,12.204N`, `52,12,14N`, or a decimal number as some programs write it."""
    parts = _COORDINATE.fullmatch(text)
    if parts and parts["letter"] in (positive, negative):
        total = sum(float(parts[unit] or 0) / size for unit, size in _UNITS)
        degrees = -total if parts["letter"] == negative else total
    elif _DECIMAL.fullmatch(text):
        degrees = float(text)
    else:
        raise XmpError(f"has a position that cannot be read: {text[:40]!r}")
    if abs(degrees) > most:
        raise XmpError(f"has an impossible position: {text[:40]!r}")
    return degrees


_UNITS = (("degrees", 1), ("minutes", 60), ("seconds", 3600))
