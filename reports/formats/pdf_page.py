"""A PDF of one page with text and horizontal rules, its fonts reduced to a few letters and embedded.

Drawing a table with matplotlib would take ten times as long. Structure of the file: ISO 32000-1, 7.5; fonts: 9.7.
"""

import io
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

from rdp_bench.reports.figures.fonts import USUAL, reduced


@dataclass(frozen=True)
class Face:
    """A TrueType font that comes with matplotlib, reduced to the letters that are needed."""

    name: str
    data: bytes = field(repr=False)
    glyphs: dict[str, int] = field(repr=False)
    """Numbers of the glyphs of letters."""
    advances: list[float] = field(repr=False)
    """Widths of the glyphs in thousandths of the size."""
    box: tuple[float, float, float, float]
    """What all letters fit in, in the same unit: left, bottom, right, top."""

    @staticmethod
    def of(name: str, letters: Iterable[str]) -> "Face":
        """The font with the usual letters and these, as far as it has them."""
        return _face(name, frozenset(letters) - USUAL)

    def clean(self, text: str) -> str:
        """`text` in one line, with a question mark for what the font lacks."""
        return "".join(
            letter if letter in self.glyphs else f"[U+{ord(letter):04X}]" for letter in " ".join(text.split())
        )

    def width(self, text: str, size: float) -> float:
        """Of a text in points."""
        return size / 1000 * sum(self.advances[self.glyphs[letter]] for letter in text)


@cache
def _face(name: str, more: frozenset[str]) -> Face:
    from fontTools.ttLib import TTFont

    data = reduced(name, more)
    font = TTFont(io.BytesIO(data))
    scale, head, order = 1000 / font["head"].unitsPerEm, font["head"], font.getGlyphOrder()
    glyphs = {chr(code): font.getGlyphID(glyph) for code, glyph in font.getBestCmap().items()}
    advances = [scale * font["hmtx"][glyph][0] for glyph in order]
    box = (scale * head.xMin, scale * head.yMin, scale * head.xMax, scale * head.yMax)
    return Face(name, data, glyphs, advances, box)


class Page:
    """One page; places are in points from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self._size = width, height
        self._faces: dict[str, Face] = {}
        self._drawn: list[str] = []

    def text(self, x: float, y: float, text: str, face: Face, size: float) -> None:
        """A text that starts at x, on the line y. Its letters must be in the font: see `Face.clean`."""
        self._faces.setdefault(face.name, face)
        glyphs = "".join(f"{face.glyphs[letter]:04x}" for letter in text)
        self._drawn.append(f"BT /{face.name} {size:g} Tf {x:.2f} {self._size[1] - y:.2f} Td <{glyphs}> Tj ET")

    def rule(self, left: float, right: float, y: float, thick: float) -> None:
        """A horizontal line."""
        height = self._size[1] - y
        self._drawn.append(f"{thick:g} w {left:.2f} {height:.2f} m {right:.2f} {height:.2f} l S")

    def file(self) -> bytes:
        """The PDF; the same bytes whenever the same is drawn."""
        objects: list[bytes] = []

        def add(content: bytes) -> int:
            objects.append(content)
            return len(objects)

        fonts = " ".join(f"/{name} {_embed(face, add)} 0 R" for name, face in self._faces.items())
        drawn = add(_stream("\n".join(self._drawn).encode()))
        page, pages = len(objects) + 1, len(objects) + 2
        box = f"[0 0 {self._size[0]:.2f} {self._size[1]:.2f}]"
        parts = f"/MediaBox {box} /Resources << /Font << {fonts} >> >> /Contents {drawn} 0 R"
        add(f"<< /Type /Page /Parent {pages} 0 R {parts} >>".encode())
        add(f"<< /Type /Pages /Kids [{page} 0 R] /Count 1 >>".encode())
        root = add(f"<< /Type /Catalog /Pages {pages} 0 R >>".encode())
        text = b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n"
        places = []
        for number, content in enumerate(objects, 1):
            places.append(len(text))
            text += b"%d 0 obj\n%s\nendobj\n" % (number, content)
        table = b"".join(b"%010d 00000 n \n" % place for place in places)
        trailer = f"trailer << /Size {len(objects) + 1} /Root {root} 0 R >>\nstartxref\n{len(text)}\n%%EOF\n"
        return text + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + trailer.encode()


def _embed(face: Face, add: Callable[[bytes], int]) -> int:
    """Add a font, addressed by two-byte glyph numbers, with the letters that its glyphs stand for."""
    box = " ".join(f"{end:.0f}" for end in face.box)
    data = add(_stream(face.data, f"/Length1 {len(face.data)}"))
    about = add(
        (
            f"<< /Type /FontDescriptor /FontName /{face.name} /Flags 4 /FontBBox [{box}] /ItalicAngle 0 "
            f"/Ascent {face.box[3]:.0f} /Descent {face.box[1]:.0f} /CapHeight 660 /StemV 80 /FontFile2 {data} 0 R >>"
        ).encode()
    )
    widths = " ".join(f"{advance:.0f}" for advance in face.advances)
    inner = add(
        (
            f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /{face.name} /CIDToGIDMap /Identity "
            "/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> "
            f"/FontDescriptor {about} 0 R /W [0 [{widths}]] >>"
        ).encode()
    )
    letters = add(_stream(_to_unicode(face).encode()))
    return add(
        (
            f"<< /Type /Font /Subtype /Type0 /BaseFont /{face.name} /Encoding /Identity-H "
            f"/DescendantFonts [{inner} 0 R] /ToUnicode {letters} 0 R >>"
        ).encode()
    )


def _to_unicode(face: Face) -> str:
    """The CMap by which readers find and copy text; it lists at most a hundred letters at a time."""
    pairs = [f"<{glyph:04x}> <{letter.encode('utf-16-be').hex()}>" for letter, glyph in face.glyphs.items()]
    blocks = [pairs[low : low + 100] for low in range(0, len(pairs), 100)]
    lists = [f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar" for block in blocks]
    head = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap\n"
        "/CMapName /Letters def /CMapType 2 def\n"
        "1 begincodespacerange <0000> <ffff> endcodespacerange"
    )
    return "\n".join([head, *lists, "endcmap CMapName currentdict /CMap defineresource pop end end"])


def _stream(data: bytes, more: str = "") -> bytes:
    packed = zlib.compress(data)
    return f"<< /Length {len(packed)} /Filter /FlateDecode {more} >>\nstream\n".encode() + packed + b"\nendstream"
