"""Whether the links of a mail lead somewhere, asked without letting anybody look into our own network."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urljoin

import httpcore
import httpx

#: Links looked at in one rehearsal, how long each step of one and how long all may take, and how many at once.
MOST_LINKS = 50
TIMEOUT_SECONDS = 5.0
OVERALL_SECONDS = 30.0
AT_ONCE = 8
MOST_REDIRECTS = 5

#: Addresses that carry an IPv4 address inside, which Python 3.11 takes for global: 6to4 (RFC 3056), NAT64 (RFC 6052).
_TUNNELS = (IPv6Network("2002::/16"), IPv6Network("64:ff9b::/96"))
#: Answers of servers that are there and want no robots, or want to know who asks: the page may well be there.
_RESERVED = frozenset([401, 403, 405, 429])
_AGENT = "Kairos link check"


class PrivateAddress(OSError):
    """A host that lies in a network of our own."""


def check_links(
    urls: Iterable[str],
    *,
    allow_private: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
    overall_seconds: float = OVERALL_SECONDS,
) -> dict[str, str | None]:
    """Why each web address is dead, or None where it answers; each is asked once, and only the first `MOST_LINKS`.

    The others are not in the answer: whoever shows it says how many were not asked.

    HEAD is asked, and GET where a server takes no HEAD or says the page is gone; redirects are followed. Every
    connection goes to an address that was looked up and found public just before, so that neither a redirect nor a
    name that changes its address between two looks leads into our own network.

    Parameters
    ----------
    allow_private : bool
        Lets links lead to this machine and its network, for tests.
    timeout_seconds, overall_seconds : float
        For each step of a link (connecting, each answer), and for all of them together.
    """
    wanted = list(dict.fromkeys(urls))[:MOST_LINKS]
    if not wanted:
        return {}
    pool = httpcore.ConnectionPool(network_backend=_Guarded(allow_private), ssl_context=ssl.create_default_context())
    threads = ThreadPoolExecutor(AT_ONCE)
    asked = [threads.submit(_why_dead, pool, url, timeout_seconds) for url in wanted]
    done, _ = wait(asked, timeout=overall_seconds)
    # Looking up a name has no limit of its own: who is stuck there is left behind, and ends when the resolver does.
    threads.shutdown(wait=False, cancel_futures=True)
    if len(done) == len(asked):
        pool.close()
    late = f"was not answered for within {overall_seconds:g} s"
    return {url: one.result() if one in done else late for url, one in zip(wanted, asked, strict=True)}


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public network.

    Examples
    --------
    >>> [is_public(ip_address(one)) for one in ("1.1.1.1", "10.0.0.1", "::ffff:127.0.0.1", "2002:7f00:1::", "::1")]
    [True, False, False, False, False]
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in tunnel for tunnel in _TUNNELS):
            return False
    return address.is_global and not address.is_multicast


def _why_dead(pool: httpcore.ConnectionPool, url: str, timeout_seconds: float) -> str | None:
    try:
        status = _status(pool, "HEAD", url, timeout_seconds)
        if status >= 400 and status not in _RESERVED:
            status = _status(pool, "GET", url, timeout_seconds)  # some servers know no HEAD and say so in many ways
    except PrivateAddress as error:
        return str(error)
    except (httpcore.TimeoutException, TimeoutError):
        return f"no answer within {timeout_seconds:g} s"
    except socket.gaierror:
        return "its host does not exist"
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
        return f"cannot be reached: {str(error)[:120] or type(error).__name__}"
    except (httpcore.UnsupportedProtocol, httpx.InvalidURL, ValueError) as error:
        return f"is no web address: {str(error)[:120]}"
    return f"answers {status}" if status >= 400 and status not in _RESERVED else None


def _status(pool: httpcore.ConnectionPool, method: str, url: str, timeout_seconds: float) -> int:
    limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout_seconds)
    for _ in range(MOST_REDIRECTS + 1):
        asked = httpx.URL(url)
        headers: dict[str | bytes, str | bytes] = {"Host": asked.netloc.decode(), "User-Agent": _AGENT}
        with pool.stream(method, str(asked), headers=headers, extensions={"timeout": limits}) as answer:
            target = next((value for name, value in answer.headers if name.lower() == b"location"), None)
            if not 300 <= answer.status < 400 or target is None:
                return int(answer.status)
        url = urljoin(str(asked), target.decode("latin-1"))
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"it leads on to {url[:60]!r}")
    raise OSError(f"more than {MOST_REDIRECTS} redirects")


class _Guarded(httpcore.NetworkBackend):
    """Looks a host up, refuses it if any of its addresses is private, and connects to the address that it saw."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of ``host``."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
        if not self._allow_private and not all(is_public(ip_address(one)) for one in addresses):
            raise PrivateAddress("leads into a private network; links are looked at in the public one only")
        return self._plain.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """No link leads to a file of ours."""
        raise PrivateAddress("leads to a socket of this machine")
