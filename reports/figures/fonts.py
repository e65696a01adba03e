"""Fonts that come with matplotlib, reduced to the letters of a report.

A PDF embeds the letters that it uses; to pick them from a whole font takes longer than to draw a small figure.
"""

import io
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

USUAL = frozenset(map(chr, (*range(32, 127), *range(161, 256)))) | frozenset("≈†‡εσαμ–−“”’×±∞…")
"""The letters of most names and captions."""


@cache
def reduced(name: str, more: frozenset[str] = frozenset(), family: str = "") -> bytes:
    """A TrueType file with the usual letters and `more`, as far as the font has them; `family`: another name for it."""
    import matplotlib as mpl
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", lazy=True)
    options = Options(layout_features=[], hinting=False)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "FFTM"]
    subsetter = Subsetter(options)
    subsetter.populate(text="".join(sorted(USUAL | more)))
    subsetter.subset(font)
    for record in font["name"].names if family else ():
        record.string = family
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


@cache
def families() -> list[str]:
    """For matplotlib's `font.family`: a reduced sans serif, and the whole one for the letters that it lacks."""
    _add("DejaVuSans")
    return [_FAMILY, "sans-serif"]


@cache
def add_bold() -> None:
    """Give the reduced font its bold face, which takes as long again and few figures use."""
    _add("DejaVuSans-Bold")


def lacking(texts: Iterable[str]) -> str:
    """The letters of `texts` that no font of the figures has, each once, in the order of their code points."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    known = get_font(fontManager.findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(letter for letter in sorted({*"".join(texts)} - {"\n"}) if ord(letter) not in known)


_FAMILY = "rdp-bench-sans"


def _add(name: str) -> None:
    from matplotlib.font_manager import fontManager

    path = Path(_folder().name) / f"{name}.ttf"
    path.write_bytes(reduced(name, family=_FAMILY))
    fontManager.addfont(path)


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Where matplotlib reads the reduced font; deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="rdp-bench-")
