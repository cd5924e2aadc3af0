"""A network that no other process sees, with an address for each node of a cluster: nodes of one address Ray takes for
one, and on an address of the machine's own network others could reach them."""

import os
import shutil
import subprocess
import sys

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_INSIDE = "RAYCAP_INSIDE_PRIVATE_NETWORK"


def prefixed(*program: str) -> list[str]:
    """The command that runs a program inside of one."""
    addresses = " && ".join(f"ip address add {address}/32 dev lo" for address in ADDRESSES)
    script = f'ip link set lo up && {addresses} && exec "$@"'
    return ["unshare", "--map-root-user", "--net", "sh", "-c", script, "sh", *program]


def unavailable() -> str | None:
    """Why there can be none on this machine."""
    missing = [program for program in ("unshare", "ip") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install util-linux and iproute2"
    tried = subprocess.run(prefixed("true"), capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"namespaces of networks are not allowed here: {tried.stderr.strip()}"


def enter() -> None:
    """Start this program again inside of one, with its arguments; inside, go on.

    Raises:
        SystemExit: there can be none.
    """
    if os.environ.get(_INSIDE):
        return
    reason = unavailable()
    if reason is not None:
        sys.exit(f"error: two nodes need a network of their own: {reason}")
    command = prefixed(sys.executable, *sys.argv)
    os.execvpe(command[0], command, os.environ | {_INSIDE: "1"})
