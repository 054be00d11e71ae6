"""How a server may be reached, checked before it listens."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
LEAST_TOKEN = 16  # characters
MOST_TOKEN = 1024


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens and what it puts up with.

    Without a token it serves this computer only. Times are seconds.

    Args:
        host: address or name to listen on.
        port: 0 lets the system choose one.
        token: secret that clients must know; None where anybody on this computer may connect.
        certfile: certificate chain (PEM) for TLS; None without TLS.
        keyfile: private key (PEM) of the certificate.
        page: one HTML file shown at `/`; None without. With a page, browsers may connect from it.
        lease_seconds: the controlling client loses its lease after so long without a message.
        max_connections: of clients and watchers that were admitted; more are refused.
        handshake_seconds: for a peer to say who it is.
        ping_seconds: how often a peer is asked whether it lives, and how long it has to answer.
        send_seconds: for a peer to take what it is sent.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = field(default=None, repr=False)
    certfile: Path | None = None
    keyfile: Path | None = None
    page: Path | None = None
    lease_seconds: float = 5.0
    max_connections: int = 128
    handshake_seconds: float = 5.0
    ping_seconds: float = 5.0
    send_seconds: float = 5.0

    def __post_init__(self):
        for name in ("lease_seconds", "handshake_seconds", "ping_seconds", "send_seconds"):
            seconds = getattr(self, name)
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} is {seconds}, it must be a positive number")
        if self.max_connections < 1:
            raise ValueError(f"max_connections is {self.max_connections}, it must be at least 1")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}, it must be 0 (any) to {2**16 - 1}")
        if self.token is not None:
            check_token(self.token)
        elif not self.is_loopback:
            raise ValueError(
                f"host is {self.host!r}, which other computers can reach: give a token "
                f"(token_file=FILE), or host=127.0.0.1 to serve this computer only"
            )
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("TLS needs certfile and keyfile, only one of them is given")
        self.tls()
        if self.page is not None and not self.page.is_file():
            raise ValueError(f"page is {self.page}, which is no file: give one HTML file")

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer can reach the server."""
        return all(ipaddress.ip_address(a[4][0]).is_loopback for a in self._addresses())

    @property
    def host_in_url(self) -> str:
        """The host as addresses hold it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def names(self) -> tuple[str, ...] | None:
        """What the server may be called; None where other computers have names of their own for it.

        A page from elsewhere could else reach it by a name that was bent to point to this computer.
        """
        if not self.is_loopback:
            return None
        return tuple(dict.fromkeys((*LOOPBACK_NAMES, self.host_in_url.lower())))

    def listen(self) -> socket.socket:
        """A socket that listens there.

        Raises:
            OSError: the address cannot be used.
        """
        family, _, _, _, address = self._addresses()[0]
        try:
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            raise OSError(
                f"host={self.host} port={self.port} cannot be listened on ({error.strerror}): "
                f"choose another port, or port=0 for any"
            ) from error

    def tls(self) -> ssl.SSLContext | None:
        """What TLS needs; None without TLS.

        Raises:
            ValueError: the certificate and the key cannot be used.
        """
        if self.certfile is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certfile, self.keyfile, password=self._refuse_passphrase)
        except OSError as error:  # ssl.SSLError is one.
            raise ValueError(
                f"certfile {self.certfile} and keyfile {self.keyfile} cannot be used ({error}): "
                f"give a PEM certificate and its key"
            ) from error
        return context

    def _refuse_passphrase(self) -> str:
        """Called where the key has one; else it would be asked for on the terminal."""
        raise ValueError(
            f"keyfile {self.keyfile} has a passphrase, which nobody may be there to type: "
            f"openssl rsa -in {self.keyfile} -out KEY2, and give keyfile=KEY2"
        )

    def _addresses(self) -> list[tuple]:
        try:
            # "" would be taken for all addresses.
            return socket.getaddrinfo(
                self.host or "0.0.0.0", self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise ValueError(
                f"host is {self.host!r}, which is no address of this computer ({error.strerror})"
            ) from error


def check_token(token: str) -> None:
    """Raise ValueError where a token is too short, too long, or not plain text."""
    if (
        not LEAST_TOKEN <= len(token) <= MOST_TOKEN
        or not token.isascii()
        or not token.isprintable()
    ):
        raise ValueError(
            f"the token has {len(token)} characters, it must have {LEAST_TOKEN} to {MOST_TOKEN}, "
            f"printable ASCII: openssl rand -hex 32 makes one"
        )
