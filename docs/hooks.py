"""Hooks of the site: doctests are formatted as code, and pages load nothing from the network."""

import re
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

_DOCTEST = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
_FETCHED = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")


class Doctests(griffe.Extension):
    """Fences doctests between the paragraphs of a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Refuse scripts, styles, fonts and images from elsewhere."""
    if found := _FETCHED.findall(output):
        raise PluginError(f"{page.file.src_path} fetches {', '.join(found)}")
