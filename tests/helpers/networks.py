"""Two machines that are network namespaces of this one, each with memory files and a Ray of its own, and the cable
between them, which loses packets or is cut. Nothing outside is touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

PORT = 6379
RAY = Path(sys.executable).with_name("ray")
_NEEDED = ("ip", "nft", "nsenter", "unshare")


class Host:
    """Where `run` runs its commands: with a network, /dev/shm and /tmp/ray that no other process has."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._process = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && "
             "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo there && exec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        self.told = self._process.stdout.readline().strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def within(self) -> list[str]:
        """Words before a command that is to run here."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", f"--wd={Path.cwd()}"]

    def run(self, *command: str, given: str | None = None) -> None:
        done = subprocess.run([*self.within, *command], input=given, text=True, capture_output=True, check=False)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")

    def drop(self, percent: float) -> None:
        """Of all packets that come in by the cable, at random; 100: all of them."""
        chance = "" if percent >= 100 else f"numgen random mod 1000 < {round(percent * 10)} "
        rules = f"iifname \"cable\" {chance}drop" if percent else ""
        self.run("nft", "-f", "-", given=f"""table inet cable
delete table inet cable
table inet cable {{
  chain in {{
    type filter hook input priority 0
    {rules}
  }}
}}
""")

    def ray(self, *options: str) -> None:
        """A node of Ray's, until `close`."""
        self.run(str(RAY), "start", f"--node-ip-address={self.address}", "--disable-usage-stats",
                 "--object-store-memory=200000000", *options)

    def close(self) -> None:
        """Ends whatever runs here."""
        mine = Path(f"/proc/{self.pid}/ns/net").readlink()
        ended = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.pid and Path(f"/proc/{process.pid}/ns/net").readlink() == mine:
                    process.kill()
                    ended.append(process)
            except (OSError, psutil.Error):
                continue
        psutil.wait_procs(ended, timeout=20)
        self._process.kill()
        self._process.wait()


class Hosts:
    """`first` has the head of a Ray cluster, `second` another node."""

    def __init__(self, first: Host, second: Host) -> None:
        self.first, self.second = first, second

    @property
    def address(self) -> str:
        return f"{self.first.address}:{PORT}"

    def lose_packets(self, percent: float) -> None:
        """In both directions; 100 cuts the cable, and nobody is told."""
        for host in (self.first, self.second):
            host.drop(percent)


@contextmanager
def two_hosts(first_cpus: float, second_cpus: float) -> Iterator[Hosts]:
    """Skips the test where this machine lets nobody make them."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (packages iproute2, nftables and util-linux)")
    made: list[Host] = []
    try:
        for number in (1, 2):
            made.append(Host(f"10.213.7.{number}"))
            if made[-1].told != "there":
                pytest.skip(f"needs the right to make network and mount namespaces: {made[-1].told}")
        try:
            _connect(*made)
        except OSError as error:
            pytest.skip(f"needs veth devices and nftables with random numbers in the kernel: {error}")
        hosts = Hosts(*made)
        hosts.first.ray("--head", f"--port={PORT}", f"--num-cpus={first_cpus}", "--include-dashboard=false",
                        "--labels=pool=first")
        hosts.second.ray(f"--address={hosts.address}", f"--num-cpus={second_cpus}", "--labels=pool=second")
        time.sleep(2)
        yield hosts
    finally:
        for host in made:
            host.close()


def _connect(first: Host, second: Host) -> None:
    first.run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(second.pid))
    for host in (first, second):
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "cable")
        host.run("ip", "link", "set", "cable", "up")
        host.run("ip", "route", "add", "default", "dev", "cable")
        host.drop(50)
        host.drop(0)
