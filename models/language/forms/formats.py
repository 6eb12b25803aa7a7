"""Formats of strings as regular expressions, so that a grammar holds them exactly.

Each admits only what is of the format, and all of it that people write: what would need more than an expression, such as
names in punycode, is left out, and so are years before 1000. Formats that are not here are annotations, as JSON Schema
2020-12, section 7.2.1, has it.
"""

from collections.abc import Mapping
from types import MappingProxyType

_LEAP = r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_LEAP}-02-29|[1-9]\d{{3}}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8])))"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"

_N = r"\d{1,4}"
_DAYS = rf"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_CLOCK = rf"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"

_LABEL = r"[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"

_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"

_HEX = r"[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [
        rf"(?:{_HEX}:){{7}}{_HEX}",
        rf"(?:{_HEX}:){{1,7}}:",
        *(rf"(?:{_HEX}:){{1,{n}}}(?::{_HEX}){{1,{7 - n}}}" for n in range(6, 0, -1)),
        rf":(?::{_HEX}){{1,7}}",
        "::",
    ]
)

_SAFE = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
# A host whose last label were a number would be an address, and mostly a wrong one (WHATWG, "host parsing").
_HOST = rf"(?:{_IPV4}|(?:{_LABEL}\.){{0,4}}[A-Za-z]{{2,20}})"
_TAIL = rf"(?:/{_SAFE}{{0,500}})?(?:\?(?:{_SAFE}|\?){{0,500}})?(?:#(?:{_SAFE}|\?){{0,200}})?"
_URI = (
    rf"(?:[A-Za-z][A-Za-z0-9+.-]{{0,15}}://{_HOST}(?::[1-9]\d{{0,3}})?{_TAIL}|(?:mailto|urn|tel|data):{_SAFE}{{1,500}})"
)

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "date": _DATE,
        "date-time": rf"{_DATE}T{_TIME}",
        "time": _TIME,
        "duration": rf"P(?:{_N}W|{_DAYS}(?:{_CLOCK})?|{_CLOCK})",
        # At most 62 characters before the sign, and names that have a dot in them.
        "email": rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@(?:{_LABEL}\.){{1,3}}[A-Za-z]{{2,20}}",
        "hostname": rf"(?:{_LABEL}\.){{0,3}}{_LABEL}",
        "ipv4": _IPV4,
        "ipv6": _IPV6,
        "uuid": r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
        "uri": _URI,
        "json-pointer": r"(?:/(?:[^~/]|~[01])*)*",
    }
)
"""Expressions that match the whole of a string, without anchors, by the name of the format."""
