"""Looks up known vulnerabilities of what an environment has installed, in OSV's database, with pip-audit.

    python .ci/audit.py .venv/bin/python

Exit status 1: some are known; 3: the database could not be reached, and nothing was checked.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request

DATABASE = "https://api.osv.dev/v1/vulns/OSV-2020-111"
NOT_CHECKED = 3


def main() -> int:
    """The program."""
    try:
        urllib.request.urlopen(DATABASE, timeout=10).close()
    except (urllib.error.URLError, OSError) as error:
        print(f"make audit: NOTHING WAS CHECKED: the database of vulnerabilities (OSV) cannot be reached: {error}")
        return NOT_CHECKED
    place = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([sys.argv[1], "-c", place], capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--path", folder]
    return subprocess.run([*command, "--progress-spinner", "off"]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
