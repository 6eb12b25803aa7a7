"""The model hub, asked in a process of its own: `python -m models.supply.hub reach|list|fetch …`.

```
reach                                     connects to the hub, or to the proxy before it, within 3 s
list REPOSITORY REVISION                  prints a `Listing` as JSON
fetch REPOSITORY REVISION FOLDER PATH…    writes the files under FOLDER, each at its path
```

Ending its process is the only way to end a download at any moment; and the gateway need not load the hub's client.
On an error, one line explains it, and the status is 1. Where the hub is and who asks, that client takes from the
environment as it always does: `HF_ENDPOINT`, `HF_TOKEN`.
"""

import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Sequence
from urllib.parse import urlsplit

from pydantic import BaseModel

_CONNECT_S = 3.0


class RemoteFile(BaseModel):
    """A file of a repository, and what the hub says that it is.

    Attributes:
        path: where it is in the repository.
        size_bytes: how long it is.
        sha256: of its content; the hub knows it of large files.
        blob_id: the name that git gives its content, which holds for the others.
    """

    path: str
    size_bytes: int | None
    sha256: str | None
    blob_id: str | None


class Listing(BaseModel):
    """What a repository holds at a commit."""

    commit: str
    files: list[RemoteFile]


def main(arguments: Sequence[str]) -> int:
    """Do what `arguments` say, and return the exit status."""
    if arguments[0] == "reach":
        return 0 if _is_reached() else _explain("the hub does not answer")
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    command, repository, revision, *rest = arguments
    try:
        if command == "list":
            sys.stdout.write(_list(repository, revision).model_dump_json())
        else:
            _fetch(repository, revision, *rest)
    except GatedRepoError:
        return _explain(
            f"{repository} asks for consent: accept its terms on its page, and set HF_TOKEN to a token of yours."
        )
    except RepositoryNotFoundError:
        return _explain(
            f"the hub has no repository {repository}, or keeps it private. Check the name, or set HF_TOKEN."
        )
    except RevisionNotFoundError:
        return _explain(f"{repository} has no revision {revision}. Name a commit, a tag or a branch that it has.")
    except HfHubHTTPError as exc:
        return _explain(f"the hub refused: {' '.join(str(exc).split())}")
    return 0


def _is_reached() -> bool:
    """Return whether there is a connection within `_CONNECT_S`, of which finding the address is a part."""
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = urllib.request.getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    place = urlsplit(proxy) if proxy and not urllib.request.proxy_bypass(hub.hostname or "") else hub
    port = place.port or {"https": 443, "http": 80}.get(place.scheme, 1080)
    reached: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((place.hostname or "", port), _CONNECT_S).close()
        except OSError:
            return
        reached.append(True)

    trial = threading.Thread(target=connect, daemon=True)
    trial.start()
    trial.join(_CONNECT_S)
    return bool(reached)


def _list(repository: str, revision: str) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    return Listing(
        commit=info.sha or revision,
        files=[
            RemoteFile(
                path=file.rfilename,
                size_bytes=file.size,
                sha256=file.lfs.sha256 if file.lfs is not None else None,
                blob_id=file.blob_id,
            )
            for file in info.siblings or ()
        ],
    )


def _fetch(repository: str, commit: str, folder: str, *paths: str) -> None:
    from huggingface_hub import hf_hub_download

    for path in paths:
        hf_hub_download(repository, path, revision=commit, local_dir=folder)


def _explain(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
