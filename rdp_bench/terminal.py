"""Texts for readers, and terminals: control characters are escaped, and a closed pipe does not end the program."""

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, Any
from unicodedata import combining, east_asian_width

# C0 except tab and line feed, delete, C1, bidirectional marks, line separators, and what no encoding has (surrogates).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = True) -> str:
    r"""`text` with every control character written out, so that a file's name cannot steer a terminal.

    Bytes of a path that are not UTF-8 (Python keeps them as surrogates) become `\xNN`. Without `lines`, line feeds are
    written out too.

    >>> print(printable("a\x1b[31m\udce9"), printable("a\nb", lines=False))
    a\x1b[31m\xe9 a\nb
    """
    found = _CONTROL.sub(lambda match: _escaped(ord(match[0])), text)
    return found if lines else found.replace("\n", "\\n")


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def counted(number: int, thing: str) -> str:
    """A number of things in words.

    >>> counted(1, "image"), counted(20, "image")
    ('1 image', '20 images')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them; at least one.

    >>> listed(["JPEG", "FD", "TVM"]), listed(["JPEG"])
    ('JPEG, FD and TVM', 'JPEG')
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def columns(text: str) -> int:
    """How many columns of a terminal a line takes.

    >>> columns("RDP"), columns("净化"), columns("e\u0301")
    (3, 4, 1)
    """
    return sum(1 + (east_asian_width(letter) in "WF") for letter in text if not combining(letter))


def left(text: str, width: int) -> str:
    """`text` at the left of so many columns."""
    return text + " " * (width - columns(text))


def right(text: str, width: int) -> str:
    """`text` at the right of so many columns."""
    return " " * (width - columns(text)) + text


@cache
def warn_once(module: str, message: str) -> None:
    """Log a warning of a module, once per process."""
    logging.getLogger(module).warning("%s", message)


def utf8(text: str) -> bytes:
    r"""`text` for a file: UTF-8, with bytes of a path that are not written out as `\udcNN`.

    >>> utf8("caf\udce9")
    b'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace")


class Terminal:
    """A text stream that escapes control characters and ignores a closed pipe (`run ... | true`)."""

    encoding = "utf-8"  # whatever the stream has: letters that it lacks are written out
    errors = "backslashreplace"

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        # A progress bar begins with a carriage return.
        head = text[:1] if text[:1] == "\r" else ""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = (head + printable(text[len(head) :])).encode(encoding, "backslashreplace").decode(encoding)
        with self._swallowing():
            self.stream.write(shown)
        return len(text)

    def flush(self) -> None:
        with self._swallowing():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _swallowing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is buffered goes there too; else the interpreter would fail when it flushes at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def terminal() -> Iterator[None]:
    """Inside this block stdout and stderr are `Terminal`s; closed standard streams are opened."""
    for number in (0, 1, 2):  # a closed one's number would go to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_wrapped(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _wrapped(stream: Any) -> Any:
    if stream is None:
        return Terminal(open(os.devnull, "w", encoding="utf-8"))
    return stream if isinstance(stream, Terminal) else Terminal(stream)


class OneLine(logging.Formatter):
    """A log line in which the message is one line; a traceback below it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record), lines=False)
