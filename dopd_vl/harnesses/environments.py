"""Is a harness installed? Each has an environment of its own, as they want different versions of the same packages."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from dopd_vl.harnesses.table import Harness

_SECONDS = 60


@dataclass(frozen=True)
class Environment:
    """Where a harness is, or would be."""

    harness: Harness
    folder: Path
    """absolute"""
    version: str | None
    """a release or a commit; None: not installed"""
    missing: str | None
    """why it cannot be run"""

    def install(self) -> list[str]:
        """The shell commands that make it."""
        return [command.format(environment=self.folder) for command in self.harness.install]


def find_environment(harness: Harness, environments: Path) -> Environment:
    """Look for a harness in its folder below `environments`."""
    folder = (environments / harness.name).absolute()
    python = folder / "bin" / "python"
    if not python.is_file():
        return Environment(harness, folder, None, f"no Python environment in {folder}")
    if harness.package is not None:
        code = f"from importlib.metadata import version; print(version({harness.package!r}))"
        version = _output([str(python), "-c", code])
        missing = None if version else f"{harness.package} is not installed in {folder}"
        return Environment(harness, folder, version, missing)
    file = folder / "source" / str(harness.file)
    if not file.is_file():
        return Environment(harness, folder, None, f"no {file}")
    version = _output(["git", "-C", str(folder / "source"), "rev-parse", "HEAD"]) or "unknown"
    return Environment(harness, folder, version, None)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
