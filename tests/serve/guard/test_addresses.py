"""What counts as the public internet."""

from ipaddress import ip_address

import pytest
from serve.forbidden_urls import INNER, LOOPBACK

from raycap.serve.guard.addresses import is_public, parse_host


@pytest.mark.parametrize("host", [*LOOPBACK, *INNER], ids=ascii)
def test_no_notation_of_an_inner_address_passes(host):
    try:
        parsed = parse_host(host)
    except ValueError:
        return
    assert not isinstance(parsed, str), "a resolver might take it for an address"
    assert not is_public(parsed)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "223.255.255.255"),
        *("2a00:1450:4001::1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2a00::5efe:8.8.8.8"),
    ],
)
def test_public_addresses_pass(address):
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("a_b.example.org", "a_b.example.org"),
        ("m\u00fcnchen.de", "xn--mnchen-3ya.de"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("3com.com", "3com.com"),
        ("0x7f.example.org", "0x7f.example.org"),
        ("8.8.8.8", "8.8.8.8"),
        ("134744072", "8.8.8.8"),
        ("010.8.010.8", "8.8.8.8"),
        ("[2A00::1]", "2a00::1"),
    ],
)
def test_a_host_has_one_meaning(text, host):
    assert str(parse_host(text)) == host
