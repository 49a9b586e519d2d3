"""Machines and services of `cluster_faults.py`: Linux namespaces on this machine, and processes that are restarted.

A machine has its own network, processes and host name, so that its link can be cut and a Ray node sees only itself.
That needs root; without it all services share this machine, and no link can be cut.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

RESTART_SECONDS = 1.0
# The first process of a machine: it sleeps, and the kernel removes its ended children.
ANCHOR = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    signal.pause()
"""


class Network:
    """A virtual switch, 10.x.0.0/24; this machine is 10.x.0.1. Without `isolated` it is the loopback interface."""

    def __init__(self, *, isolated):
        self.isolated = isolated
        self.machines = []
        number = 100 + os.getpid() % 100
        self.prefix, self.switch = f"10.{number}.0", f"kinema{number}"
        if isolated:
            run("ip", "link", "add", self.switch, "type", "bridge")
            run("ip", "address", "add", f"{self.prefix}.1/24", "dev", self.switch)
            run("ip", "link", "set", self.switch, "up")

    def machine(self, name, number):
        machine = Machine(self, name, number)
        self.machines.append(machine)
        return machine

    def close(self):
        for machine in self.machines:
            machine.close()
        if self.isolated:
            run("ip", "link", "delete", self.switch)


def is_isolation_possible():
    """Return whether this machine allows network and process namespaces."""
    command = ["unshare", "--net", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "ip", "link"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Machine:
    """A machine with an address of its own."""

    def __init__(self, network, name, number):
        self.name = name
        self._network = network
        self._anchor = None
        self.address, self.enter = "127.0.0.1", []
        if network.isolated:
            self.address = f"{network.prefix}.{number}"
            self._link = f"{network.switch}-{number}"
            self._start()

    def _start(self):
        flags = ["--net", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child"]
        self._anchor = subprocess.Popen(["unshare", *flags, sys.executable, "-S", "-c", ANCHOR], start_new_session=True)
        deadline = time.monotonic() + 10
        while not (children := psutil.Process(self._anchor.pid).children()):
            assert time.monotonic() < deadline, "unshare started no process"
            time.sleep(0.05)
        self.enter = ["nsenter", f"--target={children[0].pid}", "--net", "--pid", "--uts", "--mount", "--"]
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(children[0].pid))
        run("ip", "link", "set", self._link, "up", "master", self._network.switch)
        run(*self.enter, "ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run(*self.enter, "ip", "link", "set", device, "up")
        run(*self.enter, "hostname", self.name)
        # No name server is reachable, and each program would wait for one.
        run(*self.enter, "mount", "--bind", "/dev/null", "/etc/resolv.conf")
        hosts = f"127.0.0.1 localhost\\n{self.address} {self.name}\\n"
        script = f"mount -t tmpfs none /mnt && printf '{hosts}' > /mnt/hosts && mount --bind /mnt/hosts /etc/hosts"
        run(*self.enter, "sh", "-c", script)

    def own_folder(self, path):
        """Let the machine see an empty folder of its own at a path."""
        if self.enter:
            own = path.with_name(f"{path.name}-{self.name}")
            own.mkdir()
            run(*self.enter, "mount", "--bind", str(own), str(path))

    def cut(self):
        """Cut its link: packets are lost, without any notice to either side."""
        run("ip", "link", "set", self._link, "nomaster")

    def join(self):
        """Restore its link."""
        run("ip", "link", "set", self._link, "master", self._network.switch)

    def close(self):
        """End the machine with all its processes."""
        if self._anchor is not None:
            self._anchor.kill()
            self._anchor.wait()


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Service:
    """A program on a machine. An operator restarts it when it has ended, as Kubernetes or systemd would.

    Args:
        is_container: Whether the end of the first process ends all others. False leaves that to the program.
    """

    def __init__(self, machine, name, command, environment, logs, *, is_container=True):
        self.machine, self.name = machine, name
        self.restarts = -1
        self._command = [*machine.enter, *command]
        self._environment, self._log = os.environ | environment, Path(logs) / f"{name}.log"
        self._is_container = is_container
        self._seen = []
        self.process = None

    def start(self):
        for process in self._seen if self._is_container else ():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.restarts += 1

    def tree(self):
        """Return its processes, the first first."""
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self.process.pid)
            self._seen = [first, *first.children(recursive=True)]
            return self._seen
        return []

    @property
    def program(self):
        """The process of the command itself: nsenter starts it as a child."""
        return self.tree()[1 if self.machine.enter else 0]

    def kill(self):
        signal_all(self.tree(), signal.SIGKILL)

    @property
    def is_running(self):
        return self.process is not None and self.process.poll() is None


class Operator:
    """Restarts services that have ended."""

    def __init__(self, services):
        self.services = services
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        self._stopping.set()
        self._thread.join()

    def _run(self):
        while not self._stopping.wait(RESTART_SECONDS):
            for service in self.services:
                if service.is_running:
                    service.tree()
                elif not self._stopping.is_set():
                    service.start()


def signal_all(processes, number):
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def wake(processes):
    """Continue stopped processes. nsenter stops again if it sees that its child has stopped, so this is repeated."""
    for _ in range(10):
        signal_all(reversed(processes), signal.SIGCONT)
        time.sleep(0.1)
