"""Runs checks and tests side by side, never more of them than there are processors, and counts what
came of them.

A job holds a token while it runs, and there are as many tokens as processors. Compilers take those
that are left: cargo is told of the pipe they lie in (the jobserver of GNU make), so it compiles
with all processors when it is alone, and with one beside an emulated host.
"""
import collections
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback

# What libtest says of one test, and at the end of a test program.
TEST = re.compile(r"test (\S+) (?:- should panic )?\.\.\. (ok|FAILED|ignored)")
RESULT = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;")
BEGIN = re.compile(r"running \d+ tests?$")
# What of a failed job's log is shown first, each with what follows it.
TELLING = re.compile(r"(error|test .* FAILED|thread .* panicked|FAILED )")
# The emulated host stood still, which is no test's doing.
STOOD_STILL = 70
# So many failed tests of a job are tried once more; more than that is no accident.
MOST_AGAIN = 3


class Ended(Exception):
    """A signal asked this program to end."""


class Counts(collections.namedtuple("Counts", "passed failed skipped", defaults=(0, 0, 0))):
    """How many tests passed, failed, were skipped."""

    def __add__(self, other):
        return Counts(*(a + b for a, b in zip(self, other)))

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Output:
    """What a command did: its exit code, the seconds it took, the lines of its standard output,
    each with the second it came.
    """

    def __init__(self):
        self.code, self.seconds, self.lines = None, 0.0, []


class Job:
    """A check: a command that passes or does not."""

    def __init__(self, name, command, env=None, limit=None):
        self.name, self.command, self.env, self.limit = name, command, env or {}, limit

    def judge(self, output):
        """Lines (name, counts, seconds) of what came of it."""
        return [(self.name, Counts(passed=1) if output.code == 0 else Counts(failed=1), output.seconds)]

    def again(self, output):
        """Whether it is to be tried once more."""
        return False

    def failed_alone(self, output):
        """A job of the tests alone that failed, where those are few; None for a check, which does
        not depend on what else the machine does.
        """
        return None


class Suite(Job):
    """Programs of Rust's test harness, whose own counts are added up. One that ran no test has
    failed.
    """

    def failed_alone(self, output):
        names = failed(output)
        if not names:
            return None
        # What is behind this is for the harness, which a program that is called itself is already.
        own = ["--"] if self.command[0] == "cargo" else []
        return Suite(f"{self.name}-again", [*self.command, *own, "--exact", *names], self.env, self.limit)

    def judge(self, output):
        found = sum((Counts(*map(int, match.groups())) for _, line in output.lines if (match := RESULT.match(line))), Counts())
        # One that did not run, or ended without a count, failed as a whole.
        if found.failed == 0 and (output.code != 0 or found.passed == 0):
            found += Counts(failed=1)
        return [(self.name, found, output.seconds)]


class Rooms(Job):
    """Tests of one program, of one room or several, in one host where guests run: each room is told
    and timed by itself.
    """

    def __init__(self, tests, command, **more):
        rooms = list(dict.fromkeys(room_of(test) for test in tests))
        super().__init__("e2e-" + "-".join(rooms), [*command, "--exact", *tests], **more)
        self.tests, self.host, self.more = tests, command, more

    def failed_alone(self, output):
        names = failed(output)
        if not names:
            return None
        job = Rooms(names, self.host, **self.more)
        job.name += "-again"
        return job

    def judge(self, output):
        said, took, before = {}, collections.Counter(), 0.0
        for at, line in output.lines:
            if match := TEST.match(line):
                said[match[1]] = match[2]
                took[room_of(match[1])] += at - before
                before = at
        ends = [Counts(*map(int, match.groups())) for _, line in output.lines if (match := RESULT.match(line))]
        if output.code == 0 and ends == [Counts(passed=len(self.tests))]:
            said = dict.fromkeys(self.tests, "ok")  # what a test printed itself may have torn its line
        found = {room_of(test): Counts() for test in self.tests}
        for test in self.tests:
            # A test of which nothing was said did not run to its end.
            one = {"ok": Counts(passed=1), "ignored": Counts(skipped=1)}.get(said.get(test), Counts(failed=1))
            found[room_of(test)] += one
        if output.code != 0 and not any(counts.failed for counts in found.values()):
            found[room_of(self.tests[-1])] += Counts(failed=1)
        return [(f"e2e-{room}", counts, took[room]) for room, counts in found.items()]

    def again(self, output):
        return output.code == STOOD_STILL


def failed(output):
    """The names of the tests that failed, where they are few enough to be tried once more: none when a
    program did not come to its end, or counted other failures than those that have a name.
    """
    lines = [line for _, line in output.lines]
    ends = [int(match[2]) for line in lines if (match := RESULT.match(line))]
    names = [match[1] for line in lines if (match := TEST.match(line)) and match[2] == "FAILED"]
    whole = len(ends) == sum(1 for line in lines if BEGIN.match(line)) and sum(ends) == len(names)
    return names if whole and len(names) <= MOST_AGAIN else []


def took(output):
    """Pairs (seconds, test) of the tests that a job's output tells of."""
    before, pairs = 0.0, []
    for at, line in output.lines:
        if match := TEST.match(line):
            pairs.append((at - before, match[1]))
        if match or BEGIN.match(line):
            before = at
    return pairs


def room_of(test):
    """The room of an end-to-end test: the first part of its path."""
    return test.split("::")[0]


class Tokens:
    """As many tokens as processors, in a pipe with a name."""

    def __init__(self, count, directory):
        self.path = os.path.join(directory, "tokens")
        if os.path.exists(self.path):
            os.unlink(self.path)
        os.mkfifo(self.path, 0o600)
        self.pipe = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        os.write(self.pipe, b"+" * count)

    def take(self):
        """Waits for a token."""
        os.read(self.pipe, 1)

    def give(self):
        """Gives one back."""
        os.write(self.pipe, b"+")

    def environment(self):
        """How cargo finds the tokens. Not MAKEFLAGS: Debian's make does not know pipes with names.
        """
        return {"CARGO_MAKEFLAGS": f"-j --jobserver-auth=fifo:{self.path}"}


class Seconds:
    """How long jobs took the last time, from a file: the longest begin first. It is a guess, and no
    harm is done when it is wrong. Of a job that never ran here, the file `elsewhere` tells, if there
    is one, how long it took on another machine.
    """

    def __init__(self, path, elsewhere=None):
        self.path = path
        self.known = self.read(path)
        self.elsewhere = self.read(elsewhere) if elsewhere else {}

    @staticmethod
    def read(path):
        """What a file says; nothing when it is none, or another."""
        try:
            with open(path) as file:
                return {str(name): float(seconds) for name, seconds in json.load(file).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def of(self, name, otherwise):
        """Seconds of a job, or what is supposed of one that never ran anywhere."""
        return self.known.get(name, self.elsewhere.get(name, otherwise))

    def keep(self):
        """Writes the file."""
        with open(f"{self.path}.{os.getpid()}", "w") as file:
            json.dump(self.known, file, indent=1, sort_keys=True)
        os.replace(file.name, self.path)


def shared(rooms, together):
    """Groups of rooms, longest first: `rooms` maps each to its seconds, and those that take
    `together` seconds at most share a host.
    """
    groups = []
    for room, seconds in sorted(rooms.items(), key=lambda item: (-item[1], item[0])):
        group = next((group for group in groups if group[0] + seconds <= together), None)
        if group is None:
            groups.append(group := [0.0, []])
        group[0] += seconds
        group[1].append(room)
    return [(seconds, names) for seconds, names in sorted(groups, key=lambda group: -group[0])]


class Runner:
    """Runs jobs, says what came of each, and counts."""

    def __init__(self, log, tokens, seconds, env=None):
        self.log, self.tokens, self.seconds = log, tokens, seconds
        self.env = {**os.environ, **tokens.environment(), **(env or {})}
        self.counts, self.outputs = Counts(), {}
        self.lock, self.running, self.stopping = threading.Lock(), set(), False
        # Jobs of tests that failed, and where the log of that is.
        self.unstable = []
        # What each test took, as `took` has it.
        self.took = []

    def say(self, *lines):
        """Prints lines that belong together."""
        with self.lock:
            if not self.stopping:
                print("\n".join(lines), flush=True)

    def together(self, *lanes):
        """Runs lanes of jobs side by side, each in its order; a lane that is given several times is
        worked off by as many at once.
        """
        threads = [threading.Thread(target=self.lane, args=[jobs], daemon=True) for jobs in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def lane(self, jobs):
        """Takes jobs from a deque until none is left."""
        while jobs and not self.stopping:
            self.tokens.take()
            try:
                self.run(jobs.popleft())
            except (IndexError, Ended):
                pass  # somebody else took the last one, or everything ends
            except Exception:  # a fault of ours is a failure, not silence
                self.counts += Counts(failed=1)
                self.say("  FAIL  the scheduler itself:", traceback.format_exc())
            finally:
                self.tokens.give()

    def run(self, job):
        """Runs one job and says what came of it; whether it passed."""
        path = os.path.join(self.log, f"{job.name[:100]}.log")
        with open(path, "wb"):
            pass  # the last run's log ends here
        output = self.execute(job, path)
        if job.again(output):
            self.say(f"  again {job.name}: the emulated host stood still or failed; see {path}")
            output = self.execute(job, path)
        if self.stopping:
            raise Ended  # it did not end by itself
        verdicts = job.judge(output)
        lines = []
        is_again = job.name.endswith("-again")
        alone = None if is_again else job.failed_alone(output)
        for name, counts, seconds in verdicts:
            tests = "" if type(job) is Job else f": {counts}" if counts.skipped or counts.failed else f": {counts.passed} tests"
            lines.append(f"  {'FAIL ' if counts.failed else 'ok   '} {name}{tests} ({seconds:.0f} s)")
        failed = any(counts.failed for _, counts, _ in verdicts)
        if failed:
            why = f"; time was up after {job.limit:.0f} s" if output.code is None else f", exit code {output.code}"
            lines += [f"        {path}{why}:", *excerpt(path)]
        if alone:
            lines += ["        what failed is tried once more, alone, at the end"]
        with self.lock:
            self.outputs[job.name] = output
            self.took += took(output)
            self.counts = sum((counts._replace(failed=0) if alone else counts for _, counts, _ in verdicts), self.counts)
            if alone:
                self.unstable.append((alone, path))
            if not is_again:
                self.seconds.known |= {name: round(seconds, 1) for name, counts, seconds in verdicts if not counts.failed}
        self.say(*lines)
        return not failed

    def passed(self, name):
        """Whether a job of this name ran, and did not fail."""
        output = self.outputs.get(name)
        return output is not None and output.code == 0

    def unstable_alone(self):
        """Tries the tests once more that failed beside others, one job after the other. What passes now is
        told as unstable, with the log of its failure: that is a fault to mend, of the test or of the
        product, and yet no reason to think that this tree is broken. What fails again has failed.
        """
        for job, path in self.unstable:
            self.lane(collections.deque([job]))
            output = self.outputs.get(job.name)
            if output is not None and not any(counts.failed for _, counts, _ in job.judge(output)):
                names = " ".join(dict.fromkeys(match[1] for _, line in output.lines if (match := TEST.match(line))))
                self.say(f"  UNSTABLE {names}: failed beside others, passed alone; mend it: {path}")

    def execute(self, job, path):
        """Runs a job's command in a process group of its own, its output added to a log."""
        output, began = Output(), time.monotonic()
        with open(path, "ab", buffering=0) as log:
            try:
                with self.lock:
                    if self.stopping:
                        raise Ended
                    process = subprocess.Popen(job.command, env={**self.env, **job.env}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                               stderr=log, start_new_session=True)
                    self.running.add(process)
            except OSError as error:
                log.write(f"{job.command[0]}: {error}\n".encode())
                output.code = 127
                return output

            def collect():
                with process.stdout, open(path, "ab", buffering=0) as copy:
                    for line in process.stdout:
                        output.lines.append((time.monotonic() - began, line.decode(errors="replace").rstrip("\n")))
                        copy.write(line)

            reader = threading.Thread(target=collect, daemon=True)
            reader.start()
            try:
                output.code = process.wait(job.limit)
            except subprocess.TimeoutExpired:
                output.code = None
                end_group(process)
            reader.join(5)  # an orphan that holds the output up does not hold us up
            output.seconds = time.monotonic() - began
            with self.lock:
                self.running.discard(process)
        return output

    def write_took(self):
        """Writes what each test took into the file `seconds` beside the logs, the longest first."""
        with open(os.path.join(self.log, "seconds"), "w") as file:
            file.writelines(f"{seconds:7.1f} {test}\n" for seconds, test in sorted(self.took, reverse=True))

    def stop(self):
        """Ends whatever still runs; nothing begins any more."""
        with self.lock:
            self.stopping = True
            running = list(self.running)
        for process in running:
            end_group(process)


def end_group(process):
    """Ends a process and those of its group: asks first, for an emulated host tidies up. Returns
    when they are gone.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
    while any(group == process.pid and state != "Z" for group, state in groups()):
        time.sleep(0.01)


def groups():
    """The process group and the state of every process."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, group = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it ended
        yield int(group), state


def excerpt(path):
    """What a log says of a failure: lines that tell, with what follows them, and its end."""
    with open(path, errors="replace") as file:
        lines = file.read().splitlines()
    shown, until = [], 0
    for number, line in enumerate(lines):
        if TELLING.match(line):
            until = number + 13
        if number < until and len(shown) < 120:
            shown.append(line)
    return [*shown, *(["  ..."] if shown else []), *lines[-20:]]


def signals_end():
    """SIGINT, SIGTERM and SIGHUP raise Ended in the main thread."""
    def ended(number, _):
        raise Ended(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)


def finish(runner, work):
    """Does `work`, prints the counts as the last line, and ends the program: 0 only when something
    passed and nothing failed.
    """
    signals_end()
    try:
        work()
        runner.stop()
        runner.write_took()
        runner.seconds.keep()
        print(runner.counts, flush=True)
        code = 0 if runner.counts.failed == 0 and runner.counts.passed > 0 else 1
    except Ended as end:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        runner.stop()
        print(f"ended by {signal.Signals(end.args[0]).name}; until then {runner.counts}", flush=True)
        code = 128 + end.args[0]
    sys.stdout.flush()
    os._exit(code)  # lanes that wait for a token never end by themselves
