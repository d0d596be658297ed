"""Sockets: those that a server listens at, bound before anything slow is loaded.

In: a host and a port. Out: a socket for each of the host's addresses. Knows no server.
"""

import errno
import socket

from foreword.errors import InputError
from foreword.os_calls import take_port_again


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that are bound to a host's addresses, one for each; port 0 takes a free one.

    Raises:
        InputError: the port is taken or not allowed, or there is no such host.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            take_port_again(one)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            try:
                one.bind((address[0], taken, *address[2:]))
            except OSError as error:
                # A host's name may stand for an address that this machine does not have now.
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                sockets.remove(one)
                one.close()
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no such address on this machine")
    except (OSError, ValueError) as error:  # a name that is none at all is a ValueError
        for one in sockets:
            one.close()
        raise not_free(host, port, error) from error
    return sockets


def not_free(host: str, port: int, error: OSError | ValueError) -> InputError:
    """Return the error of an address that cannot be listened at."""
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot listen at {host}:{port} ({reason}): see --host and --port")
