"""The ways in which a machine is started here: what is there before, which words start it, what must be there after."""
import ctypes
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
DISK_BYTES = 1 << 20
# The number of the network's descriptor.
LINK = 100
IMAGE = "faults:1"
# What a home without a sandbox has.
KEPT = ("home/cache/", "home/data/images/", "home/data/sandboxes/lock", "home/data/sandboxes/version")
# How many times slower this machine is than the one for which the waits were made.
SLOWNESS = min(max(float(os.environ.get("NELLY_SLOWNESS") or 1), 1.0), 10.0)


def build_guest(path):
    """Compiles the guest, with the host's C compiler as that of `tests/guests/hostile`."""
    flags = ("-std=gnu11 -O2 -Wall -Wno-unused-parameter -Wno-unused-function -ffreestanding -fno-stack-protector -fno-pic -fno-pie "
             "-no-pie -fcf-protection=none -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -mno-red-zone "
             "-mgeneral-regs-only -nostdlib -static -DPATIENCE=2000000 -Wl,--build-id=none -Wl,-z,noseparate-code "
             "-Wl,-z,max-page-size=4096 -Wl,-Ttext-segment=0x200000").split()
    subprocess.run([os.environ.get("CC", "cc"), *flags, f"-DFRAME_CYCLES={int(12e9 * SLOWNESS)}ul", f"{HERE}/guest.c", "-o", path], check=True)


class Way:
    """One way. `folder` is new for each run, and what `prepare` makes there is the same each time."""
    # The code of a program that failed.
    failed = 125
    # Its programs wait by edges (epoll's EPOLLET): EAGAIN, where there was no reason for it, is never followed by one.
    edges = False
    # How many seconds after a failed call it may go on, where that is longer than for others.
    patience = 0

    def begin(self):
        """What all runs of it need."""

    def over(self):
        """Ends what `begin` began."""

    def end(self, folder):
        """Ends what a run has left on purpose."""

    def __init__(self, name, programs, guest, about="", confine="on", devices=()):
        self.about = about
        self.name, self.programs, self.guest, self.confine, self.devices = name, programs, guest, confine, devices
        self.made = f"{os.path.dirname(guest)}/made"
        if not os.path.exists(f"{self.made}.qcow2"):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{self.made}.qcow2", "4M"], check=True)

    def config(self, folder):
        """The machine's configuration."""
        def at(name):
            return {"path": f"{folder}/{name}"}
        machine = {"schema": 1, "memory_bytes": 16 << 20, "kernel": {"path": self.guest}, "serial": "stdio", "time_limit_ms": int(60000 * SLOWNESS)}
        if self.confine != "on":
            machine["confine"] = self.confine
        disks = {"raw": {"id": "raw", "source": at("raw")}, "qcow2": {"id": "q", "source": at("qcow2"), "format": "qcow2", "threads": 2}}
        machine["disks"] = [disks[name] for name in disks if name in self.devices]
        machine["rng"] = "rng" in self.devices
        machine["give_back"] = "balloon" in self.devices
        if "log" in self.devices:
            machine["console"] = {"log": at("log")}
        if "vsock" in self.devices:
            machine["vsock"] = {"unix_socket": f"{folder}/vsock"}
        if "share" in self.devices:
            machine["shares"] = [{"tag": "s", "source": at("share")}]
        if "net" in self.devices:
            machine["networks"] = [{"id": "n", "mac": "52:54:00:12:34:56", "link": {"datagram": {"socket": {"fd": LINK}}}}]
        return machine

    def prepare(self, folder):
        """What is there before."""
        os.makedirs(folder)
        if "raw" in self.devices:
            with open(f"{folder}/raw", "wb") as disk:
                disk.truncate(DISK_BYTES)
        if "qcow2" in self.devices:
            shutil.copy(f"{self.made}.qcow2", f"{folder}/qcow2")
        if "share" in self.devices:
            os.mkdir(f"{folder}/share")
        with open(f"{folder}/config", "w") as config:
            json.dump(self.config(folder), config)

    def words(self, folder):
        """The command and its environment."""
        return [f"{self.programs}/nelly-monitor", "--config", f"{folder}/config", "--result", f"{folder}/result"], {}

    def child(self, folder):
        """What the process does before it becomes the program."""
        if "net" in self.devices:
            # A socket that is its own peer: what goes out comes back.
            mirror = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            mirror.bind(f"{folder}/mirror")
            mirror.connect(f"{folder}/mirror")
            os.unlink(f"{folder}/mirror")
            os.dup2(mirror.fileno(), LINK, inheritable=True)

    def after(self, folder):
        """What is there after: names, and the contents of what a guest wrote."""
        there = {}
        for name in sorted(os.listdir(folder)):
            path = f"{folder}/{name}"
            if name in ("raw", "log"):
                with open(path, "rb") as file:
                    there[name] = hashlib.sha256(file.read()).hexdigest()
            elif name == "qcow2":
                there[name] = subprocess.run(["qemu-img", "check", "-q", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
            else:
                there[name] = None
        return there


    def left_behind(self, there, plain):
        """What is there after a failure and should not be."""
        return set(there) - set(plain)

    def next_run(self, folder, plain):
        """Starts it once more, by itself, where it failed; what is wrong with that."""
        after = untraced(self, folder)
        return "" if after == (plain.code, plain.out, "") else f"the next run: {after}"


def untraced(way, folder, words=None):
    """A run by itself: exit code and what it said."""
    own, environment = way.words(folder)
    child = subprocess.Popen(words or own, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, close_fds=False, preexec_fn=lambda: way.child(folder))
    try:
        return (child.wait(timeout=30 * SLOWNESS), child.stdout.read(), child.stderr.read())
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return "hangs"
    finally:
        child.stdout.close()
        child.stderr.close()


class Boot(Way):
    """The client with a monitor of its own."""

    def words(self, folder):
        words = [f"{self.programs}/nelly", "boot", "--kernel", self.guest, "--memory", "16M", "--disk", f"{folder}/raw"]
        return words, {"NELLY_HOME": f"{folder}/home", "PATH": os.environ["PATH"]}


def archive(path):
    """A small image, as `docker save` writes it."""
    def add(tar, name, data=b"", kind=tarfile.REGTYPE, mode=0o644, target=""):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.size, entry.mtime = kind, mode, target, len(data), 1_600_000_000
        tar.addfile(entry, io.BytesIO(data))
    layers = []
    for number in range(2):
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            add(tar, "bin", kind=tarfile.DIRTYPE, mode=0o755)
            add(tar, f"bin/tool-{number}", bytes(range(256)) * 300, mode=0o755)
            add(tar, f"bin/link-{number}", kind=tarfile.SYMTYPE, target=f"tool-{number}")
        layers.append(layer.getvalue())
    config = {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux", "created": "2020-09-13T12:26:40Z",
              "config": {"Cmd": ["/bin/tool-0"]},
              "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]}}
    names = [f"layer-{number}.tar" for number in range(len(layers))]
    with tarfile.open(path, "w") as tar:
        add(tar, "config.json", json.dumps(config).encode())
        for name, layer in zip(names, layers):
            add(tar, name, layer)
        add(tar, "manifest.json", json.dumps([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": names}]).encode())


class Image(Way):
    """The image store, without a machine."""
    failed = 1

    def __init__(self, name, programs, guest, about, *words, loaded):
        super().__init__(name, programs, guest, about)
        self.command, self.loaded = words, loaded
        self.archive = f"{os.path.dirname(guest)}/archive.tar"
        if not os.path.exists(self.archive):
            archive(self.archive)

    def environment(self, folder):
        return {"NELLY_HOME": f"{folder}/home", "PATH": os.environ["PATH"]}

    def words(self, folder):
        return [f"{self.programs}/nelly", "image", *[word.format(archive=self.archive) for word in self.command]], self.environment(folder)

    def load(self, folder):
        """Loads the image, by itself."""
        return untraced(self, folder, [f"{self.programs}/nelly", "image", "load", "-i", self.archive])

    def prepare(self, folder):
        os.makedirs(folder)
        if self.loaded:
            assert self.load(folder)[0] == 0

    def after(self, folder):
        """What the store says that it holds, and every file of it; a blob that is not what its name says is told."""
        there = {"said": untraced(self, folder, [f"{self.programs}/nelly", "image", "ls", "--json"])}
        for place, _, names in os.walk(f"{folder}/home"):
            for name in names:
                path = os.path.join(place, name)
                with open(path, "rb") as file:
                    digest = hashlib.sha256(file.read()).hexdigest()
                if "/blobs/" in path:
                    there[os.path.relpath(path, folder)] = "whole" if digest == name else "broken"
                elif "index" in name:
                    there[os.path.relpath(path, folder)] = digest
                else:
                    there[os.path.relpath(path, folder)] = None
        return there

    def left_behind(self, there, plain):
        """What a store has begun is its own, until the next run takes it away: see `next_run`."""
        return set()

    def next_run(self, folder, plain):
        """The store lists what it has, whole, and takes the image: then it is as a store that never saw a failure."""
        there = self.after(folder)
        if there["said"][0] != 0 or "broken" in there.values():
            return f"the store afterwards: {there}"
        said = self.load(folder)
        if said[0] != 0:
            return f"the next load: {said}"
        whole = f"{os.path.dirname(folder)}/whole-{os.getpid()}"
        if not os.path.exists(whole):
            os.makedirs(whole)
            self.load(whole)
        now, wanted = self.after(folder), self.after(whole)
        return "" if now == wanted else f"the store after the next load: {now}"


class Pull(Image):
    """From a registry on this host."""
    # A request is made again, some times.
    patience = 60

    def __init__(self, name, programs, guest, about, loaded=False):
        super().__init__(name, programs, guest, about, loaded=loaded)
        self.host, self.place = None, f"{os.path.dirname(guest)}/registry"

    def begin(self):
        os.makedirs(self.place)
        with open(f"{self.place}/config.yml", "w") as config:
            config.write(f"version: 0.1\nlog: {{level: info, formatter: json}}\nstorage: {{filesystem: {{rootdirectory: {self.place}/data}}}}\n"
                         "http: {addr: '127.0.0.1:0', secret: x}\n")
        # No child of this process, whose children are traced; it ends when the pipe does, whoever holds it.
        script = "{ docker-registry serve config.yml 2>log >log2 </dev/null & read -r _; kill $!; wait; } <&3 & exec 3<&-"
        reading, Pull.held = os.pipe()
        subprocess.run(["sh", "-c", f"exec 3<&{reading}; {script}"], cwd=self.place, stdin=subprocess.DEVNULL, pass_fds=[reading], check=True,
                       env={"OTEL_TRACES_EXPORTER": "none", "PATH": os.environ["PATH"]})
        os.close(reading)
        until = time.monotonic() + 60 * SLOWNESS
        while not self.host:
            time.sleep(0.01)
            if os.path.exists(f"{self.place}/log"):
                with open(f"{self.place}/log") as log:
                    found = re.search(r"listening on [^\"]*?(127\.0\.0\.1:\d+)", log.read())
                self.host = found and found[1]
            if time.monotonic() > until:
                raise OSError("docker-registry does not start")
        self.command = ("pull", "-q", self.reference())
        folder = f"{self.place}/home"
        os.makedirs(folder)
        for words in (["load", "-i", self.archive], ["tag", IMAGE, self.reference()], ["push", self.reference()]):
            done = untraced(self, folder, [f"{self.programs}/nelly", "image", *words])
            if done[0] != 0:
                raise OSError(f"nelly image {words[0]}: {done}")

    def reference(self):
        return f"{self.host}/{IMAGE}"

    def over(self):
        os.close(Pull.held)
        shutil.rmtree(self.place, ignore_errors=True)

    def load(self, folder):
        return untraced(self, folder, [f"{self.programs}/nelly", "image", "pull", "-q", self.reference()])


def can_virtualise():
    """Whether this host's processor says that it can run guests: who starts a container looks."""
    with open("/proc/cpuinfo") as info:
        flags = next((line.split() for line in info if line.startswith("flags")), ["vmx"])
    return "vmx" in flags or "svm" in flags


def as_if_virtualising(path):
    """Has this process, which becomes another program, see a processor that can, as the file at `path` says."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, bind, private, recursive = 0x20000, 0x10000000, 0x1000, 0x40000, 0x4000
    user = os.geteuid()
    if libc.unshare(new_mounts | (new_users if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{os.getegid()} {os.getegid()} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    for arguments in ((None, b"/", None, private | recursive, None), (path.encode(), b"/proc/cpuinfo", None, bind, None)):
        if libc.mount(*arguments):
            raise OSError(ctypes.get_errno(), "mount")


class Sandbox(Way):
    """Commands for sandboxes, whose monitor is one that plays its guest (`tests/src/bin/played-guest`): of it no call fails."""
    edges = True
    first = ("run", "-d", "--name", "box", "--net", "none", "--", "sleep", "stay")

    def __init__(self, name, programs, guest, about, words, started=True, ends=False, failed=125):
        self.about, self.name, self.programs, self.guest, self.command = about, name, programs, guest, words
        self.started, self.ends, self.failed = started, ends, failed
        self.base = f"{os.path.dirname(guest)}/sandboxes"
        self.processor = f"{self.base}/cpuinfo"

    def begin(self):
        """The program that plays, and a home whose store has the image."""
        if os.path.exists(self.base):
            return
        os.makedirs(self.base)
        subprocess.run(["cargo", "build", "--locked", "-q", "-p", "nelly-tests", "--bin", "played-guest"], cwd=TOP, check=True)
        shutil.copy(f"{TOP}/target/debug/played-guest", f"{self.base}/played-guest")
        with open("/proc/cpuinfo") as info, open(self.processor, "w") as file:
            file.writelines(line.replace(":", ": vmx", 1) if line.startswith("flags") else line for line in info)
        os.makedirs(f"{self.base}/home")
        done = untraced(self, self.base, self.nelly("run", "--rm", "--net", "none", "--", "true"))
        if done != (0, "hello\n", ""):
            raise OSError(f"nelly run: {done}")

    def nelly(self, *words):
        return [f"{self.programs}/nelly", *words]

    def environment(self, folder):
        return {"NELLY_HOME": f"{folder}/home", "PATH": os.environ["PATH"], "NELLY_MONITOR": f"{self.base}/played-guest", "XDG_RUNTIME_DIR": f"{folder}/run"}

    def child(self, folder):
        if not can_virtualise():
            as_if_virtualising(self.processor)

    def words(self, folder):
        return self.nelly(*self.command), self.environment(folder)

    def prepare(self, folder):
        os.makedirs(f"{folder}/run", mode=0o700)
        shutil.copytree(f"{self.base}/home", f"{folder}/home")
        if self.started:
            done = untraced(self, folder, self.nelly(*self.first))
            if done[0] != 0:
                raise OSError(f"nelly run -d: {done}")

    def after(self, folder):
        """What sandboxes there are, how they are, and the files that there are beside theirs; once nobody runs who is to end."""
        until = time.monotonic() + 5 * SLOWNESS
        while self.ends and self.processes(folder) and time.monotonic() < until:
            time.sleep(0.02)
        code, out, err = untraced(self, folder, self.nelly("ps", "-a", "--json"))
        shown = [(one["name"], one["status"], one.get("exit")) for one in json.loads(out)] if code == 0 else (code, err)
        there = {"said": shown}
        for place in ("home", "run"):
            for inside, _, names in os.walk(f"{folder}/{place}"):
                for name in names:
                    path = re.sub(r"[0-9a-f]{12,64}", "ID", os.path.relpath(f"{inside}/{name}", folder))
                    if not path.startswith(KEPT):
                        there[path] = there.get(path, 0) + 1
        return there

    def left_behind(self, there, plain):
        """What a sandbox has is its own, until it is removed: see `next_run`."""
        return set()

    def next_run(self, folder, plain):
        """The same command then does what it is to do, or has done it; and the sandbox can be removed, with all that it had."""
        after = untraced(self, folder)
        wrong = "" if after == (plain.code, plain.out, "") else f"the next run: {after}"
        removed = untraced(self, folder, self.nelly("rm", "-f", "box"))
        swept = untraced(self, folder, self.nelly("gc"))
        there = set(self.after(folder))
        if removed[0] != 0 or swept[0] != 0 or there != {"said"}:
            wrong = wrong or f"removed: {removed}, swept: {swept}, there is {there}"
        return wrong

    def processes(self, folder):
        """Who has this home in its environment; monitors have none, and end with who holds them."""
        found = []
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{process}/environ", "rb") as environment:
                    if f"NELLY_HOME={folder}/home".encode() in environment.read().split(b"\0"):
                        found.append(int(process))
            except OSError:
                pass
        return found

    def end(self, folder):
        untraced(self, folder, self.nelly("rm", "-f", "box"))
        for process in self.processes(folder):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass


def ways(programs, guest):
    """All of them."""
    every = ("raw", "qcow2", "rng", "net", "log", "vsock", "share", "balloon")
    return [
        Way("plain", programs, guest, devices=("raw", "qcow2", "rng", "net", "balloon"),
            about="`nelly-monitor --config` with a raw disk, a qcow2 disk with two threads, an entropy device, a network and a balloon, all threads with one list of system calls"),
        Way("named", programs, guest, devices=("raw", "log", "vsock", "share"),
            about="`nelly-monitor --config` with a raw disk, a console's log, the socket of vsock and a shared directory, each thread with a list of its own"),
        Way("off", programs, guest, confine="off", devices=every, about="`nelly-monitor --config` with all of these, and `confine` `off`"),
        Boot("boot", programs, guest, devices=("raw",), about="`nelly boot --kernel` with a raw disk: the client and its monitor"),
        Image("load", programs, guest, "`nelly image load` into an empty store", "load", "-i", "{archive}", loaded=False),
        Image("load again", programs, guest, "`nelly image load` of an image that is there", "load", "-i", "{archive}", loaded=True),
        Image("ls", programs, guest, "`nelly image ls`", "ls", loaded=True),
        Image("rm", programs, guest, "`nelly image rm`", "rm", IMAGE, loaded=True),
        Pull("pull", programs, guest, "`nelly image pull` into an empty store, from a registry on the same host"),
        Sandbox("exec", programs, guest, "`nelly exec` into a sandbox that runs: the client alone, whose calls to the keeper are answered", ("exec", "box", "true")),
        Sandbox("stop", programs, guest, "`nelly stop` of a sandbox that runs: the client alone", ("stop", "box"), ends=True, failed=1),
        Sandbox("run", programs, guest, "`nelly run --rm`, over a monitor whose guest is played", ("run", "--rm", "--net", "none", "--", "true"), started=False),
    ]
