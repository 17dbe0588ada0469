"""Whether a server listens to this machine alone."""

import socket


def assert_heard_here_alone(port: int) -> None:
    """No address of this machine but its own loopback has somebody who listens at the port."""
    outside = [a for a in socket.gethostbyname_ex(socket.gethostname())[2] if not a.startswith("127.")]
    for address in outside:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) != 0
