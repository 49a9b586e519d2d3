"""Disturb a cluster at random moments, and check that no job is lost or doubled: python cluster_faults.py --out FILE.

Each fault is one of kill -9, SIGSTOP for 20 seconds and a cut link for 20 seconds, of one part of the system. What ends
is restarted after a second. A client submits jobs of 2 to 3 seconds all the time and watches them. 40 faults, as in
`make faults-cluster`, take at most 30 minutes.
"""

import argparse
import datetime
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from fault_load import Load, persist
from fault_machines import is_isolation_possible, signal_all, wake
from fault_system import NODES, System, versions

DISTURBED_SECONDS = 20
# The system must have recovered so long after the end of a disturbance.
LIMIT_SECONDS = 120
START_SECONDS = 300
TARGETS = {
    "kill": ("worker process", "actor", "node", "head", "bridge", "front end", "database"),
    "freeze": ("worker process", "actor", "node", "head", "bridge", "front end", "database"),
    "cut": ("node", "head", "front end", "database"),
}


class Fault:
    """One kind of disturbance of one part."""

    def __init__(self, system, kind, target, chance):
        self._system, self._kind, self._target, self._chance = system, kind, target, chance

    def apply(self):
        """Disturb the part, and end the disturbance after DISTURBED_SECONDS if it is not a kill."""
        if self._kind == "cut":
            machine = self._service().machine
            machine.cut()
            time.sleep(DISTURBED_SECONDS)
            machine.join()
            return
        victims = self._victims()
        if self._kind == "kill":
            signal_all(victims, signal.SIGKILL)
            return
        signal_all(victims, signal.SIGSTOP)
        time.sleep(DISTURBED_SECONDS)
        wake(victims)

    def _service(self):
        system = self._system
        match self._target:
            case "node":
                return self._chance.choice(system.nodes)
            case "front end":
                return system.scheduling_front_end()
        return {"head": system.head, "database": system.database}[self._target]

    def _victims(self):
        system = self._system
        match self._target:
            case "worker process":
                return [self._chance.choice(system.workers())]
            case "actor":
                return [self._chance.choice(system.workers()).parent()]
            case "bridge":
                return system.bridges()
            case "front end" if self._kind == "kill":  # its bridge must notice that by itself
                return [self._service().program]
            case "database" if self._kind == "kill":
                return [self._service().program]
        return self._service().tree()


def is_whole(system, load):
    """Return whether all parts run, and no more than that."""
    return (
        all(service.is_running for service in system.services)
        and (len(system.workers()), len(system.bridges())) == (NODES, 1)
        and load.ready_workers() == NODES
    )


def disturb(system, load, fault):
    """Apply a fault and wait until everything is as before; return the seconds from the fault until each event."""
    before = load.unfinished
    began = time.time()
    fault.apply()
    ended = time.time()
    probe = load.submit(priority=10)
    times = {}
    conditions = {
        "new_job_completed": lambda: probe in load.finished,
        "old_jobs_finished": lambda: not before & load.unfinished,
        "whole": lambda: is_whole(system, load),
    }
    started = None
    while len(times) < len(conditions):
        for name, condition in conditions.items():
            if not condition():
                times.pop(name, None)  # it was whole because the fault had not been noticed yet
            elif name not in times:
                times[name] = round(time.time() - began, 1)
        if time.time() - ended > LIMIT_SECONDS:
            raise TimeoutError(f"not recovered {LIMIT_SECONDS} s after the fault: {times}, {load.unfinished}")
        time.sleep(0.2)
    while started is None:  # the database has just come back
        started = load.first_start_after(began)
    return {"next_job_started": round(started - began, 1)} | times


def chosen_faults(count, chance, *, isolated):
    """Return (kind, target) of each fault: all combinations in random order, as often as needed."""
    kinds = [kind for kind in TARGETS if kind != "cut" or isolated]
    combinations = [(kind, target) for kind in kinds for target in TARGETS[kind]]
    chosen = []
    while len(chosen) < count:
        chosen += chance.sample(combinations, len(combinations))
    return chosen[:count]


def run(folder, faults, seed, *, isolated):
    """Run the system with faults; return the record."""
    chance = random.Random(seed)
    began = time.monotonic()
    system = System(folder, isolated=isolated)
    load, record = None, defaultdict(list)
    try:
        system.start()
        time.sleep(3)
        load = persist(lambda: Load(system.data, system.database_url, random.Random(seed)))
        wait_until(lambda: is_whole(system, load), START_SECONDS)
        say(f"all parts run after {time.monotonic() - began:.0f} s")
        load.start()
        for number, (kind, target) in enumerate(faults):
            time.sleep(chance.uniform(1, 4))
            times = disturb(system, load, Fault(system, kind, target, chance))
            record[f"{kind} {target}"].append(times)
            say(f"{number + 1}. {kind} {target}: {times}")
        load.stop()
        wait_until(lambda: not load.unfinished, LIMIT_SECONDS)
        wrong, counts = load.faults(), load.counts()
    finally:
        if load is not None:
            load.close()
        orphans = system.close()
    wrong += [f"{orphan} outlived the front ends" for orphan in orphans]
    return {
        "what": "faults of parts of a cluster at random moments (make faults-cluster): seconds from the fault on, with "
        f"the {DISTURBED_SECONDS} s of a freeze or cut; stand-in jobs of 2 to 3 s on {NODES} workers",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": versions(),
        "seed": seed,
        "faults": sum(map(len, record.values())),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "jobs": counts,
        "wrong": wrong,
        "recovery_seconds": {name: summary(record[name]) for name in sorted(record)},
    }


def summary(times):
    """Return count, and median and maximum of each event."""
    events = {
        event: {"median": round(statistics.median(values), 1), "maximum": max(values)}
        for event in times[0]
        for values in [[each[event] for each in times]]
    }
    return {"count": len(times)} | dict(sorted(events.items()))


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done after {seconds} s")
        time.sleep(0.2)


def say(text):
    print(text, flush=True)  # noqa: T201 - a program


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=40, help="number of faults")
    parser.add_argument("--seed", type=int, default=7, help="seed of the choice and moments of the faults")
    parser.add_argument("--only", action="append", help='a fault such as "kill head"; repeat it for several')
    parser.add_argument("--out", type=Path, help="file for the record, as JSON")
    parser.add_argument("--one-machine", action="store_true", help="use no namespaces, as without root")
    parser.add_argument("--keep", action="store_true", help="keep the folder with data and logs")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # end all parts too
    isolated = not arguments.one_machine and is_isolation_possible()
    if not isolated:
        say("All parts share this machine, and no link is cut: for more, be root on a machine that allows namespaces.")
    chosen = [tuple(name.split(" ", 1)) for name in arguments.only or ()]
    if not chosen:
        chosen = chosen_faults(arguments.count, random.Random(arguments.seed), isolated=isolated)
    folder = Path(tempfile.mkdtemp(prefix="kf-", dir="/tmp"))  # short: sockets have short names
    try:
        record = run(folder, chosen, arguments.seed, isolated=isolated)
        is_good = not record["wrong"]
    except BaseException:
        say(f"logs: {folder / 'logs'}")
        raise
    if not is_good or arguments.keep:
        say(f"logs: {folder / 'logs'}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(json.dumps({key: value for key, value in record.items() if key != "recovery_seconds"}, indent=1))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
