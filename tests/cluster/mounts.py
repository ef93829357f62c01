"""What is mounted below a folder, and its end."""

from __future__ import annotations

import subprocess
from pathlib import Path


def below(folder: Path, table: Path = Path("/proc/self/mounts")) -> list[str]:
    """The deepest first. The kernel writes a blank in a path as an octal number."""
    points = [line.split()[1] for line in table.read_text(encoding="utf-8").splitlines()]
    plain = [point.encode().decode("unicode_escape") for point in points]
    return sorted((point for point in plain if point.startswith(f"{folder}/")), reverse=True)


def unmount_below(folder: Path) -> None:
    """Lazily: who still looks at one does not keep it."""
    for point in below(folder):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
