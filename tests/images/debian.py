"""Images of Debian packages, made once in the cache."""
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

from oci import Layer, Layout, contents, tagged

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.realpath(f"{HERE}/../..")


def make(place, root, without, config, more):
    """The image's layout at `place`, of a tar archive."""
    layer = Layer()
    whole = tarfile.open(root)
    for entry in whole:
        if not entry.name.startswith(without) and not (entry.islnk() and entry.linkname.startswith(without)):
            layer.tar.addfile(entry, whole.extractfile(entry) if entry.isreg() else None)
    more(layer)
    layout = Layout(place)
    config = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], **config}
    layout.index([layout.image([layer.finished()], config, how="plain", **tagged())])


def image(name, packages, without, config, more, of):
    """The directory of a Debian by mmdebstrap (packaging/clean-root) with these packages, as an OCI layout with the tag `v1`: without
    files whose names begin with one of `without`, with what `more` adds to the layer, which is made of the files `of`."""
    root = subprocess.run([f"{TOP}/packaging/clean-root", name, packages], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    cache = f"{os.path.dirname(os.path.dirname(root))}/images"
    os.makedirs(cache, exist_ok=True)
    made_of = b"".join(contents(path) for path in (sys.argv[0], __file__, f"{HERE}/oci.py", *of))
    place = f"{cache}/{name}-{hashlib.sha256(made_of + root.encode()).hexdigest()[:12]}"
    with open(f"{cache}/.{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(place):
            part = tempfile.mkdtemp(prefix=".", dir=cache)
            try:
                make(f"{part}/layout", root, without, config, more)
                os.rename(f"{part}/layout", place)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    os.utime(place)
    return place
