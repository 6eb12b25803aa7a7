"""Whose something is: a tenant's, and below it one end user's."""

from dataclasses import dataclass, replace
from typing import Final

from models.errors import BadInput

MOST_CHARACTERS: Final = 128
"""Of a subject that a caller names; as many as its column has room for."""

_NOBODY: Final = "*"


@dataclass(frozen=True, slots=True)
class Owner:
    """What decides what is seen: equal owners share sessions, files, caches and drafts, others nothing.

    Bounds that tenants share (`models.shares`) are by tenant alone: who speaks for many has no more of them for it.

    Attributes:
        tenant: who holds the key.
        subject: the end user for whom the tenant speaks, by a name of the tenant's; None is the tenant itself. Nobody is named
            like one that begins with `*`: that is a session, or a call, of nobody whom its application has named.
    """

    tenant: str
    subject: str | None = None

    @classmethod
    def of(cls, whose: "Owner | str") -> "Owner":
        """Return an owner; the name of a tenant, where only a tenant is known, stands for the tenant itself."""
        return cls(whose) if isinstance(whose, str) else whose

    @classmethod
    def unnamed(cls, tenant: str) -> "Owner":
        """Return who calls by an application's key without saying for whom. Only `within` a session anything is theirs."""
        return cls(tenant, _NOBODY)

    def within(self, place_id: str) -> "Owner":
        """Return whose the session, or the call, of this id is when it is theirs: of those who are unnamed, its own."""
        return replace(self, subject=_NOBODY + place_id) if self.subject == _NOBODY else self

    def is_of(self, tenant: str, subject: str | None) -> bool:
        """Return whether it is that subject of the tenant, or, if None is named, the tenant or any subject of it."""
        return self.tenant == tenant and subject in {None, self.subject}

    def moved(self, place_id: str) -> "Owner":
        """Return whose another session is that begins with one of this owner's: of those who are unnamed, again its own."""
        return self if self.name == self.subject else replace(self, subject=_NOBODY + place_id)

    @property
    def name(self) -> str | None:
        """What the tenant calls the subject; None if it has no name."""
        return None if self.subject is None or self.subject.startswith(_NOBODY) else self.subject


def subject_of(named: str | None, field: str) -> str | None:
    """Return a subject as a caller named it in `field`; an empty name is none.

    Raises:
        BadInput: it is too long, begins with `*` or with a space, ends with one, or has a character that cannot be printed.
    """
    if not named:
        return None
    if len(named) > MOST_CHARACTERS:
        raise BadInput(
            f"It may have {MOST_CHARACTERS} characters, and has {len(named)}. Send a digest of the user's name.",
            field=field,
        )
    if not named.isprintable() or named.strip() != named or named.startswith(_NOBODY):
        raise BadInput(
            f"It may have printable characters only, no space at either end, and no {_NOBODY!r} at the beginning.",
            field=field,
        )
    return named
