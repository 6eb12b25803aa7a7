"""Places in a schema: JSON Pointers (RFC 6901), and what they lead to."""

from urllib.parse import unquote

SchemaPath = tuple[str, ...]
"""The steps to a place in a schema."""


def pointer_of(path: SchemaPath) -> str:
    """Return a path as a JSON Pointer."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)


def steps(pointer: str) -> SchemaPath:
    """Return a JSON Pointer, perhaps of a URI's fragment, as a path."""
    return tuple(_unescaped(step) for step in pointer.split("/")[1:])


def _unescaped(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")


def resolve(root: object, path: SchemaPath) -> object:
    """Return what is at a path; None if nothing is."""
    node = root
    for step in path:
        if isinstance(node, dict) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node
