"""Writes the pages of the reference that come from the code: docs/reference/generated/*.md.

`conf.py` calls this when the site is built; ``python docs/generate.py`` does it by hand. What it
writes is committed, for those who read the pages in the repository.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import click

from bnfold._command.cli import main as command
from bnfold._core.reasons import CODES

FOLDER = Path(__file__).parent / "reference" / "generated"
SCHEMAS = ("report", "comparison", "proof", "check", "index", "run")


def commands() -> str:
    """The command with every option, as click knows them."""
    parts = ["# The command", "", _text(command.help), ""]
    context = click.Context(command, info_name="bnfold")
    for name, sub in sorted(command.commands.items()):
        inner = click.Context(sub, info_name=name, parent=context)
        usage = " ".join((inner.command_path, *sub.collect_usage_pieces(inner)))
        parts += [f"## bnfold {name}", "", "```text", usage, "```", "", _text(sub.help), ""]
        options = [p for p in sub.get_params(inner) if isinstance(p, click.Option) and not p.hidden]
        if options:
            parts += ["| option | |", "|---|---|", *(_option(o, inner) for o in options), ""]
    return "\n".join(parts)


def _text(help_text: str | None) -> str:
    """A help text in Markdown: what must not be wrapped becomes a block."""
    parts = []
    for paragraph in inspect.cleandoc(help_text or "").split("\n\n"):
        if paragraph.startswith("\b"):
            parts.append("```text\n" + paragraph.removeprefix("\b\n") + "\n```")
        else:
            parts.append(_plain(" ".join(paragraph.split())))
    return "\n\n".join(parts)


def _option(option: click.Option, context: click.Context) -> str:
    """A row of the table of options."""
    shown, meaning = option.get_help_record(context) or ("", "")
    return f"| `{_cell(shown)}` | {_cell(_plain(meaning))} |"


def codes() -> str:
    """Every reason code with its meaning and what to do about it."""
    parts = ["# Reason codes", ""]
    parts += [f"Each operator that stays has one of {len(CODES)} codes. `bnfold explain CODE` says"]
    parts += ["the same. Codes are stable: a new version may add some, and changes the meaning of"]
    parts += ["none.", ""]
    for name, code in sorted(CODES.items()):
        parts += [
            f"## {name}",
            "",
            _plain(code.meaning),
            "",
            f"*What to do:* {_plain(code.advice)}",
        ]
        parts += [""]
    return "\n".join(parts)


def schemas() -> str:
    """The JSON that the command writes: every field of the top of each schema."""
    parts = ["# Report schemas", ""]
    parts += [
        "What `--report` and `--output-format json` write. The schemas come with the package, in"
    ]
    parts += [
        "`bnfold/schemas/`. Within one number fields are added at most, and none is changed.",
        "",
    ]
    for name in SCHEMAS:
        path = resources.files("bnfold") / "schemas" / f"{name}-1.json"
        schema = json.loads(path.read_text(encoding="utf-8"))
        parts += [f"## {schema['title']}", "", _plain(schema.get("description", "")), ""]
        parts += ["| field | type | |", "|---|---|---|"]
        parts += _fields(schema, schema.get("$defs", {}), "")
        parts += [""]
    return "\n".join(parts)


def _fields(schema: Mapping[str, Any], shared: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """A row for each field; fields of an object within, one level deep, behind a dot."""
    for name, field in schema.get("properties", {}).items():
        known = _resolved(field, shared)
        meaning = field.get("description") or known.get("description", "")
        yield f"| `{prefix}{name}` | {_kind(known, shared)} | {_cell(_plain(meaning))} |"
        items = _resolved(known.get("items", {}), shared)
        if not prefix:
            yield from _fields(known, shared, f"{name}.")
            yield from _fields(items, shared, f"{name}[].")


def _resolved(field: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field, or what its reference leads to."""
    reference = field.get("$ref", "")
    return shared.get(reference.rpartition("/")[2], {}) if reference else field


def _kind(field: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    choices = [c for key in ("anyOf", "oneOf") for c in field.get(key, ())]
    if choices:
        return " or ".join(dict.fromkeys(_kind(_resolved(c, shared), shared) for c in choices))
    kinds = field.get("type", "any")
    return " or ".join(kinds) if isinstance(kinds, list) else kinds


def _plain(text: str) -> str:
    """A sentence of the code as Markdown: nothing in it is markup but `code`."""
    for mark in "\\*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PAGES = {"command": commands, "codes": codes, "schemas": schemas}


def main() -> None:
    """Write the pages; one that has not changed keeps its time, so that it is not built again."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        path, text = FOLDER / f"{name}.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
