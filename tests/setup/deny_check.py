"""What deny.toml forbids is found; run by check.sh."""
import copy
import os
import runpy
import tomllib
import types
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
deny = types.SimpleNamespace(**runpy.run_path(f"{HERE}/deny"))
with open(f"{HERE}/../../deny.toml", "rb") as file:
    CONFIG = tomllib.load(file)


def package(name="a", version="1.0.0", licence="MIT", source=deny.CRATES_IO, dependencies=()):
    """A package as `cargo metadata` tells it."""
    return {"name": name, "version": version, "license": licence, "source": source, "dependencies": list(dependencies)}


def found(packages=(), lock=(), config=CONFIG):
    """What is wrong with these."""
    return list(deny.problems(config, list(packages), {"package": list(lock)}))


class Deny(unittest.TestCase):
    def test_licences(self):
        for good in ("MIT", "MIT OR GPL-3.0-only", "GPL-2.0/MIT", "(MIT OR X) AND ISC", "Apache-2.0 WITH LLVM-exception OR X", "X OR Y AND Z OR ISC"):
            self.assertEqual(found([package(licence=good)]), [])
        for bad in ("GPL-3.0-only", "MIT AND GPL-2.0", "MIT WITH X", "(MIT OR ISC) AND X", None, "", "MIT ISC", "(MIT", "MIT OR", "AND", ")"):
            self.assertRegex(" ".join(found([package(licence=bad)])), "^a 1.0.0: its licence", bad)

    def test_sources(self):
        self.assertEqual(found(lock=[{"name": "own", "version": "0"}, {"name": "a", "version": "1", "source": deny.CRATES_IO, "checksum": "0"}]), [])
        for source in ("git+https://example.invalid/a", "registry+https://example.invalid/index"):
            self.assertIn(f"comes from {source}", found(lock=[{"name": "a", "version": "1", "source": source, "checksum": "0"}])[0])
        self.assertRegex(found(lock=[{"name": "a", "version": "1", "source": deny.CRATES_IO}])[0], "no checksum")

    def test_versions(self):
        two = [package("vm-memory", "0.17.0"), package("vm-memory", "0.18.0")]
        self.assertRegex(found(two)[0], "vm-memory: 0.17.0 and 0.18.0 are both built")
        self.assertEqual(found([package("other", "1.0.0"), package("other", "2.0.0")]), [])
        own = package("own", source=None, dependencies=[{"name": "b", "req": "*"}, {"name": "c", "req": "*", "path": "/c"}, {"name": "d", "req": "^1"}])
        self.assertEqual(found([own]), ["own 1.0.0: depends on b in any version: write which"])

    def test_a_setting_that_is_not_followed_is_an_error(self):
        changes = ({"advisories": {"yanked": "deny"}}, {"bans": {"multiple-versions": "deny"}}, {"sources": {"allow-git": ["x"]}},
                   {"bans": {"deny": [{"crate": "openssl"}]}})
        for change in changes:
            config = copy.deepcopy(CONFIG)
            for table, settings in change.items():
                config.setdefault(table, {}).update(settings)
            self.assertRegex(" ".join(found(config=config)), "is not known to tests/setup/deny")


if __name__ == "__main__":
    unittest.main()
