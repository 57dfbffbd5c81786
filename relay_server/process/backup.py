"""What makes a relay the one that agents know, in one file: to keep, or to go on elsewhere.

    registry.db       names, ports, keys of agents; a snapshot, also while a relay writes
    relay.key         and former-ID.key, by which agents know the relay
    server.toml       if it is in the state folder

The file is a tar archive. It is as secret as the state folder: whoever has it can be the relay.
"""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.process.config import ConfigError, load
from protocol.process.state import StateError, StateFolder
from relay_server import CONFIG_FILE
from relay_server.config import ServerConfig
from relay_server.registry.database import restore
from relay_server.registry.registry import REGISTRY_FILE, Registry
from relay_server.registry.relay_keys import FORMER, KEY, MAX_FORMER, load_or_make

# Read into memory. A registry of thousands of agents is a few MiB.
MAX_SIZE: Final = 256 * 2**20
# The registry, the key, the configuration, the former keys, and the current one among these if the
# power failed during a rotation.
_MOST_FILES: Final = 4 + MAX_FORMER
_NAMES: Final = re.compile(rf"{REGISTRY_FILE}|{KEY}|{CONFIG_FILE}|former-[0-9a-f]{{16}}\.key")


def pack(state: StateFolder, registry: Registry) -> bytes:
    """Raises StateError. The caller holds what keeps keys from being rotated meanwhile."""
    files = {REGISTRY_FILE: registry.snapshot()}
    for path in (state.path / KEY, *sorted(state.path.glob(FORMER))):
        text = state.read_secret(path.name)
        if text is not None:
            files[path.name] = text.encode()
    config = state.read(CONFIG_FILE)
    if config is not None:
        files[CONFIG_FILE] = config.encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The files, if they make a whole relay. Raises ConfigError with what is wrong.

    An archive may say of itself whatever it likes, so nothing is read that is larger than it.
    """
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if not _may_be_ours(member, len(data)) or member.name in files:
                    raise ConfigError(f"no export of a relay: it has {member.name[:60]!r} in it")
                content = archive.extractfile(member)
                files[member.name] = b"" if content is None else content.read()
                if len(files) > _MOST_FILES:
                    raise ConfigError(f"no export of a relay: more than {_MOST_FILES} files")
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        raise ConfigError("no export of a relay") from None
    for name in (REGISTRY_FILE, KEY):
        if name not in files:
            raise ConfigError(f"no whole export of a relay: {name} is missing")
    _try_out(files)
    return files


def _may_be_ours(member: tarfile.TarInfo, size: int) -> bool:
    """Whether `pack` could have written it into an archive of `size` bytes.

    A sparse file is as large as it says, whatever the archive has of it.
    """
    ordinary = member.type == tarfile.REGTYPE and not member.issparse()
    return ordinary and 0 <= member.size <= size and bool(_NAMES.fullmatch(member.name))


def _try_out(files: Mapping[str, bytes]) -> None:
    """See in a folder of its own that a relay would start with it."""
    with tempfile.TemporaryDirectory() as folder:
        state = StateFolder(Path(folder))
        for name, data in files.items():
            file = state.path / name
            file.touch(0o600)
            file.write_bytes(data)
        try:
            with Registry(state, migrate=True) as registry:
                registry.check()
                load_or_make(state, registry)
            load(ServerConfig, state.path / CONFIG_FILE, required=False)
        except (ConfigError, StateError) as error:
            reason = str(error).replace(f"{folder}/", "")
            raise ConfigError(f"this export cannot be used: {reason}") from None


def is_unknown(state: StateFolder) -> bool:
    """Whether nobody knows a relay in this folder: it is empty, or has been started at most."""
    if not (state.path / REGISTRY_FILE).exists():
        return not (state.path / KEY).exists()
    with Registry(state) as registry:
        return not (registry.agents() or registry.invitations())


def put(state: StateFolder, files: Mapping[str, bytes]) -> None:
    """Make the relay of `state` this one. The registry comes last: without it there is none."""
    for old in state.path.glob(FORMER):
        state.remove(old.name)
    for name, data in files.items():
        if name == CONFIG_FILE and (state.path / CONFIG_FILE).exists():
            continue  # what was written for this machine
        if name != REGISTRY_FILE:
            state.write_secret(name, data.decode())
    restore(state, REGISTRY_FILE, files[REGISTRY_FILE])
