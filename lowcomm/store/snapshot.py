"""Snapshots: a version as files, its manifest last. Tensors as safetensors, the rest as canonical JSON.

snapshots/V-INC/fragment-000.safetensors ...   weights, outer optimizer, aggregator; cut where a store needs it
snapshots/V-INC/state.json                     all but tensors
snapshots/V-INC/manifest.json                  sizes and sha256 of the files, and the digest of the state
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from lowcomm.store import keys, text
from lowcomm.store.chain_state import MOST_REST_BYTES, ChainState, FragmentState
from lowcomm.store.commit import Announced
from lowcomm.store.objects import Objects
from lowcomm.store.parts import Upload
from lowcomm.store.rules import ChainRules
from lowcomm.types import PayloadError

FORMAT = 1
STATE = "state.json"
_FILE = re.compile(r"state\.json|fragment-\d{3,5}\.safetensors(\.p\d{2,5})?")
_FIELDS = ("format", "run_id", "version", "state", "files")
MOST_STATES = 8
"""Vectors of a fragment's size that a snapshot may hold for it: weights, outer optimizer, aggregator."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The last file of a snapshot."""

    run_id: str
    version: int
    state: str
    """Digest of the state."""
    files: tuple[tuple[str, int, str], ...]
    """Name, bytes, sha256; the files of a fragment one after the other."""

    def write(self) -> bytes:
        """Its canonical text."""
        return text.write({
            "format": FORMAT, "run_id": self.run_id, "version": self.version, "state": self.state,
            "files": [list(f) for f in self.files],
        })  # fmt: skip

    @classmethod
    def read(cls, raw: bytes) -> Manifest:
        """Raises PayloadError."""
        found = text.fields(text.read(raw), _FIELDS, "a manifest")
        text.whole(found, "format", FORMAT, FORMAT)
        return cls(
            run_id=text.string(found, "run_id", text.INCARNATION),
            version=text.whole(found, "version", 0, keys.MOST),
            state=text.string(found, "state", text.SHA256),
            files=tuple(_file(row) for row in text.rows(found, "files")),
        )


class SnapshotWriter:
    """A version on its way into the store, file by file: `go` until it is True."""

    def __init__(self, state: ChainState, inc: str, rules: ChainRules, part_bytes: int) -> None:
        folder = keys.snapshot(state.version, inc)
        files = _files(state, part_bytes)
        manifest = Manifest(
            run_id=rules.run_id,
            version=state.version,
            state=state.digest,
            files=tuple((name, len(data), text.sha256(data)) for name, data in files),
        ).write()
        self._upload = Upload([*((folder + name, data) for name, data in files), (folder + keys.MANIFEST, manifest)])
        self.announced = Announced(version=state.version, key=folder + keys.MANIFEST, sha256=text.sha256(manifest))

    def go(self, objects: Objects) -> bool:
        """Create what is left; False: something was not seen to arrive, call it again. Raises StoreError."""
        while not self._upload.done:
            if not self._upload.step(objects):
                return False
        return True


def read_manifest(objects: Objects, key: str) -> tuple[Manifest, str] | None:
    """A manifest and its sha256; None: it can't be read, or is none."""
    raw = objects.get_range(key, 0, text.MOST_BYTES + 1)
    try:
        return None if raw is None else (Manifest.read(raw), text.sha256(raw))
    except PayloadError:
        return None


def load(objects: Objects, key: str, manifest: Manifest, rules: ChainRules) -> ChainState | None:
    """The version that a manifest names, checked against its digest; None: a file can't be read.

    Raises PayloadError for files that are not what the manifest says.
    """
    _check_sizes(manifest, rules)
    folder = key.removesuffix(keys.MANIFEST)
    held: dict[str, list[bytes]] = {}
    for name, size, digest in manifest.files:
        data = objects.get_range(folder + name, 0, size + 1)
        if data is None:
            return None
        if (len(data), text.sha256(data)) != (size, digest):
            raise PayloadError(f"{folder}{name} is not what its manifest names")
        held.setdefault(name.partition(".safetensors.p")[0].removesuffix(".safetensors"), []).append(data)
    try:
        rest = text.read(b"".join(held[STATE]), MOST_REST_BYTES)
        fragments = tuple(
            _fragment(b"".join(held[f"fragment-{i:03d}"]), rest["fragments"][i], rules, i)
            for i in range(len(rules.layouts))
        )
        state = ChainState.of(fragments, rest)
        found = (state.digest, state.version)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise PayloadError(f"{folder} holds no state: {error!r}") from error
    if found != (manifest.state, manifest.version):
        raise PayloadError(f"{folder} has the digest {found[0][:12]}, its manifest says {manifest.state[:12]}")
    return state


def state_bytes(state: ChainState) -> int:
    """About what a snapshot holds."""
    return sum(t.numel() * t.element_size() for f in state.fragments for t in f.tensors.values())


def _files(state: ChainState, part_bytes: int) -> list[tuple[str, bytes]]:
    files: list[tuple[str, bytes]] = []
    for index, fragment in enumerate(state.fragments):
        name, data = f"fragment-{index:03d}.safetensors", safetensors.torch.save(fragment.tensors)
        if len(data) <= part_bytes:
            files.append((name, data))
        else:
            cuts = range(0, len(data), part_bytes)
            files += [(f"{name}.p{k:02d}", data[at : at + part_bytes]) for k, at in enumerate(cuts)]
    return [*files, (STATE, text.write(state.rest, MOST_REST_BYTES))]


def _fragment(data: bytes, values: Any, rules: ChainRules, index: int) -> FragmentState:
    tensors = safetensors.torch.load(data)
    numel = rules.layouts[index].numel
    if tuple(tensors["weights"].shape) != (numel,):
        raise PayloadError(f"fragment {index} has the shape {tuple(tensors['weights'].shape)}, expected ({numel},)")
    return FragmentState.of(tensors, values)


def _check_sizes(manifest: Manifest, rules: ChainRules) -> None:
    """Before anything is read."""
    if manifest.run_id != rules.run_id:
        raise PayloadError(f"the snapshot is of run {manifest.run_id}, this is {rules.run_id}")
    most = MOST_REST_BYTES + sum(4 * MOST_STATES * layout.numel + (1 << 20) for layout in rules.layouts)
    total = sum(size for _, size, _ in manifest.files)
    if total > most:
        raise PayloadError(f"the snapshot says that it has {total} bytes: {most} are possible")


def _file(row: Any) -> tuple[str, int, str]:
    if not isinstance(row, list) or len(row) != 3:
        raise PayloadError(f"a file of a manifest is {str(row)[:100]}, expected [name, bytes, sha256]")
    found = {"name": row[0], "bytes": row[1], "sha256": row[2]}
    return (
        text.string(found, "name", _FILE),
        text.whole(found, "bytes"),
        text.string(found, "sha256", text.SHA256),
    )
