"""Which hosts and addresses are of the public internet: the rule behind fetching what a client names.

Own tables rather than ``ipaddress``'s ``is_global``, whose answer for several ranges changes between
Python versions.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address

# IANA IPv4 Special-Purpose Address Registry (RFC 6890), multicast and what is reserved.
_REFUSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; many systems take 0.0.0.0 for themselves
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local: cloud metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
# A cloud's own services on addresses that look public.
_REFUSED_IPV4 += (IPv4Network("168.63.129.16/32"),)

# All else of IPv6 (loopback, link-local, site-local, unique-local, multicast ...) is not given out.
_GIVEN_OUT_IPV6 = IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: another's IPv4 address inside
        "2620:4f:8000::/48",
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def is_public(address: IPAddress) -> bool:
    """Whether an address is a host's of the public internet.

    An IPv4 address within an IPv6 one (mapped, NAT64, ISATAP) counts as itself. A NAT64 prefix of the
    operator's own choice cannot be known here.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    if address.scope_id is not None:
        return False
    last_32_bits = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return is_public(last_32_bits)
    if address not in _GIVEN_OUT_IPV6 or any(address in network for network in _REFUSED_IPV6):
        return False
    is_isatap = (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE  # RFC 5214: [02]00:5efe before the address
    return not is_isatap or is_public(last_32_bits)


def parse_host(text: str) -> str | IPAddress:
    """The one meaning of a URL's host: an address in any notation, or a name in lower-case ASCII.

    What is an address to any resolver (``127.1``, ``0x7f000001``, ``0177.0.0.1``, full-width digits) is
    an address here, so that no two readers of a host can take it for two.

    Args:
        text: as in a URL; IPv6 in brackets.

    Raises:
        ValueError: neither.
    """
    if text.startswith("["):
        if not text.endswith("]") or "%" in text:
            raise ValueError("no IPv6 address without a zone")
        return IPv6Address(text[1:-1])
    # The codec does what browsers do first: full-width digits and dots become plain ones.
    host = text if text.isascii() else text.encode("idna").decode("ascii")
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):  # WHATWG URL: a host that ends in a number is an address
        return _parse_ipv4(labels)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("no host name")
    return host


def _parse_ipv4(parts: list[str]) -> IPv4Address:
    """As inet_aton reads it: one to four numbers, decimal, octal or hexadecimal; the last fills the rest."""
    if len(parts) > 4:
        raise ValueError("more than four numbers")
    numbers = [_parse_number(part) for part in parts]
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise ValueError("a number too large")
    value = numbers[-1] + sum(number << 8 * (3 - place) for place, number in enumerate(numbers[:-1]))
    return IPv4Address(value)


def _parse_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,16}|0x[0-9a-f]{0,16}", text):
        raise ValueError("no number")
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") else 10)
