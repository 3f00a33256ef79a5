"""Finds a version to begin with: the newest snapshot that the chain confirms and that can be read."""

from __future__ import annotations

from lowcomm.store import keys, snapshot, text
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.objects import Objects
from lowcomm.store.rules import ChainRules
from lowcomm.store.run_file import RunFile
from lowcomm.types import PayloadError


class Healer:
    """Each `load` takes the next candidate: files may have vanished, payloads behind an old one may be lost."""

    def __init__(self, objects: Objects, run: RunFile, rules: ChainRules) -> None:
        self.objects, self.run, self.rules = objects, run, rules
        self.tries = 0
        self.why = ""
        """Why the last candidate could not be taken."""

    def load(self, beyond: int | None = None) -> ChainState | None:
        """A version that the chain confirms; None: none now, call it again. Raises StoreError.

        beyond: a version whose commit can't be applied, so that one behind it is wanted.
        """
        found = self._candidates()
        if beyond is not None:
            behind = [key for key in found if (keys.version_of_snapshot(key) or 0) > beyond]
            found = behind or found
        self.tries += 1
        if not found:
            self.why = "no snapshot can be read"
            return None
        key = found[(self.tries - 1) % len(found)]
        read = snapshot.read_manifest(self.objects, key)
        if read is None:
            self.why = f"{key} can't be read"
            return None
        manifest, sha256 = read
        if not self._confirmed(key, manifest, sha256):
            self.why = f"no commit confirms {key}"
            return None
        try:
            state = snapshot.load(self.objects, key, manifest, self.rules)
        except PayloadError as error:
            self.why = str(error)
            return None
        self.why = "" if state is not None else f"a file of {key} can't be read"
        return state

    def newer_than(self, version: int) -> bool:
        """Whether a snapshot of a later version is there."""
        return any(v > version for v, _ in self._manifests())

    def _manifests(self) -> list[tuple[int, str]]:
        listed = [one.key for one in self.objects.list(keys.SNAPSHOTS) if keys.is_manifest(one.key)]
        return [(v, key) for key in listed if (v := keys.version_of_snapshot(key)) is not None]

    def _candidates(self) -> list[str]:
        """Keys of manifests, the newest first; those after which no commit shows that this machine folds alike last."""
        found = self._manifests()
        if not any(key == self.run.snapshot.key for _, key in found):
            found.append((0, self.run.snapshot.key))
        oldest = min(v for v, _ in found)
        after = keys.commit(oldest - 1) if oldest > 0 else None
        commits = [keys.version_of_commit(one.key) for one in self.objects.list(keys.COMMITS, after)]
        newest = max((v for v in commits if v is not None), default=-1)
        return [key for _, key in sorted(found, key=lambda one: (one[0] < newest, *one), reverse=True)]

    def _confirmed(self, key: str, manifest: snapshot.Manifest, sha256: str) -> bool:
        """Whether the commit of that version names its digest, or a later one the snapshot; snapshot 0: `run.json`."""
        first = self.run.snapshot
        if (key, sha256) == (first.key, first.sha256):
            return True
        for version in range(manifest.version, manifest.version + self.rules.stale):
            raw = self.objects.get_range(keys.commit(version), 0, text.MOST_BYTES + 1)
            if raw is None:
                return False
            try:
                commit = Commit.read(raw)
            except PayloadError:
                continue
            if version == manifest.version and commit.state == manifest.state:
                return True
            if commit.snapshot is not None and (commit.snapshot.key, commit.snapshot.sha256) == (key, sha256):
                return True
        return False
