"""Run on a host by the project's Python: makes of it a machine on which all that the package needs is installed.

~/rtp_llm/venv becomes an environment whose packages are this one's, less ours; deploy/install.sh installs the wheel into it.
"""

import sys
import sysconfig
import venv
from pathlib import Path

HOME = Path.home() / "rtp_llm"
SCRIPTS = ("ray", "serve")


def main() -> None:
    environment = HOME / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    packages = HOME / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "rtp_llm" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    [site] = (environment / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    for name in SCRIPTS:
        _, body = (Path(sys.prefix) / "bin" / name).read_text().split("\n", 1)
        script = environment / "bin" / name
        script.write_text(f"#!{environment}/bin/python\n{body}")
        script.chmod(0o755)


if __name__ == "__main__":
    main()
