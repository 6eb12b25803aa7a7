"""A bound that tenants share, of which no one tenant can take all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import Overloaded


def share_of(most: int) -> int:
    """Return how much of a shared bound one tenant may take, unless it is said otherwise: nine tenths.

    One that is alone hardly misses the rest; to others it is room enough to be served in.
    """
    return max(1, most * 9 // 10)


class Shares:
    """Counts what is in use, in all and of each tenant."""

    def __init__(self, most: int, of_one: int | None, *, what: str, code: str) -> None:
        """Bound what is in use.

        Args:
            most: in all; beyond it the server is overloaded.
            of_one: of one tenant, by default its `share_of` all; beyond it that tenant is told so.
            what: it is, and does: "websockets are open".
            code: of the error that says that a tenant has its share.
        """
        self._most = most
        self._of_one = min(of_one or share_of(most), most)
        self._what = what
        self._code = code
        self._used: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how much is in use in all."""
        return self._used.total()

    def enter(self, tenant: str) -> None:
        """Count one more of a tenant; `leave` has to follow.

        Raises:
            Overloaded: the tenant has its share, or all is in use.
        """
        if len(self) >= self._most:
            raise Overloaded(f"{self._most} {self._what}, the most this server takes. Try again later.")
        if self._used[tenant] >= self._of_one:
            raise Overloaded(
                f"{self._of_one} {self._what} of yours, the most you may have at a time. Wait for one to end.",
                code=self._code,
            )
        self._used[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count one of a tenant no more."""
        self._used[tenant] -= 1
        if self._used[tenant] <= 0:
            del self._used[tenant]

    @contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """Count one of a tenant for the length of a block; raises as `enter` does."""
        self.enter(tenant)
        try:
            yield
        finally:
            self.leave(tenant)
