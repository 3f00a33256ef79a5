"""A star router in user space: rate, delay, loss and cut links, which kernels without netem can't do.

    python -m benchmarks.netlab.router HOSTS CONTROL.json        (root)

Each host is a network namespace lowcomm1 ... with a TUN device of 10.78.0.i/24. All packets come here and leave
again at the time that the link model says:

    leave = max(now, sender's line free) + size / rate, then max(that, receiver's line free) + size / rate, + delay

A packet that would wait longer than `queue_ms` for a line is dropped, as by a router with a full buffer; so are one in
1 / `loss` and all on a link in `cut`. CONTROL.json is read again when it changes:
{"rate_mbit": 1000, "delay_ms": 25, "loss": 0.0, "queue_ms": 200, "cut": [[1, 2]]}. `delay_ms` is one way.

Packets are as large as a line carries in PACKET_MS, for Python to keep up with a fast one, and no smaller than
Ethernet's: 65 kB would hold a line of 0.75 Mbit/s for 0.7 s, and TCP took that for losses.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x0001 | 0x1000
PACKET_MS = 2.0
SMALLEST_MTU_BYTES, LARGEST_MTU_BYTES = 1500, 65000


def mtu_bytes(rate_mbit: float | None) -> int:
    """Of a line of that speed each way (None, 0: unlimited)."""
    fits = LARGEST_MTU_BYTES if not rate_mbit else int(rate_mbit * 1e3 / 8 * PACKET_MS)
    return max(SMALLEST_MTU_BYTES, min(fits, LARGEST_MTU_BYTES))


def open_host(number: int) -> int:
    """Make namespace and TUN device of host `number`; returns the device's descriptor."""
    name, device = f"lowcomm{number}", f"lowcommt{number}"
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH14s", device.encode(), _TUN_WITHOUT_HEADER, b""))
    for command in (
        f"netns add {name}",
        f"link set {device} netns {name}",
        f"-n {name} link set {device} name tun0 mtu {LARGEST_MTU_BYTES} txqueuelen 64",
        f"-n {name} addr add 10.78.0.{number}/24 dev tun0",
        f"-n {name} link set lo up",
        f"-n {name} link set tun0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return descriptor


class Router:
    """The link model and the packets that are under way."""

    def __init__(self, hosts: int, control: Path) -> None:
        self.control, self.settings, self.changed_ns = control, dict[str, Any](), 0
        self.numbers = {open_host(i): i for i in range(1, hosts + 1)}
        self.descriptors = {number: fd for fd, number in self.numbers.items()}
        self.mtu_bytes = LARGEST_MTU_BYTES
        self.out_free_s = dict.fromkeys(self.descriptors, 0.0)
        self.in_free_s = dict.fromkeys(self.descriptors, 0.0)
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.order = itertools.count()
        self.poll = select.epoll()
        for descriptor in self.numbers:
            self.poll.register(descriptor, select.EPOLLIN)

    def run(self) -> None:
        """Until killed."""
        looked_s = 0.0
        while True:
            now = time.monotonic()
            if now - looked_s > 0.05:
                looked_s = now
                self.read_settings()
            wait = min(0.05, self.waiting[0][0] - now) if self.waiting else 0.05
            for descriptor, _ in self.poll.poll(max(0.0, wait)):
                self.take(descriptor)
            self.deliver()

    def read_settings(self) -> None:
        changed = self.control.stat().st_mtime_ns
        if changed != self.changed_ns:
            self.settings, self.changed_ns = json.loads(self.control.read_text(encoding="utf-8")), changed
            size = mtu_bytes(self.settings.get("rate_mbit"))
            if size != self.mtu_bytes:
                self.mtu_bytes = size
                for number in self.descriptors:
                    subprocess.run(["ip", "-n", f"lowcomm{number}", *f"link set tun0 mtu {size}".split()], check=True)

    def take(self, descriptor: int) -> None:
        """Read up to 64 packets of one host."""
        for _ in range(64):
            try:
                packet = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            if packet[0] >> 4 == 4 and packet[19] in self.descriptors:
                self.schedule(self.numbers[descriptor], packet[19], packet)

    def schedule(self, sender: int, receiver: int, packet: bytes) -> None:
        """When the packet arrives, if it does."""
        s = self.settings
        cut = any({sender, receiver} == set(pair) for pair in s.get("cut", []))
        if cut or (s.get("loss", 0) and random.random() < s["loss"]):
            return
        now = time.monotonic()
        at, rate = now, s.get("rate_mbit") or 0
        for lines, host in ((self.out_free_s, sender), (self.in_free_s, receiver)):
            if rate:
                free = max(at, lines[host])
                if free - at > s.get("queue_ms", 200) / 1e3:
                    return
                at = lines[host] = free + len(packet) * 8 / (rate * 1e6)
        at += s.get("delay_ms", 0) / 1e3
        heapq.heappush(self.waiting, (at, next(self.order), self.descriptors[receiver], packet))

    def deliver(self) -> None:
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            _, _, descriptor, packet = heapq.heappop(self.waiting)
            try:
                os.write(descriptor, packet)
            except OSError:  # the host's own queue is full: a drop, as on any line
                continue


if __name__ == "__main__":
    router = Router(int(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    router.run()
