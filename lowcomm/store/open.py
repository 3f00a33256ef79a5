"""From the address of a run to its store: a directory, `s3://`, `gs://` or `az://`.

Credentials come from the environment or the cloud's own chain (a role of the machine, workload identity), never from
the address. `AWS_ENDPOINT_URL` names another server that speaks S3 (R2, MinIO); plain HTTP is for this machine only,
unless `AWS_ALLOW_HTTP=true` asks for it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lowcomm.store.directory import DirectoryObjects
from lowcomm.store.objects import KEY, Objects, StoreError
from lowcomm.store.remote import Build, RemoteObjects
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

FIELD = "store"
ADDRESSES = "a directory, s3://BUCKET/RUN, gs://BUCKET/RUN or az://CONTAINER/RUN"
SLIP = re.compile(r"(s3|gs|az|https?|file):", re.IGNORECASE)
"""An address that was meant, and would become a directory of this name here."""
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def open_objects(url: str, *, make: bool = False) -> Objects:
    """The store at an address, after one listing that shows that it answers; `make`: a missing directory is made.

    Raises ConfigError.
    """
    try:
        objects = _unlooked(url, make=make)
        objects.list("control/")
    except StoreError as error:
        raise ConfigError(str(error)) from error
    return objects


def is_bucket(url: str) -> bool:
    """Whether an address names something else than a directory."""
    return "://" in url and not url.startswith("file://")


def _unlooked(url: str, *, make: bool) -> Objects:
    if not is_bucket(url):
        path = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else Path(url).expanduser()
        require(bool(url.strip()), FIELD, url, ADDRESSES, "name a directory or a bucket")
        meant = SLIP.match(url) and not url.startswith("file://")
        require(not meant, FIELD, url, ADDRESSES, "write one of these, with ./ before a directory of such a name")
        require(not path.is_file(), FIELD, url, "a directory, not a file", "name a directory")
        return DirectoryObjects.make(path) if make else DirectoryObjects(path)
    scheme, bucket, prefix = parse(url)
    if importlib.util.find_spec("obstore") is None:
        raise ConfigError(
            f"{FIELD} = {url!r} needs obstore, which is not installed. Fix: pip install 'lowcomm[store]', or use a "
            f"directory."
        )
    options: ClientConfig = _http_options(os.environ) if scheme == "s3" else {}
    where = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    return RemoteObjects(_client(scheme, bucket, prefix, options), where=where)


def parse(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix (no slash at its ends, may be empty). Raises ConfigError."""
    parts = urlsplit(url)
    shown = url if not (parts.username or parts.query or parts.fragment) else f"{parts.scheme}://..."
    require(parts.scheme in ("s3", "gs", "az"), FIELD, shown, ADDRESSES, "use one of these schemes")
    bare = not (parts.username or parts.password or parts.query or parts.fragment or ":" in parts.netloc)
    require(bare, FIELD, shown, "no user, key, port or query in an address", "put credentials into the environment")
    require(
        BUCKET.fullmatch(parts.netloc) is not None,
        FIELD,
        shown,
        f"{ADDRESSES}; a bucket has 3 to 222 of a-z 0-9 . _ -",
        "name the bucket",
    )
    require(
        not parts.netloc.endswith("--x-s3"),
        FIELD,
        shown,
        "no S3 Express bucket: its listings have no order",
        "use a general purpose bucket",
    )
    prefix = parts.path.strip("/")
    require(
        not prefix or KEY.fullmatch(prefix) is not None,
        FIELD,
        shown,
        "the name of a run is up to 8 words of A-Z a-z 0-9 _ . -, joined by /",
        "rename it",
    )
    return parts.scheme, parts.netloc, prefix


def _http_options(environment: Mapping[str, str]) -> ClientConfig:
    """Whether plain HTTP is allowed. Raises ConfigError where it would leave this machine unasked."""
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), "")
    if not endpoint.startswith("http://"):
        return {}
    host = urlsplit(endpoint).hostname or ""
    require(
        _is_loopback(host) or environment.get("AWS_ALLOW_HTTP", "").lower() == "true",
        "AWS_ENDPOINT_URL",
        f"http://{host}",
        "https:// (plain HTTP only for this machine)",
        "use https, or set AWS_ALLOW_HTTP=true on a private network",
    )
    return {"allow_http": True}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _client(scheme: str, bucket: str, prefix: str, asked: ClientConfig) -> Build:
    """A client of the bucket, made from the environment, for options that differ by request."""

    def build(options: ClientConfig) -> ObjectStore:
        from obstore.store import AzureStore, GCSStore, S3Store

        options |= asked
        retry: RetryConfig = {"max_retries": 0}
        below = prefix or None
        if scheme == "gs":
            return GCSStore(bucket, prefix=below, client_options=options, retry_config=retry)
        if scheme == "az":
            return AzureStore(bucket, prefix=below, client_options=options, retry_config=retry)
        single = True  # not all that speak S3 delete several objects at once
        return S3Store(bucket, prefix=below, disable_bulk_delete=single, client_options=options, retry_config=retry)

    return build
