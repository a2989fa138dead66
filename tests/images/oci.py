"""Layers and OCI image layouts, written byte by byte: what no tool makes, too."""
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
MEDIA = "application/vnd.oci.image"
# 2020-09-13 12:26:40 and a part of a second
TIME = 1_600_000_000.123456789


def contents(path):
    with open(path, "rb") as file:
        return file.read()


class Layer:
    """A tar archive in the making."""

    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind=tarfile.REGTYPE, data=b"", mode=0o644, owner=(0, 0), time=TIME, target="", device=(0, 0), xattrs=None):
        """An entry; `data` may be a pair of a file and its size."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname = kind, mode, target
        entry.uid, entry.gid = owner
        entry.mtime = time
        entry.devmajor, entry.devminor = device
        # Values of attributes are bytes, which tarfile would take for text.
        entry.pax_headers = {f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in (xattrs or {}).items()}
        file, entry.size = (io.BytesIO(data), len(data)) if isinstance(data, bytes) else data
        self.tar.addfile(entry, file)
        return self

    def directory(self, name, mode=0o755, **rest):
        return self.add(name, tarfile.DIRTYPE, mode=mode, **rest)

    def link(self, name, target, **rest):
        return self.add(name, tarfile.SYMTYPE, mode=0o777, target=target, **rest)

    def hard_link(self, name, target):
        return self.add(name, tarfile.LNKTYPE, target=target)

    def finished(self):
        """The archive, which ends with two empty blocks alone: zstd:chunked of skopeo 1.9 loses what else fills a record."""
        end = self.tar.offset + 2 * tarfile.BLOCKSIZE
        self.tar.close()
        return self.bytes.getvalue()[:end]


def compressed(tar, how):
    """A layer's stored bytes and the end of its media type."""
    if how == "plain":
        return tar, "tar"
    if how == "gzip":
        return gzip.compress(tar, 6, mtime=0), "tar+gzip"
    # in frames of a quarter of a mebibyte each, by the program
    frames = b""
    for start in range(0, len(tar), 1 << 18):
        frames += subprocess.run(["zstd", "-q", "-c", "-9"], input=tar[start:start + (1 << 18)], stdout=subprocess.PIPE, check=True).stdout
    return frames, "tar+zstd"


class Layout:
    """An OCI image layout."""

    def __init__(self, place):
        self.place = place
        os.makedirs(f"{place}/blobs/sha256")
        with open(f"{place}/oci-layout", "w") as file:
            file.write('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data, kind, **rest):
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{self.place}/blobs/sha256/{digest}", "wb") as file:
            file.write(data)
        return {"mediaType": f"{MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(data), **rest}

    def json(self, value, kind, **rest):
        return self.blob(json.dumps(value, sort_keys=True).encode(), kind, **rest)

    def image(self, layers, config, how="gzip", architecture=ARCHITECTURE, **rest):
        """A manifest; `layers` are tar archives."""
        diffs = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in layers]
        stored = [compressed(tar, how) for tar in layers]
        stored = [self.blob(data, f"layer.v1.{kind}") for data, kind in stored]
        config = {"architecture": architecture, "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": diffs}}
        config = self.json(config, "config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json", "config": config, "layers": stored}
        return self.json(manifest, "manifest.v1+json", **rest)

    def index(self, manifests):
        with open(f"{self.place}/index.json", "w") as file:
            json.dump({"schemaVersion": 2, "manifests": manifests}, file)


def tagged(name="v1"):
    return {"annotations": {"org.opencontainers.image.ref.name": name}}
