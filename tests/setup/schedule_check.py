"""The scheduler of `make test` keeps its promises; run by check.sh."""
import collections
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import schedule
from schedule import Counts, Job, Output, Rooms, Suite

lane = collections.deque


def said(code, *lines):
    """An output, a line a second."""
    output = Output()
    output.code, output.lines = code, list(enumerate(lines, 1))
    return output


class Scheduler(unittest.TestCase):
    def setUp(self):
        self.place = self.enterContext(tempfile.TemporaryDirectory())
        self.heard = []

    def runner(self, tokens=2):
        runner = schedule.Runner(self.place, schedule.Tokens(tokens, self.place), schedule.Seconds(f"{self.place}/seconds"), {"P": self.place})
        runner.say = lambda *lines: self.heard.extend(lines)
        return runner

    def test_as_many_run_at_once_as_there_are_tokens(self):
        # Each of a pair waits for the other, and everyone sees that no more than two are there.
        script = 'mkdir $P/in-$0; [ $(ls -d $P/in-* | wc -l) -le 2 ] || exit 1; echo >$P/$1 & read x <$P/$2; wait; rmdir $P/in-$0'
        for name in "abcd":
            os.mkfifo(f"{self.place}/{name}")
        jobs = lane(Job(name, ["sh", "-c", script, name, one, other]) for name, one, other in ("1ab", "2ba", "3cd", "4dc"))
        runner = self.runner()
        runner.together(jobs, jobs, jobs, jobs)
        self.assertEqual(runner.counts, Counts(passed=4), self.heard)

    def test_a_compiler_takes_the_tokens_that_are_left_and_no_more(self):
        # The jobserver's side: one is the job's own, so of three two are left, and of one none.
        script = 'exec 9<>"${CARGO_MAKEFLAGS#*fifo:}"; n=0; while read -r -n 1 -t 0.2 -u 9 x; do n=$((n+1)); done; printf %${n}s >&9; [ $n = $0 ]'
        for tokens, left in ((3, "2"), (1, "0")):
            runner = self.runner(tokens)
            runner.together(lane([Job("compiler", ["bash", "-c", script, left])]))
            self.assertEqual(runner.counts, Counts(passed=1), self.heard)

    def test_cargo_compiles_with_no_more_than_the_tokens_that_are_left(self):
        # Four crates that do not need each other, and a compiler that sees whether another one
        # runs.
        for name in "abcd":
            os.makedirs(f"{self.place}/{name}/src")
            write(f"{self.place}/{name}/Cargo.toml", f'[package]\nname = "{name}"\nversion = "0.0.0"\nedition = "2024"\n')
            write(f"{self.place}/{name}/src/lib.rs", "")
        write(f"{self.place}/Cargo.toml", '[workspace]\nmembers = ["a", "b", "c", "d"]\nresolver = "3"\n')
        write(f"{self.place}/rustc", '#!/bin/sh\ncase "$*" in *--crate-name\\ [abcd]\\ *)\n'
              'mkdir "$P/one" || exit 9; sleep 0.2; rmdir "$P/one";; esac\nexec "$@"\n')
        os.chmod(f"{self.place}/rustc", 0o755)
        runner = self.runner(1)
        runner.together(lane([Job("cargo", ["cargo", "check", "--offline", "--manifest-path", f"{self.place}/Cargo.toml"],
                                  env={"RUSTC_WRAPPER": f"{self.place}/rustc", "CARGO_TARGET_DIR": f"{self.place}/target"})]))
        self.assertEqual(runner.counts, Counts(passed=1), self.heard)
        with open(f"{self.place}/cargo.log") as log:
            self.assertRegex(log.read(), "Checking d ")

    def test_a_failure_is_counted_and_its_log_shown(self):
        runner = self.runner()
        runner.together(lane([Job("good", ["true"]), Job("bad", ["sh", "-c", "echo error: why >&2; exit 3"]), Job("none", ["/no/such"])]))
        self.assertEqual(runner.counts, Counts(passed=1, failed=2))
        self.assertIn("error: why", self.heard)
        self.assertTrue(any("bad.log, exit code 3" in line for line in self.heard), self.heard)

    def test_a_job_beyond_its_limit_is_ended_with_its_children_and_failed(self):
        runner = self.runner()
        runner.together(lane([Job("slow", ["sh", "-c", 'sleep 1000 & echo $! >"$P/child"; wait'], limit=5)]))
        self.assertEqual(runner.counts, Counts(failed=1))
        self.assertFalse(alive(f"{self.place}/child"))

    def test_a_suite_adds_up_what_its_programs_say(self):
        result = "test result: ok. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in 0.1s".format
        suite = Suite("unit", [])
        self.assertEqual(suite.judge(said(0, result(3, 0, 1), "more", result(4, 0, 0)))[0][1], Counts(7, 0, 1))
        self.assertEqual(suite.judge(said(101, result(3, 2, 0)))[0][1], Counts(3, 2, 0))
        # without a test, without a count, or with counts that are good and an end that is not
        for output in (said(0, result(0, 0, 0)), said(0), said(101), said(101, result(3, 0, 0))):
            self.assertEqual(suite.judge(output)[0][1].failed, 1)

    def test_each_room_of_a_host_is_counted_and_timed_by_itself(self):
        result = "test result: ok. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in 9s".format
        rooms = Rooms(["boot::a", "boot::b", "run::c"], ["program"])
        self.assertEqual(rooms.command, ["program", "--exact", "boot::a", "boot::b", "run::c"])
        good = said(0, "running 3 tests", "test boot::a ... ok", "test boot::b ... ok", "test run::c ... ok", result(3, 0))
        self.assertEqual(rooms.judge(good), [("e2e-boot", Counts(passed=2), 3), ("e2e-run", Counts(passed=1), 1)])
        bad = said(101, "test boot::a ... ok", "test boot::b ... FAILED", "test run::c ... ignored", result(1, 1))
        self.assertEqual([counts for _, counts, _ in rooms.judge(bad)], [Counts(1, 1, 0), Counts(0, 0, 1)])
        # what was never said did not pass, whatever the exit code
        for code in (0, 3):
            cut = [counts for _, counts, _ in rooms.judge(said(code, "test boot::a ... ok", "test boot::b ... ok"))]
            self.assertEqual(cut, [Counts(passed=2), Counts(failed=1)])
        torn = said(0, "test boot::a ... ok", "test boot::b ... a word of its own", "ok", "test run::c ... ok", result(3, 0))
        self.assertEqual([counts.passed for _, counts, _ in rooms.judge(torn)], [2, 1])
        crashed = said(139, "test boot::a ... ok", "test boot::b ... ok", "test run::c ... ok", result(3, 0))
        self.assertEqual(sum((counts for _, counts, _ in rooms.judge(crashed)), Counts()), Counts(3, 1, 0))

    def test_a_host_that_stood_still_is_tried_once_more_and_a_test_that_failed_is_not(self):
        script = 'echo >>$P/tries; [ $(wc -l <$P/tries) -gt $GOOD ] || exit $CODE; echo "test a::b ... ok"'
        for good, code, tries, counts in ((1, 70, 2, Counts(passed=1)), (2, 70, 2, Counts(failed=1)), (1, 1, 1, Counts(failed=1))):
            runner = self.runner()
            runner.together(lane([Rooms(["a::b"], ["sh", "-c", script], env={"GOOD": str(good), "CODE": str(code)})]))
            with open(f"{self.place}/tries") as file:
                self.assertEqual(len(file.readlines()), tries)
            os.unlink(file.name)
            self.assertEqual(runner.counts, counts, self.heard)

    def test_few_tests_that_failed_are_tried_once_more_alone_and_told(self):
        result = "test result: ok. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in 9s".format
        suite = Suite("unit", ["cargo", "test"], {"A": "1"})
        begun = "running 9 tests"
        again = suite.failed_alone(said(101, begun, "test a::b ... FAILED", result(8, 1), begun, result(9, 0)))
        self.assertEqual((again.name, again.command, again.env), ("unit-again", ["cargo", "test", "--", "--exact", "a::b"], {"A": "1"}))
        many = [f"test a::{n} ... FAILED" for n in range(4)]
        for lines in ([begun, *many, result(5, 4)],  # no accident
                      [begun, "test a ... FAILED", result(8, 1), begun],  # one of two programs crashed
                      [begun, "test a ... FAILED", result(7, 2)],  # a failure without a name
                      [begun, result(9, 0)]):
            self.assertIsNone(suite.failed_alone(said(101, *lines)), lines)
        rooms = Rooms(["run::a", "run::b"], ["program"], limit=7)
        again = rooms.failed_alone(said(101, begun, "test run::a ... ok", "test run::b ... FAILED", result(1, 1)))
        self.assertEqual((again.name, again.command, again.limit), ("e2e-run-again", ["program", "--exact", "run::b"], 7))
        self.assertIsNone(Job("fmt", ["false"]).failed_alone(said(1, begun, "test a ... FAILED", result(1, 1))))

        # A program whose test fails the first time, or always.
        script = (f'echo >>$P/tries; echo "{begun}"; if [ $(wc -l <$P/tries) -gt $BAD ]; then echo "test a::b ... ok"; echo "{result(1, 0)}"; '
                  f'else echo "test a::b ... FAILED"; echo "{result(0, 1)}"; exit 101; fi')
        for bad, counts, told in ((1, Counts(passed=1), True), (2, Counts(failed=1), False)):
            for job in (Suite("unit", ["sh", "-c", script], {"BAD": str(bad)}), Rooms(["a::b"], ["sh", "-c", script], env={"BAD": str(bad)})):
                runner, self.heard = self.runner(), []
                runner.together(lane([job]))
                self.assertEqual(runner.counts, Counts(), self.heard)
                runner.unstable_alone()
                self.assertEqual(runner.counts, counts, self.heard)
                self.assertEqual(any("UNSTABLE a::b" in line for line in self.heard), told, self.heard)
                with open(f"{self.place}/tries") as file:
                    self.assertEqual(len(file.readlines()), 2)
                os.unlink(file.name)

    def test_what_each_test_took_is_written_the_longest_first(self):
        runner = self.runner()
        runner.took = schedule.took(said(0, "compiling", "running 2 tests", "test a ... ok", "a word", "test b ... ok"))
        runner.write_took()
        with open(f"{self.place}/seconds") as file:
            self.assertEqual(file.read(), "    2.0 b\n    1.0 a\n")

    def test_small_rooms_share_a_host_and_the_longest_begin(self):
        groups = schedule.shared({"a": 200, "b": 20, "c": 30, "d": 50, "e": 5}, 60)
        self.assertEqual(groups, [(200, ["a"]), (55, ["d", "e"]), (50, ["c", "b"])])

    def test_seconds_are_kept_and_a_broken_file_is_none(self):
        seconds = schedule.Seconds(f"{self.place}/seconds")
        self.assertEqual(seconds.of("a", 7), 7)
        seconds.known["a"] = 3.0
        seconds.keep()
        self.assertEqual(schedule.Seconds(seconds.path).of("a", 7), 3)
        write(f"{self.place}/elsewhere", '{"a": 5, "b": 6}')
        both = schedule.Seconds(seconds.path, f"{self.place}/elsewhere")
        self.assertEqual([both.of(name, 7) for name in "abc"], [3, 6, 7])
        both.keep()
        self.assertEqual(schedule.Seconds(seconds.path).of("b", 7), 7)
        for broken in ("{", "[]", '{"a": "x"}', '{"a": []}'):
            write(seconds.path, broken)
            self.assertEqual(schedule.Seconds(seconds.path).of("a", 7), 7)


class Program(unittest.TestCase):
    """A whole program with a job that has children of its own."""

    def start(self, job):
        place = self.enterContext(tempfile.TemporaryDirectory())
        script = textwrap.dedent(f"""
            import collections, sys
            sys.dont_write_bytecode = True
            sys.path.insert(0, {os.path.dirname(schedule.__file__)!r})
            import schedule
            runner = schedule.Runner({place!r}, schedule.Tokens(1, {place!r}), schedule.Seconds({place + "/seconds"!r}))
            jobs = collections.deque([{job}])
            schedule.finish(runner, lambda: runner.together(jobs, jobs))
        """)
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)

    def test_the_last_line_has_the_counts_and_the_exit_code_is_honest(self):
        for job, code, line in (('schedule.Job("a", ["true"])', 0, "1 passed, 0 failed, 0 skipped"),
                                ('schedule.Job("a", ["false"])', 1, "0 passed, 1 failed, 0 skipped"),
                                ('schedule.Suite("a", ["true"])', 1, "0 passed, 1 failed, 0 skipped"),
                                ("", 1, "0 passed, 0 failed, 0 skipped")):
            process = self.start(job)
            out = process.communicate()[0]
            self.assertEqual((process.returncode, out.splitlines()[-1]), (code, line), out)

    def test_a_signal_ends_everything_that_was_begun(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            command = ["sh", "-c", 'sleep 1000 & echo $! >"$0/child.part"; mv "$0/child.part" "$0/child"; echo begun >"$0/begun"; wait']
            place = self.enterContext(tempfile.TemporaryDirectory())
            os.mkfifo(f"{place}/begun")
            process = self.start(f"schedule.Job('long', {[*command, place]!r})")
            with open(f"{place}/begun") as begun:
                begun.read()
            process.send_signal(number)
            out = process.communicate(timeout=60)[0]
            self.assertEqual(process.returncode, 128 + number)
            self.assertEqual(out, f"ended by {number.name}; until then 0 passed, 0 failed, 0 skipped\n")
            self.assertFalse(alive(f"{place}/child"))


def write(path, text):
    """Makes a file."""
    with open(path, "w") as file:
        file.write(text)


def alive(path):
    """Whether the process whose number is in a file still runs."""
    with open(path) as file:
        stat = f"/proc/{file.read().strip()}/stat"
    try:
        with open(stat) as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
