"""A list of revisions as text, and into a config file in place.

A list generator's output is pasted, appended (``>>``) or written into a config; what people wrote
around it stays.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import yaml

from batchsweep.errors import ConfigError, first_line

Format = Literal["yaml", "json", "lines", "k8s"]
FORMATS: tuple[str, ...] = get_args(Format)

_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")


def render_revisions(revisions: Sequence[str], fmt: str, *, models: int = 1) -> str:
    """The list in one of the formats, with a newline at its end.

    Args:
        fmt: ``yaml`` (a ``revisions:`` block), ``json``, ``lines``, or ``k8s`` (the indexed job's
            ``completions``).
        models: how many models share the list; ``k8s`` counts an index for each.

    Raises:
        ConfigError: unknown format.
    """
    if fmt == "yaml":
        return "revisions:\n" + "".join(f"  - {_scalar(name)}\n" for name in revisions)
    if fmt == "json":
        return json.dumps(list(revisions)) + "\n"
    if fmt == "lines":
        return "".join(f"{name}\n" for name in revisions)
    if fmt == "k8s":
        return f"completions: {len(revisions) * models}\n"
    raise ConfigError(f"unknown format '{fmt}'; valid: {', '.join(FORMATS)}")


def write_revisions(path: str | Path, revisions: Sequence[str]) -> None:
    """Replace the top-level ``revisions`` of a config file; all else stays, byte for byte.

    Comments inside the replaced list are kept above it. Of several ``revisions`` (appended lists),
    the last is replaced and the others, which had no effect, go. Without one, it is appended.

    Raises:
        ConfigError: no such file, not a YAML mapping, or anchors that this would break. The file
            is unchanged then.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a config file: {error}") from None
    new = replace_revisions(text, revisions, source=str(path))
    _replace_file(path, new)


def replace_revisions(text: str, revisions: Sequence[str], *, source: str) -> str:
    """The text of a config with other ``revisions``; see :func:`write_revisions`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {first_line(error)}; mend it first") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{source}: a config is a mapping of keys, such as 'models: [...]'")
    newline = "\r\n" if "\r\n" in text else "\n"
    pairs = root.value if root is not None else []
    flow = root is not None and bool(root.flow_style)
    spans = [
        (key.start_mark.index, _end(value, text, comment=not flow))
        for key, value in pairs
        if key.value == "revisions"
    ]
    block = render_revisions(revisions, "yaml").replace("\n", newline)
    if flow:
        names = ", ".join(_scalar(name) for name in revisions)
        block = f"revisions: [{names}]"
        if not spans:
            raise ConfigError(f"{source}: no 'revisions' in its {{...}}; write the key there first")
    if not spans:
        gap = "" if not text or text.endswith("\n") else newline
        new = text + gap + block
    else:
        new = text
        for place, (start, end) in reversed(list(enumerate(spans))):
            comments = _COMMENT.findall(text[start:end])
            body = "".join(comment.rstrip() + newline for comment in comments)
            if place == len(spans) - 1:
                body += block.removesuffix(newline)
            else:
                # The span's own line end goes with it.
                end += len(newline) if text.startswith(newline, end) else 0
            new = new[:start] + body + new[end:]
    _check_only_revisions_changed(text, new, revisions, source)
    return new


def _end(node: yaml.Node, text: str, *, comment: bool) -> int:
    """Where a value's text ends, with the comment that follows it on its line if asked.

    PyYAML counts what follows a block list as part of it.
    """
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last, text, comment=comment)
    end: int = node.end_mark.index
    match = re.compile(r"[ \t]*#[^\r\n]*").match(text, end) if comment else None
    return match.end() if match else end


def _check_only_revisions_changed(
    old: str, new: str, revisions: Sequence[str], source: str
) -> None:
    """Read both again: a file with anchors or odd indentation is refused, not broken."""
    try:
        before, after = yaml.safe_load(old) or {}, yaml.safe_load(new)
    except yaml.YAMLError:
        before, after = {}, {}
    same = {**before, "revisions": list(revisions)} == after
    if not same or any(comment not in new for comment in _comments(old)):
        raise ConfigError(
            f"{source}: 'revisions' can't be replaced here without breaking the rest (an anchor, "
            "an alias or odd indentation?); paste the list by hand"
        )


def _comments(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.lstrip().startswith("#")]


def _scalar(name: str) -> str:
    """A name as YAML text; quoted where it would not be read back as text."""
    try:
        # Plain text means other things in a list of lines than in brackets, such as "-".
        plain = all(yaml.safe_load(text) == [name] for text in (f"[{name}]", f"- {name}"))
    except yaml.YAMLError:
        plain = False
    if plain and "#" not in name:
        return name
    quoted: str = yaml.safe_dump(name, default_style='"', width=float("inf"))
    return quoted.strip()


def _replace_file(path: Path, text: str) -> None:
    # Beside the real file, so that a symbolic link stays one and the rename is atomic.
    target = path.resolve()
    try:
        mode = target.stat().st_mode
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, suffix=".tmp", delete=False, encoding="utf-8", newline=""
        ) as file:
            file.write(text)
        temporary = Path(file.name)
        temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error}") from None
