"""The certificate of a server and the keys of its clients, made on the spot with the library that Flower uses.

    DIRECTORY/ca.crt                 for everybody: who holds it can tell the server from an impostor
    DIRECTORY/server/                server.crt, server.key
    DIRECTORY/client-K/              node.key (stays there), node.pub (goes to the server), worker.secret

The key that signs the server's certificate is forgotten: nobody can sign another server with it. Node keys are EC keys
on P-384 in OpenSSH's format, as Flower reads them. Private files are for their owner only (mode 0600).
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.federation.engine import need_flower
from lowcomm.private_files import make_directory
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, GeneralName, KeyUsage

MOST_CLIENTS = 1024
CONNECT_S = 10.0


def make_keys(directory: Path, clients: int, host: str, days: int) -> None:
    """Write everything for one server at `host` and `clients` clients, 0 where clients make their own keys.

    Never overwrites. Raises ConfigError.
    """
    need_flower()
    require(0 <= clients <= MOST_CLIENTS, "clients", clients, f"0 to {MOST_CLIENTS}", "pass --clients 3")
    require(1 <= days <= 3650, "days", days, "1 to 3650", "pass --days 90")
    require(host != "", "host", host, "an address or a name", "pass the address that clients will connect to")
    if (directory / "ca.crt").exists():
        raise ConfigError(f"{directory} holds keys already. Fix: use these, or name another --directory")
    try:
        authority, certificate, key = _certificates(host, days)
        for name in ("server", *(f"client-{k}" for k in range(clients))):
            make_directory(directory / name)
        _write(directory / "server" / "server.key", _pem(key), 0o600)
        _write(directory / "server" / "server.crt", certificate, 0o644)
        for k in range(clients):
            _write_node(directory / f"client-{k}")
        _write(directory / "ca.crt", authority, 0o644)
    except OSError as error:
        raise _unwritable(directory, error) from error


def make_node(directory: Path) -> None:
    """Write the keys of one client, on the machine where they stay. Never overwrites. Raises ConfigError."""
    need_flower()
    if (directory / "node.key").exists():
        raise ConfigError(f"{directory} holds keys already. Fix: use these, or name another --directory")
    try:
        make_directory(directory)
        _write_node(directory)
    except OSError as error:
        raise _unwritable(directory, error) from error


def fingerprint(public_key: Path) -> str:
    """Short name of a node's public key, to compare over the phone. Raises ConfigError."""
    try:
        return hashlib.sha256(public_key.read_bytes().split()[1]).hexdigest()[:16]
    except (OSError, IndexError) as error:
        raise ConfigError(f"{public_key} holds no public key. Fix: lowcomm federation keys") from error


def check_server(address: str, authority: Path, wait_s: float = 0.0) -> None:
    """Raise ConfigError unless a server at `address` (HOST:PORT, [IPV6]:PORT) shows a good certificate of `authority`.

    wait_s: how long to try again where nothing listens, which is said once.
    """
    host, port = _host_and_port(address)
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"ca = {str(authority)!r} is no certificate ({error}). Fix: get ca.crt from the server's owner"
        ) from error
    until, said = time.monotonic() + wait_s, False
    while True:
        try:
            with socket.create_connection((host, port), timeout=CONNECT_S) as plain:
                with context.wrap_socket(plain, server_hostname=host):
                    return
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(_fault(error, address, authority, _shown_by(host, port))) from error
        except (OSError, ssl.SSLError) as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"there is no TLS server at {address} ({error}). Fix: start it, or correct --superlink"
                ) from error
            if not said:
                print(f"waiting up to {wait_s:g} s for a TLS server at {address} ({error})", flush=True)
                said = True
        time.sleep(0.1)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"superlink = {address!r} is not allowed: HOST:PORT. Fix: write [{host}]:{port}")
    ok = host != "" and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    require(ok, "superlink", address, "HOST:PORT with a port from 1 to 65535", "pass --superlink 127.0.0.1:9092")
    return host, int(port)


NOT_YET_VALID, EXPIRED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64
"""X509_V_ERR_* of OpenSSL."""


def _fault(error: ssl.SSLCertVerificationError, address: str, authority: Path, shown: str) -> str:
    """What is wrong with the certificate that the server at `address` shows; shown: its SHA-256."""
    start = f"the server at {address} shows a certificate that"
    facts = f"({error.verify_message}; SHA-256 {shown})"
    if error.verify_code == EXPIRED:
        fix = "ask the server's owner for new ones (lowcomm federation keys), or correct this machine's clock"
        return f"{start} has expired, or that of {authority} has {facts}. Fix: {fix}"
    if error.verify_code == NOT_YET_VALID:
        return f"{start} is not valid yet {facts}. Fix: correct this machine's clock, or the server's"
    if error.verify_code in (OTHER_NAME, OTHER_ADDRESS):
        fix = "pass --superlink with the name that it was made for (lowcomm federation keys --host)"
        return f"{start} is for another name {facts}. Fix: {fix}"
    return f"{start} {authority} did not sign {facts}. Fix: get ca.crt from the server's owner by another way"


def _shown_by(host: str, port: int) -> str:
    try:
        certificate = ssl.get_server_certificate((host, port), timeout=CONNECT_S)
    except (OSError, ssl.SSLError):
        return "unknown, as it answers no longer"
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()[:32]


def _certificates(host: str, days: int) -> tuple[bytes, bytes, EllipticCurvePrivateKey]:
    """(certificate of the authority, certificate of the server, key of the server)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    signer, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    end = start + datetime.timedelta(days=days)

    def build(name: str, public: EllipticCurvePrivateKey, is_authority: bool) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lowcomm federation")])
        return (
            x509.CertificateBuilder(issuer, subject, public.public_key(), x509.random_serial_number(), start, end)
            .add_extension(
                x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True
            )
            .add_extension(_usage(is_authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )

    authority: Certificate = build("lowcomm federation", signer, True).sign(signer, hashes.SHA384())
    names = x509.SubjectAlternativeName([_general_name(host)])
    server = build(host, key, False).add_extension(names, critical=False).sign(signer, hashes.SHA384())
    pem = serialization.Encoding.PEM
    return authority.public_bytes(pem), server.public_bytes(pem), key


def _usage(is_authority: bool) -> KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _write_node(directory: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    ssh = serialization.PrivateFormat.OpenSSH
    private = key.private_bytes(serialization.Encoding.PEM, ssh, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(directory / "node.key", private, 0o600)
    _write(directory / "node.pub", public + b"\n", 0o644)
    _write(directory / "worker.secret", os.urandom(32).hex().encode(), 0o600)


def _unwritable(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(f"directory = {str(directory)!r} can't be written ({error.strerror}). Fix: another --directory")


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    pkcs8 = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """New files only, never readable by others even for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        f.write(data)
