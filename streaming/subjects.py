"""For whom somebody calls: an application names its end user with each call, in a header, in the address, or in the body.

A key is a person's or an application's (`baton keys create --application`). A person's has one subject, whatever a call
names: what is sent as OpenAI's `user` or `safety_identifier` changes nothing there. An application's call is of the end user
that it names; one that names nobody is of nobody else, and has its own session only. Whoever takes an id from outside asks
with the owner that is made here.
"""

from typing import Final

from starlette.requests import HTTPConnection

from models.errors import BadInput
from models.owner import Owner, subject_of
from streaming.auth import Caller

HEADERS: Final = ("Baton-Subject", "OpenAI-Safety-Identifier")
FIELDS: Final = ("safety_identifier", "user")
"""Of an address, as of a body. The first is what OpenAI has in place of the second; where a body has both, it is the one."""


def whose(connection: HTTPConnection, *, safety_identifier: str | None = None, user: str | None = None) -> Owner:
    """Return whose a call is.

    Args:
        connection: the call, which the gate has let in.
        safety_identifier: what its body names, if it has one.
        user: likewise.

    Raises:
        BadInput: an application names nobody that it can name, or two.
    """
    caller: Caller = connection.state.caller
    if caller.key is None or caller.key.kind == "personal":
        return Owner(caller.tenant)
    in_body = ("safety_identifier", safety_identifier) if safety_identifier else ("user", user)
    subject: str | None = None
    for field, sent in (*_outside(connection), in_body):
        named = subject_of(sent, field)
        if named is not None and subject not in {None, named}:
            raise BadInput("The call names somebody else, too. Name one end user.", field=field)
        subject = named or subject
    return Owner.unnamed(caller.tenant) if subject is None else Owner(caller.tenant, subject)


def _outside(connection: HTTPConnection) -> list[tuple[str, str]]:
    """Return who is named outside the body, and where."""
    headers = [(name, _text(sent, name)) for name in HEADERS for sent in connection.headers.getlist(name)]
    return headers + [(name, sent) for name in FIELDS for sent in connection.query_params.getlist(name)]


def _text(sent: str, field: str) -> str:
    try:
        return sent.encode("latin-1").decode()  # headers are bytes, and names are UTF-8 wherever else they are sent
    except UnicodeDecodeError as exc:
        raise BadInput("It has to be UTF-8.", field=field) from exc
