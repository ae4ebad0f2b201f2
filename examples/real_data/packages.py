"""Fetching packages that hold data, by their own package managers, without installing them."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

DOWNLOADS = Path("runs/downloads")


def from_pypi(requirement: str) -> Path:
    """The archive of a package on PyPI, e.g. "deepforest==2.1.0"; downloaded once, its dependencies not at all."""
    name, _, version = requirement.replace("-", "_").partition("==")  # as archives are named
    if not (found := sorted(DOWNLOADS.glob(f"{name}-{version}*"))):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        subprocess.run([*command, "--dest", str(DOWNLOADS), requirement], check=True)
        found = sorted(DOWNLOADS.glob(f"{name}-{version}*"))
    return found[0]


def from_debian(name: str) -> Path:
    """A Debian package, unpacked; needs apt-get and dpkg-deb."""
    folder = DOWNLOADS / name
    if not folder.is_dir():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            sys.exit(f"{name}: this needs a Debian machine (apt-get, dpkg-deb)")
        DOWNLOADS.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", name], cwd=DOWNLOADS, check=True)
        (archive,) = DOWNLOADS.glob(f"{name}_*.deb")
        unpacked = DOWNLOADS / f"{name}.part"
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
        unpacked.rename(folder)
    return folder


def members(archive: Path, inside: str) -> dict[str, bytes]:
    """The files of a wheel or an sdist whose path contains `inside`: {path: content}."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if inside in name and not name.endswith("/")}
    found = {}
    with tarfile.open(archive) as sdist:
        for member in sdist:
            if inside in member.name and (file := sdist.extractfile(member)) is not None:
                found[member.name] = file.read()
    return found
