"""Known vulnerabilities of what is installed, by pip-audit: `python -m reliability.audit`, a part of `make lint`.

Ends with status 1 where one is known. Where the data cannot be reached (offline, or a package index that has none) it
says in a line that nothing was audited and ends with 0: pip-audit itself would then print "No known vulnerabilities".
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROBE = "pip==24.0"  # any release that the data knows
FLAGS = ("--format", "json", "--progress-spinner", "off", "--timeout", "10")


def run(*arguments: str, limit: float) -> list[dict] | None:
    """What pip-audit says of each package; None where it could not say."""
    command = [sys.executable, "-m", "pip_audit", *FLAGS, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL)
        return json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def reachable() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "probe.txt")
        file.write_text(PROBE)
        found = run("--requirement", str(file), "--no-deps", "--disable-pip", limit=60)
    return bool(found) and "skip_reason" not in found[0]


def verdict(found: list[dict] | None) -> tuple[list[str], int]:
    """What to print of pip-audit's answer (None: it had no data), and the exit status."""
    audited = [entry for entry in found or () if "skip_reason" not in entry]
    if not audited:
        return ["pip-audit: its data cannot be reached from here: nothing was audited."], 0
    lines = [
        f"{entry['name']} {entry['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no release'}"
        for entry in audited
        for hole in entry["vulns"]
    ]
    skipped = sorted(entry["name"] for entry in found or () if "skip_reason" in entry and entry["name"] != "karipap")
    summary = f"pip-audit: {len(audited)} packages audited, {len(lines)} known vulnerabilities"
    return [*lines, summary + (f"; not in its data: {', '.join(skipped)}" if skipped else "")], 1 if lines else 0


def main() -> int:
    lines, status = verdict(run("--local", "--skip-editable", limit=300) if reachable() else None)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
