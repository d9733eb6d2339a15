"""Authority: signs certificates for tests."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """Writes `ca.pem`, and pairs of `NAME.pem` and `NAME.key`, into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {directory.name}")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        signed = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.ca = self._write("ca.pem", signed.sign(self._key, hashes.SHA256()))

    def settings(self, name: str = "worker", dns: str = "rtp-llm") -> dict[str, str]:
        """Of section worker, with a new certificate for this DNS name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.DNSName(dns)])
        signed = self._builder(subject, key).add_extension(alternative, critical=False)
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key_file = self._directory / f"{name}.key"
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
        return {
            "tls_cert_file": self._write(f"{name}.pem", signed.sign(self._key, hashes.SHA256())),
            "tls_key_file": str(key_file),
            "tls_ca_file": self.ca,
        }

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + 30 * DAY)
        )

    def _write(self, name: str, certificate: x509.Certificate) -> str:
        path = self._directory / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)
