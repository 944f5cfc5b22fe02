"""Puts a page together and writes it: one file, which asks no network for anything.

Names come from a model file, which may be a stranger's. They are in the page as data only, in a
block that no name can end; the script writes them as text. The page's policy allows its own style
and script, by their hashes, and nothing else: no request, no form, no frame.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from bnfold._errors import UsageError
from bnfold._report.escapes import visible
from bnfold._system import paths

_SCRIPTS = ("graph.js", "picture.js", "details.js", "sections.js", "main.js")
_LONGEST = 400
"""So many characters of a name or message are shown."""
_ENDING = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""Characters that could end a block of data in HTML, or begin a comment, as JSON writes them."""


def page(document: Mapping[str, Any]) -> str:
    """The whole page as text."""
    style = _asset("page.css")
    script = "\n".join(('"use strict";', "(() => {", *map(_asset, _SCRIPTS), "})();\n"))
    data = json.dumps(_shown(document), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts = {
        "POLICY": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'",
        "TITLE": escape(_shown(Path(str(document["head"]["model"])).name)),
        "STYLE": style,
        "DATA": data.translate(_ENDING),
        "SCRIPT": script,
    }
    pieces = _asset("page.html").split("%")  # a name and the text behind it, in turn
    return pieces[0] + "".join(
        parts[name] + text for name, text in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a page, whole or not at all. Raises `UsageError` where it cannot be written."""
    paths.write_text(path, page(document))


def check_place(path: Path, *others: Path | None) -> None:
    """Raise `UsageError` where a page cannot be written, or would replace a file of the run."""
    for other in others:
        if other is not None and paths.is_same(path, other):
            raise UsageError(f"the page would overwrite {other}; give it another name")
    paths.check_writable(path, device=True)


def _asset(name: str) -> str:
    return files("bnfold._report.page").joinpath("assets").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """The hash by which a policy allows an inline script or style (CSP 3, "hash-source")."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _shown(value: Any) -> Any:
    """The same data; texts are cut, and what cannot be seen in them is escaped."""
    if isinstance(value, str):
        text = visible(value)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    if isinstance(value, Mapping):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return value
