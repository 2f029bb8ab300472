"""A certificate made on the spot, for https on a network where nobody signs one: browsers warn once, and then trust it.

By ``cryptography`` where it is installed, else by the ``openssl`` of this machine.
"""

import datetime
import hashlib
import importlib.util
import ipaddress
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kdexport.errors import KDExportError

DAYS = 14  # browsers refuse those that live long (iOS: 825 days, others 398)
SECONDS = 60


def context_for(names: Sequence[str]) -> tuple[ssl.SSLContext, str]:
    """Return a server's TLS context with a fresh certificate, and its SHA-256 as browsers show it.

    Args:
        names: Host names and addresses that it is for.

    Raises:
        KDExportError: Neither cryptography nor openssl is there, or openssl fails.
    """
    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:  # 0700; the key is gone once it is loaded
        key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
        if importlib.util.find_spec("cryptography") is not None:
            _by_cryptography(names, key, certificate)
        else:
            _by_openssl(names, key, certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))).hexdigest().upper()
    return context, ":".join(digest[start : start + 2] for start in range(0, len(digest), 2))


def _by_cryptography(names: Sequence[str], key_file: Path, certificate_file: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kdexport bench")])
    now = datetime.datetime.now(datetime.UTC)
    others: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name) for name in names
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a phone's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(others), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(
        key_file,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _by_openssl(names: Sequence[str], key_file: Path, certificate_file: Path) -> None:
    openssl = shutil.which("openssl")
    hint = "pip install 'kdexport[web]', or take plain http: a phone on a cable has a secure context by adb reverse"
    if openssl is None:
        raise KDExportError("--https needs a certificate, and neither cryptography nor openssl is here", hint=hint)
    others = ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    command = [
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(DAYS),
        "-subj", "/CN=kdexport bench", "-addext", f"subjectAltName={others}", "-addext", "extendedKeyUsage=serverAuth",
        "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(key_file), "-out", str(certificate_file),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        said = " ".join(done.stderr.split())
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not (key_file.is_file() and certificate_file.is_file()):
        raise KDExportError(f"openssl makes no certificate: {said[-200:]}", hint=hint)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
