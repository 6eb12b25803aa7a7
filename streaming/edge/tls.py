"""TLS of the server's own: a certificate and its key, as files."""

import ssl
from pathlib import Path

from models.errors import BadInput


def tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return how to speak TLS with a certificate, its chain behind it, and its key, in PEM; None if neither is given.

    Raises:
        BadInput: one is given without the other, or they cannot be read, or do not belong together.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise BadInput("--tls-cert and --tls-key go together: name both.")
    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as exc:
            raise BadInput(f"{path} cannot be read: {exc.strerror}.") from exc
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password could not be asked for where there is no terminal.
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as exc:
        raise BadInput(
            f"{cert} and {key} are no certificate in PEM with its key, without a password: {exc.reason or exc}."
        ) from exc
    return context


def _no_password() -> str:
    return ""
