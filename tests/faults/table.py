"""The table of what became of each fault, as a page of docs/."""
import collections
import datetime
import subprocess

COLUMNS = {
    "as if nothing had been": "as if nothing had been",
    "goes on, and says so": "goes on, and says so",
    "the guest is told": "the guest is told",
    "a sentence and the code of failure": "a sentence and code",
    "what cannot be removed stays": "cannot be removed, stays",
    "counts as removed": "counts as removed",
    "the peer counts as gone": "peer counts as gone",
    "the reader of the console has gone: code 141": "reader gone, 141",
}
HEAD = """# System calls that fail

Every system call that these programs make was made to fail, once a run, with the errors that its manual page names and that a correct
program can meet (`tests/faults/calls.py`), by `make faults` (%s, revision %s, Linux %s). A program runs as it is shipped, with its lists of system
calls: a tracer puts a harmless call in the place of the one that fails, and the error in the place of its answer (`tests/faults/tracer.py`). What the C library does
before a program's own first line is left out: it ends a process that it cannot begin.

A run is right if it is as if nothing had been; or goes on, and says what it goes on without; or a device tells its guest; or if the program ends
within %s s of the call with a sentence and code 125, of `nelly image` and `nelly stop` 1 (141 if nobody reads the console any more). EINTR, EAGAIN of what can be waited for, and short reads and writes must be as if nothing had been, and
without a word. EIO, ENOSPC and EDQUOT of `fsync`, `fdatasync` and the `pwrite` calls must be told to somebody.
A socket that the host does not let be removed at the end stays, without a word, and the next start finds its path taken. A console whose peer is said to be gone loses its output. What is said not to be there needs no removal, and a store without an index is a new one ("counts as removed"). No run may end by a signal or a panic, hang, or leave a process, a file or a socket behind, and after each failure the same start must work.

A pull makes requests again, and may go on for a minute. Commands for sandboxes are run over a monitor that plays its guest (`tests/src/bin/played-guest`), of which no call fails. They wait by edges (epoll), where EAGAIN without a reason has no
edge after it, so that it is not tried there; nor is EINTR of a write to a descriptor that counts and does not wait.

Of a call that a thread makes often, the first %d, the middle one and the last %d were tried. The ways:

%s

%d faults, %d of them wrong; %d more were not made, for a thread does not always make the same calls.

| program | call | error | tried | %s | wrong |
|---|---|---|---|%s---|
"""

LIMITS = """
## Below limits of memory and descriptors

Each way was run below limits of the process: from the least with which the program comes to its own first line, in even steps, to the
least that is enough. Below that, it ends with a sentence and code 125.

| way | limit | the program begins | enough | tried | wrong |
|---|---|---|---|---|---|
"""


def text(results, seconds, first, last, described, limited):
    """The page."""
    rows = collections.defaultdict(collections.Counter)
    not_made = 0
    for _, (program, _, call, _), error, word, wrong, _ in results:
        if word == "not made this time":
            not_made += 1
            continue
        rows[program, call, error]["wrong" if wrong else COLUMNS[word]] += 1
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    kernel = subprocess.run(["uname", "-r"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    total = sum(count for row in rows.values() for count in row.values())
    wrong = sum(row["wrong"] for row in rows.values())
    names = list(COLUMNS.values())
    page = HEAD % (datetime.date.today(), revision, kernel, seconds, first, last, described, total, wrong, not_made, " | ".join(names), "---|" * len(names))
    for (program, call, error), row in sorted(rows.items()):
        cells = [str(row[name]) if row[name] else "" for name in [*names, "wrong"]]
        page += f"| {program} | {call} | {error} | {sum(row.values())} | {' | '.join(cells)} |\n"
    page += LIMITS
    for way, name, begins, enough, tried, bad in limited:
        page += f"| {way} | {name} | {begins} | {enough} | {tried} | {len(bad) or ''} |\n"
    return page
