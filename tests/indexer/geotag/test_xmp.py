"""XMP: what is read from it, what is put in, and that all else stays."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import XmpError
from indexer.geotag.xmp import EXIF, LOCI, MAX_BYTES, Xmp

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
    xmp:Rating="4"
    darktable:history_end="2"
    darktable:note="two&#10;lines, a &quot;quote&quot; &amp; a tab&#9;">
   <!-- a remark -->
   <dc:title xmlns:dc="http://purl.org/dc/elements/1.1/">
    <rdf:Alt><rdf:li xml:lang="x-default">Brücke &lt;alt&gt;</rdf:li></rdf:Alt>
   </dc:title>
   <darktable:history><rdf:Seq>
     <rdf:li darktable:operation="exposure" darktable:params="00ff"/>
   </rdf:Seq></darktable:history>
   <darktable:raw><![CDATA[a < b & c]]></darktable:raw>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


def packet(attributes: str = "", inside: str = "", outside: str = "") -> bytes:
    """XMP of one description with these attributes and child elements, and what stands after it."""
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">'
        f'<rdf:Description rdf:about="" xmlns:exif="{EXIF}" {attributes}>{inside}</rdf:Description>{outside}'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def at(lat: str, lon: str, more: str = "") -> bytes:
    return packet(f'exif:GPSLatitude="{lat}" exif:GPSLongitude="{lon}" {more}')


def estimated(xmp: Xmp, lat: float = 52.2034, lon: float = -0.114, heading: float | None = None) -> Xmp:
    xmp.put_estimate(lat, lon, 12.4, heading, {"Confidence": "0.9300", "Model": "f00d"})
    return xmp


def others(data: bytes) -> str:
    """The content in canonical form without what an estimate sets: what must stay."""
    root = ET.fromstring(data)
    for description in root.iter(f"{{{RDF}}}Description"):
        for name in list(description.attrib):
            if name.startswith((f"{{{LOCI}}}", f"{{{EXIF}}}GPS")):
                del description.attrib[name]
    return ET.canonicalize(ET.tostring(root, encoding="unicode"), strip_text=True)


# Reading


@pytest.mark.parametrize(
    ("lat", "lon", "position"),
    [
        ("52,12.204N", "0,6.84E", (52.2034, 0.114)),
        ("52,12,14S", "0,6,50.4W", (-52.2038889, -0.114)),
        ("52N", "179.5W", (52.0, -179.5)),
        (" 52,12.204N ", "000,06.840E", (52.2034, 0.114)),
        ("52.2034", "-0.114", (52.2034, -0.114)),
        ("90,0.0S", "180,0.0W", (-90.0, -180.0)),
    ],
)
def test_positions_as_programs_write_them(lat: str, lon: str, position: tuple[float, float]) -> None:
    assert Xmp.parse(at(lat, lon)).position() == pytest.approx(position, abs=1e-7)


@pytest.mark.parametrize(
    "data",
    [
        packet(),
        packet('exif:GPSLatitude="52,12.2N"'),
        at("", ""),
        at("0,0N", "0,0E"),
        at("52,1N", "1,1E", 'exif:GPSStatus="V"'),
        packet('GPSLatitude="52N" GPSLongitude="1E"'),
        packet(f'e:GPSLatitude="52N" e:GPSLongitude="1E" xmlns:e="{EXIF}x"'),
    ],
    ids=["nothing", "half", "empty", "zeros", "void", "no namespace", "another namespace"],
)
def test_missing_or_void_position_is_none(data: bytes) -> None:
    assert Xmp.parse(data).position() is None


@pytest.mark.parametrize(
    ("lat", "lon", "message"),
    [
        ("52,12.2E", "1,1E", "has a position that cannot be read: '52,12.2E'"),
        ("north", "1,1E", "has a position that cannot be read: 'north'"),
        ("52,12.2N", "181,0E", "has an impossible position: '181,0E'"),
        ("nan", "1,1E", "has a position that cannot be read: 'nan'"),
    ],
)
def test_a_position_that_cannot_be_read_is_an_error(lat: str, lon: str, message: str) -> None:
    with pytest.raises(XmpError, match=f"^{message}$"):
        Xmp.parse(at(lat, lon)).position()


def test_properties_may_be_elements_in_any_description_under_any_prefix() -> None:
    inside = f'<e:GPSLatitude xmlns:e="{EXIF}">52,12.204N</e:GPSLatitude>'
    outside = (
        f'<rdf:Description rdf:about="" xmlns:e="{EXIF}"><e:GPSLongitude> 0,6.84W '
        "</e:GPSLongitude></rdf:Description>"
    )
    assert Xmp.parse(packet(inside=inside, outside=outside)).position() == pytest.approx((52.2034, -0.114))


def test_rdf_may_be_the_root() -> None:
    data = f'<r:RDF xmlns:r="{RDF}"/>'.encode()
    xmp = estimated(Xmp.parse(data))
    assert Xmp.parse(xmp.to_bytes()).position() == (52.2034, -0.114)
    assert ET.fromstring(xmp.to_bytes()).tag == f"{{{RDF}}}RDF"


def test_utf_16() -> None:
    data = ('<?xml version="1.0" encoding="UTF-16"?>' + at("52,12.204N", "0,6.84E").decode()).encode("utf-16")
    assert Xmp.parse(data).position() == pytest.approx((52.2034, 0.114))


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'
FETCH = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><x>&a;</x>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LAUGHS.encode(), "^declares a document type, which XMP never does$"),
        (FETCH.encode(), "^declares a document type, which XMP never does$"),
        (b"", "^is not XML: "),
        (b"<x>", "^is not XML: "),
        (b"\xff\xd8\xff\xe0 a photo", "^is not XML: "),
        (b'<?xml version="1.0" encoding="nonsense"?><x/>', "^is not XML: .*encoding"),
        (b"<x/>", "^is XML, but has no rdf:RDF, as XMP has$"),
        (b"<a>" * 101 + b"</a>" * 101, "^is nested more than 100 deep$"),
        (b" " * (MAX_BYTES + 1), r"^has 16,000,001 bytes, 16,000,000 at most are read$"),
    ],
    ids=["laughs", "fetch", "empty", "cut off", "photo", "encoding", "no xmp", "deep", "large"],
)
def test_other_content_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(XmpError, match=message):
        Xmp.parse(data)


# Writing


def test_an_estimate_in_an_empty_packet() -> None:
    xmp = Xmp.parse(estimated(Xmp.empty(), heading=359.996).to_bytes())
    assert {name: xmp.get(EXIF, f"GPS{name}") for name in ("Latitude", "Longitude", "MapDatum")} == {
        "Latitude": "52,12.204000N",
        "Longitude": "0,6.840000W",
        "MapDatum": "WGS-84",
    }
    assert xmp.get(EXIF, "GPSHPositioningError") == "124/10"
    assert (xmp.get(EXIF, "GPSImgDirection"), xmp.get(EXIF, "GPSImgDirectionRef")) == ("0/100", "T")
    assert (xmp.get(LOCI, "Estimated"), xmp.get(LOCI, "Confidence")) == ("True", "0.9300")
    assert xmp.estimated
    assert not Xmp.parse(at("52N", "1E")).estimated


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_positions_survive_to_a_centimetre(lat: float, lon: float) -> None:
    xmp = estimated(Xmp.empty(), lat, lon)
    texts = xmp.get(EXIF, "GPSLatitude") or "", xmp.get(EXIF, "GPSLongitude") or ""
    degrees = []
    for text in texts:  # what the standard says the text means
        whole, minutes = text[:-1].split(",")
        assert 0 <= float(minutes) < 60
        degrees.append((int(whole) + float(minutes) / 60) * (-1 if text[-1] in "SW" else 1))
    assert degrees == pytest.approx([lat, lon], abs=1e-8)
    if any(abs(value) > 1e-7 for value in (lat, lon)):
        assert xmp.position() == pytest.approx((lat, lon), abs=1e-8)


def test_minutes_carry_into_degrees() -> None:
    xmp = estimated(Xmp.empty(), 51.9999999999, -0.9999999999)
    assert (xmp.get(EXIF, "GPSLatitude"), xmp.get(EXIF, "GPSLongitude")) == ("52,0.000000N", "1,0.000000W")


def test_everything_else_stays() -> None:
    data = estimated(Xmp.parse(DARKTABLE.encode())).to_bytes()
    assert others(data) == others(DARKTABLE.encode())
    text = data.decode()
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<x:xmpmeta ')
    assert "<!-- a remark -->" in text
    assert 'darktable:note="two&#10;lines, a &quot;quote&quot; &amp; a tab&#9;"' in text
    assert 'xml:lang="x-default">Brücke &lt;alt&gt;<' in text
    assert Xmp.parse(data).position() == (52.2034, -0.114)


def test_instructions_around_the_packet_stay() -> None:
    data = b'<?xpacket begin="" id="x"?>\n' + at("52N", "1E") + b'\n<?xpacket end="w"?>\n   \n'
    text = estimated(Xmp.parse(data)).to_bytes().decode()
    assert text.startswith('<?xpacket begin="" id="x"?>\n<x:xmpmeta')
    assert text.endswith('</x:xmpmeta>\n<?xpacket end="w"?>\n')


def test_estimate_replaces_the_old_position() -> None:
    inside = "<exif:GPSLongitude>1,0E</exif:GPSLongitude><exif:GPSDOP>3/1</exif:GPSDOP>"
    old = 'exif:GPSLatitude="52N" exif:GPSStatus="V" exif:GPSImgDirection="10/1" exif:GPSAltitude="7/1"'
    xmp = Xmp.parse(estimated(Xmp.parse(packet(old, inside))).to_bytes())
    assert xmp.position() == (52.2034, -0.114)
    assert [xmp.get(EXIF, name) for name in ("GPSStatus", "GPSDOP")] == [None, None]
    assert [xmp.get(EXIF, name) for name in ("GPSImgDirection", "GPSAltitude")] == ["10/1", "7/1"]
    assert len([a for a in ET.fromstring(xmp.to_bytes()).iter() if a.tag == f"{{{EXIF}}}GPSLongitude"]) == 0


def test_an_estimate_twice_is_as_once() -> None:
    once = estimated(Xmp.parse(DARKTABLE.encode())).to_bytes()
    again = estimated(Xmp.parse(once)).to_bytes()
    assert ET.canonicalize(again) == ET.canonicalize(once)


def test_a_prefix_that_means_something_else_is_not_taken() -> None:
    data = packet('loci:Note="of others"').replace(b"xmlns:exif", b'xmlns:loci="urn:other/" xmlns:exif')
    written = estimated(Xmp.parse(data)).to_bytes()
    description = ET.fromstring(written).find(f".//{{{RDF}}}Description")
    assert description is not None
    assert description.get("{urn:other/}Note") == "of others"
    assert description.get(f"{{{LOCI}}}Estimated") == "True"


def test_a_carriage_return_stays() -> None:
    data = packet(inside="<exif:UserComment>one&#13;two</exif:UserComment>")
    again = Xmp.parse(estimated(Xmp.parse(data)).to_bytes())
    assert again.get(EXIF, "UserComment") == "one\rtwo"


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "IMG_1.jpg.xmp"
    path.write_bytes(estimated(Xmp.parse(DARKTABLE.encode()), heading=123.456).to_bytes())
    command = ["exiftool", "-json", "-n", "-G1", str(path)]
    read = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]
    assert read["XMP-exif:GPSLatitude"] == pytest.approx(52.2034, abs=1e-7)
    assert read["XMP-exif:GPSLongitude"] == pytest.approx(-0.114, abs=1e-7)
    assert read["XMP-exif:GPSHPositioningError"] == 12.4
    assert read["XMP-exif:GPSImgDirection"] == pytest.approx(123.46)
    assert (read["XMP-xmp:Rating"], read["XMP-dc:Title"]) == (4, "Brücke <alt>")
    assert read["XMP-loci:Confidence"] == 0.93
    assert "ExifTool:Warning" not in read
