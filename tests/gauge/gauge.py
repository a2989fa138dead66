"""Boots in the emulated host, in instruction-counted time: what `run`, `options` and `profile` share.

A *scenario* is a command that is timed from before its process exists to a mark. Each is run several times in one emulated host, from
memory, alone; the first boot is cold and not counted, of the others the median is taken.

    floor       tests/floor/minimal.c to its guest's first byte: the least that any monitor needs
    first-byte  nelly-monitor with the tiny kernel to the guest's first byte
    init        nelly-monitor with our kernel and command line, 128 MiB, to a byte that an init of ten instructions writes to the console
    agent       nelly-monitor with the machine of `nelly run` to the ready byte of the agent
    run         `nelly run --net none --result fd:3 -- true` from start to end, by phases
    plain       the same without the result: what a run costs whoever measures nothing
    kept        `nelly run --net none -- true` without --rm: with a keeper, a disk and four spare slots, and a sandbox that stays
    network     `run` with the user-mode network instead of none, which is the default
"""
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
SCENARIOS = ("floor", "first-byte", "init", "agent", "run", "plain", "kept", "network")
BOOTS = 6
# Where everything lies in the emulated host: in memory, or what is timed would wait for this machine's disk.
INSIDE = "/dev/shm/g"
# Documents with tables that are written here, between `<!-- NAME -->` and `<!-- /NAME -->`.
DOCUMENTS = [f"{TOP}/docs/boot-latency.md", f"{TOP}/docs/boot-latency-notes.md"]
# A run is half a minute on an idle machine. Exit codes of the emulated host: time was up, it failed.
SESSION_SECONDS = 300 * float(os.environ.get("NELLY_SLOWNESS") or 1)
STOOD_STILL = (124, 70)
# Exit codes of the monitor: our init ends in a triple fault (reboot=t), the machine of `agent` by SIGTERM (128 + 15).
STATUS = {"init": 122 << 8, "agent": 143 << 8}
# How long the machine of `agent` takes to end says when the host's next tick lets the signal through, nothing of us: not counted.
TO_THE_MARK = ("agent",)


class Failed(Exception):
    """The measurement failed; nothing is known of the speed."""


def output(*command, **more):
    """What a command prints; its own complaint otherwise."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **more)
    if done.returncode:
        raise Failed(f"{shlex.join(command)} ended with {done.returncode}")
    return done.stdout


def first_line(*command):
    """The first line of a command's output, or that it is not there."""
    try:
        return output(*command, stderr=subprocess.DEVNULL).splitlines()[0]
    except (OSError, IndexError, Failed):
        return "none"


def environment():
    """What counted time depends on beside our own sources: the emulated processor, the kernel on it, the compilers."""
    place = output(f"{TOP}/tests/emulated-host/prepare").strip()
    return {
        "qemu": first_line("qemu-system-x86_64", "--version"),
        "host_kernel": os.listdir(f"{place}/modules")[0],
        "gcc": first_line("gcc", "--version"),
        "rustc": first_line("rustc", "--version"),
    }


def stage(work, installation, words, files):
    """Puts everything that the emulated host needs into `work`; `files` replace kernel or initrd."""
    for part in ("bin", "share"):
        source = os.path.join(installation, part)
        if not os.path.isdir(source):
            raise Failed(f"{source} is missing: run `make build` first")
        shutil.copytree(source, f"{work}/{part}")
    for name, asset in (("kernel", "vmlinux"), ("initrd", "initramfs.cpio")):
        if files.get(name):
            shutil.copyfile(files[name], f"{work}/share/nelly/{asset}")
    output(f"{TOP}/tests/floor/build", work)
    output("gcc", "-O2", "-Wall", "-static", "-o", f"{work}/stopwatch", f"{HERE}/stopwatch.c")
    # Writable and executable in one segment: ten instructions, and the linker's warning about it.
    output("gcc", "-nostdlib", "-static", "-Wl,--build-id=none,-N,--no-warn-rwx-segments", "-o", f"{work}/init", f"{HERE}/init.S")
    spec = f"dir /dev 755\nnod /dev/console 600 c 5 1\nfile /init {shlex.quote(work)}/init 755\n"
    output(f"{TOP}/rootfs/newc", "-", f"{work}/init.cpio", input=spec)
    with open(f"{work}/disk.img", "wb") as disk:
        disk.truncate(1 << 20)
    for name, config in machines(work, words).items():
        with open(f"{work}/{name}.json", "w") as file:
            json.dump(config, file)


def machines(work, words):
    """The machines of the scenarios, by name: that of `nelly run`, and what is left of it without its devices."""
    quiet = {**os.environ, "XDG_CACHE_HOME": f"{work}/cache", "NELLY_APPEND": words}
    text = output(f"{work}/bin/nelly", "run", "--rm", "--net", "none", "--dry-run", "--", "true", env=quiet)
    agent = json.loads(text)["machine"]
    share = f"{INSIDE}/share/nelly"
    agent["kernel"], agent["initrd"] = {"path": f"{share}/vmlinux"}, {"path": f"{share}/initramfs.cpio"}
    agent["serial"] = "none"
    agent["vsock"]["unix_socket"] = f"{INSIDE}/vsock"
    for disk in agent["disks"]:
        disk["source"] = {"path": f"{INSIDE}/disk.img"}
        if "followed_by" in disk:
            disk["followed_by"] = [disk["source"] for _ in disk["followed_by"]]
    init = {key: agent[key] for key in ("schema", "kernel", "command_line", "platform", "immutable_images") if key in agent}
    init |= {"initrd": {"path": f"{INSIDE}/init.cpio"}, "serial": "stdio", "memory_bytes": 128 << 20}
    tiny = {"schema": 1, "kernel": {"path": f"{INSIDE}/tiny"}, "serial": "stdio", "memory_bytes": 128 << 20}
    return {"agent": agent, "init": init, "first-byte": tiny}


def command_of(scenario):
    """The mark and the command of a scenario; `init@N` is `init` with a configuration of its own."""
    monitor = [f"{INSIDE}/bin/nelly-monitor", "--config", f"{INSIDE}/{scenario}.json", "--result", "fd:3"]
    return {
        "floor": ["stdout:78", f"{INSIDE}/minimal"],
        "first-byte": ["stdout:78", *monitor],
        "init": ["stdout:2", *monitor],
        "agent": [f"unix:{INSIDE}/vsock_500001", *monitor],
        "run": ["end", f"{INSIDE}/bin/nelly", "run", "--rm", "--net", "none", "--result", "fd:3", "--", "true"],
        "plain": ["end", f"{INSIDE}/bin/nelly", "run", "--rm", "--net", "none", "--", "true"],
        "kept": ["end", f"{INSIDE}/bin/nelly", "run", "--net", "none", "--", "true"],
        "network": ["end", f"{INSIDE}/bin/nelly", "run", "--rm", "--net", "user", "--result", "fd:3", "--", "true"],
    }[scenario.split("@")[0]]


def job(work, scenarios, boots, words, spin):
    """The script that runs in the emulated host."""
    lines = ["set -e", f"cp -r {shlex.quote(work)} {INSIDE}", f"cd {INSIDE}", "mkdir -p home run", "head -c 1 /dev/random >/dev/null"]
    for scenario in scenarios:
        # Few words and always the same: the environment's size is part of an exec's cost.
        settings = [f"HOME={INSIDE}/home", f"XDG_RUNTIME_DIR={INSIDE}/run", f"NELLY_APPEND={words}"]
        if spin.get(scenario):
            settings.append(f"GAUGE_SPIN_NS={spin[scenario]}")
        lines.append(shlex.join(["env", "-i", *settings, "./stopwatch", scenario, str(boots), *command_of(scenario)]))
    return "\n".join(lines) + "\n"


def session(script, *options):
    """Runs a script in the emulated host, started with `options`; returns what it prints.

    One that takes far too long is tried once more: once in hundreds of boots the emulated processor
    loses a compare-and-exchange (docs/emulated-host.md), and a kernel waits for a lock that nobody
    holds. What hangs for a reason of its own does so again.
    """
    command = [f"{TOP}/tests/emulated-host/run", "--icount", "--timeout", str(SESSION_SECONDS), *options, "sh", "-c", script]
    for last in (False, True):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if last or done.returncode not in STOOD_STILL:
            raise Failed(f"{shlex.join(command[:-1])} ended with {done.returncode}:\n{done.stdout[-2000:]}")
        print(f"gauge: the emulated host came to no end in {SESSION_SECONDS:.0f} s or failed ({done.returncode}): once more", file=sys.stderr)


def samples_of(said):
    """The stopwatch's lines as objects."""
    return [json.loads(line) for line in said.splitlines() if line.startswith('{"scenario"')]


def ended_well(sample):
    """Whether the mark came and the process ended as it should."""
    reached = sample["marker_ns"] or command_of(sample["scenario"])[0] == "end"
    return bool(reached) and sample["status"] == STATUS.get(sample["scenario"].split("@")[0], 0)


def workplace():
    """A directory that is gone afterwards, on a path that the emulated host sees."""
    os.makedirs(f"{TOP}/target/gauge", exist_ok=True)
    return tempfile.TemporaryDirectory(dir=f"{TOP}/target/gauge")


def boots(scenarios=SCENARIOS, count=BOOTS, installation=None, words="", spin=None, files=None):
    """Runs the scenarios, `count` times each, and returns the stopwatch's lines as objects.

    `words` are added to the kernel's command line, `spin` maps a scenario to nanoseconds that its process spends before it begins.
    """
    with workplace() as work:
        stage(work, installation or f"{TOP}/target/nelly", words, files or {})
        said = session(job(work, scenarios, count, words, spin or {}))
    samples = samples_of(said)
    for sample in samples:
        if not ended_well(sample):
            raise Failed(f"{sample['scenario']} did not end as it should: {json.dumps(sample)}")
    if len(samples) != count * len(scenarios):
        raise Failed(f"{count * len(scenarios)} boots were wanted, {len(samples)} came:\n{said[-2000:]}")
    return samples


def counted_ends(sample):
    """Which of mark and end came, and count."""
    ends = ("marker",) if sample["scenario"] in TO_THE_MARK else ("marker", "end")
    return [key for key in ends if sample[key + "_ns"]]


def phases(sample):
    """Nanoseconds of a boot by phase, in order. A phase ends with the stamp that names it, so they add up to the whole."""
    result = sample["result"] or {}
    timeline = result.get("timeline") or result.get("timings", {}).get("timeline") or {"stamps": []}
    stamps = [(stamp["at_ns"], stamp["name"]) for stamp in timeline["stamps"]]
    ends = counted_ends(sample)
    stamps += [(sample[key + "_ns"], key) for key in ends]
    found, last = {}, sample["start_ns"]
    for at, name in sorted(stamps):
        if at > max((sample[key + "_ns"] for key in ends), default=at):
            break
        # a stamp that comes twice (a second connection, say) is one phase
        found[name] = found.get(name, 0) + at - last
        last = at
    return found


def totals(sample):
    """Nanoseconds from before the process exists to the mark and to the end."""
    return {key: sample[key + "_ns"] - sample["start_ns"] for key in counted_ends(sample)}


def exits(sample):
    """vCPU exits by kind, without those that never came."""
    return {kind: count for kind, count in ((sample["result"] or {}).get("exits") or {}).items() if count}


def medians(rows):
    """The median of each figure that all rows have, in the order of the first."""
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    return {name: int(statistics.median(row[name] for row in rows)) for name in names}


# Client and guest answer each other in these phases, on one processor: by who gets its turn first, a millisecond moves to the next
# phase, in one build of a kernel so, in another so. Only together do they say something.
TURNS = ("agent_connected", "ready", "container_created", "process_started", "exit", "timeline_read")
# So do the client and the monitor that begins, and longer where a network's process begins beside them.
STARTS = ("monitor_spawned", "monitor_main", "monitor_config")
STARTS_WITH_NETWORK = (*STARTS, "memory_mapped", "kernel_loaded")


def groups(scenario):
    """The groups of phases of a scenario that take turns."""
    return {"run": (TURNS, STARTS), "network": (TURNS, STARTS_WITH_NETWORK)}.get(scenario, (TURNS,))


def together(scenario, found):
    """The phases of each group that takes turns as one figure; nothing of a boot that has none of them."""
    sums = {f"{group[0]} to {group[-1]}": [cost for name, cost in found.items() if name in group] for group in groups(scenario)}
    return {name: sum(costs) for name, costs in sums.items() if costs}


def summary(samples):
    """Medians by scenario without the first, cold boot: {scenario: {"totals": ..., "phases": ..., "together": ..., "exits": ...}}."""
    found = {}
    for scenario in dict.fromkeys(sample["scenario"] for sample in samples):
        warm = [sample for sample in samples if sample["scenario"] == scenario][1:]
        found[scenario] = {
            "totals": medians([totals(sample) for sample in warm]),
            "phases": medians([phases(sample) for sample in warm]),
            "together": medians([together(scenario, phases(sample)) for sample in warm]),
            "exits": medians([exits(sample) for sample in warm]),
        }
    return found


def split(mark):
    """The document with `<!-- mark -->` and `<!-- /mark -->`: its path, the text before, between and after them."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    for path in DOCUMENTS:
        with open(path) as file:
            text = file.read()
        if begin in text:
            head, rest = text.split(begin)
            between, tail = rest.split(end)
            return path, head + begin, between, end + tail
    raise Failed(f"no document has a place for {mark}")


def write(mark, lines):
    """Replaces what stands between `<!-- mark -->` and `<!-- /mark -->`."""
    path, head, _, tail = split(mark)
    with open(path, "w") as file:
        file.write(head + "\n".join(lines) + "\n" + tail)
    print("\n".join(lines))
