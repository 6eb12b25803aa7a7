"""Regular expressions that a grammar can hold, in the stead of others."""

from typing import Any

from models.language.forms.apart import SAYING
from models.language.forms.formats import FORMATS


def pattern_of_names(names: dict[str, Any]) -> str | None:
    """Return the expression that says what a schema of names says, if one does."""
    said = names.keys() & SAYING - {"type"}
    pattern, form = names.get("pattern"), FORMATS.get(str(names.get("format")))
    if said == {"pattern"} and isinstance(pattern, str):
        return pattern
    if said == {"format"} and form is not None:
        return f"^(?:{form})$"
    least, most = names.get("minLength", 0), names.get("maxLength")
    if said <= {"minLength", "maxLength"} and type(least) is int and (most is None or type(most) is int):
        return rf"^[\s\S]{{{least},{'' if most is None else most}}}$"
    return None


def without_look_ahead(pattern: str) -> list[str]:
    """Return patterns that together say what one with positive look-ahead at its beginning says: `^(?=a)b` is `^a` and `^b`."""
    parts: list[str] = []
    rest = pattern.removeprefix("^")
    while rest != pattern and rest.startswith("(?="):
        end = _closing(rest)
        if end is None:
            return [pattern]
        parts.append(f"^(?:{rest[3:end]})")
        rest = rest[end + 1 :]
    return [*parts, f"^{rest}"] if parts and not _has_choice(rest) else [pattern]


def _has_choice(pattern: str) -> bool:
    """Return whether `pattern` is several, of which one has to match; to be sure, also if it only looks so."""
    return "|" in pattern


def _closing(pattern: str) -> int | None:
    """Return where the group that `pattern` begins with is closed."""
    depth, at, listed = 0, 0, False
    while at < len(pattern):
        match pattern[at]:
            case "\\":
                at += 1
            case "[" if not listed:
                listed = True
            case "]":
                listed = False
            case "(" if not listed:
                depth += 1
            case ")" if not listed:
                depth -= 1
                if depth == 0:
                    return at
            case _:
                pass
        at += 1
    return None
