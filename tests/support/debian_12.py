"""Run a program on Debian 12's cryptography 38, which is three versions older than OpenWrt's 41.

    python3 debian_12.py PROGRAM ARGUMENT...

What it lacks of what we use are two shorthands, and that data may be in any buffer.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def on_bytes(call: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda self, nonce, data, ad: call(self, bytes(nonce), bytes(data), ad)


def main() -> None:
    backend: Any = importlib.import_module("cryptography.hazmat.backends.openssl.x25519")
    backend._X25519PublicKey.public_bytes_raw = lambda key: key.public_bytes(
        Encoding.Raw, PublicFormat.Raw
    )
    backend._X25519PrivateKey.private_bytes_raw = lambda key: key.private_bytes(
        Encoding.Raw, PrivateFormat.Raw, NoEncryption()
    )
    cipher: Any
    for cipher in (AESGCM, ChaCha20Poly1305):
        cipher.encrypt, cipher.decrypt = on_bytes(cipher.encrypt), on_bytes(cipher.decrypt)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
