"""Runs below a limit: how much memory a process may have, and how many descriptors. Where a run fits it is as ever; below, it ends with
a sentence and the code of failure."""
import os
import resource
import shutil
import tempfile

import ways

# What is limited, the most that any way needs, and how many steps below that are tried.
LIMITS = {
    "RLIMIT_AS": (resource.RLIMIT_AS, 1 << 26),
    "RLIMIT_DATA": (resource.RLIMIT_DATA, 1 << 26),
    "RLIMIT_NOFILE": (resource.RLIMIT_NOFILE, 128),
}
STEPS = 32


class Limited:
    """A way below a limit."""

    def __init__(self, way, limit, value):
        self.way, self.limit, self.value = way, limit, value

    def words(self, folder):
        return self.way.words(folder) if self.way else (None, {})

    def child(self, folder):
        if self.way:
            self.way.child(folder)
        resource.setrlimit(self.limit, (self.value, self.value))


def fits(way, scratch, name, value):
    """Whether a run is as ever below a limit: what it came to, and what is wrong."""
    folder = tempfile.mkdtemp(dir=scratch)
    os.rmdir(folder)
    way.prepare(folder)
    try:
        done = ways.untraced(Limited(way, LIMITS[name][0], value), folder)
        if done == "hangs":
            return False, "hangs"
        code, out, err = done
        if code == 0 and out.endswith("off\n") and "fails" not in out:
            return True, ""
        if code == 0 and out.endswith("off\n"):
            return False, ""
        if code == way.failed and err.startswith("nelly") and "panicked" not in err:
            more = way.left_behind(way.after(folder), {**dict.fromkeys(("raw", "qcow2", "log", "share", "config", "result"))})
            return False, f"left behind: {more}" if more else ""
        return False, f"code {code}, said {err.strip()!r}"
    finally:
        shutil.rmtree(folder)


def least(most, works):
    """The least value that works, about."""
    enough, too_little = most, 0
    while enough - too_little > most // 512 + 1:
        middle = (enough + too_little) // 2
        enough, too_little = (middle, too_little) if works(middle) else (enough, middle)
    return enough


def sweep(way, scratch, steps=STEPS):
    """Each limit: the least value with which the program comes to its own first line (before, its C library ends it), the least that
    is enough, how many between these were tried, and what went wrong.
    """
    for name, (limit, most) in LIMITS.items():
        version = [way.words("")[0][0], "--version"]
        begins = least(most, lambda value: ways.untraced(Limited(None, limit, value), "", version)[:1] == (0,))
        enough = least(most, lambda value: fits(way, scratch, name, value)[0])
        values = sorted({begins + (enough - begins) * step // steps for step in range(steps + 1)})
        wrong = [(value, what) for value in values for what in [fits(way, scratch, name, value)[1]] if what]
        yield name, begins, enough, len(values), wrong
