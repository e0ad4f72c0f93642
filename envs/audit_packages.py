"""Ask whether a locked package has a known vulnerability; says so, and succeeds, when nobody can be asked.

Findings that do no harm here are listed in `accepted_vulnerabilities.txt`, one on a line: the ID, then why.
"""

import json
import re
import subprocess  # nosec B404 # for pip-audit
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
OFFLINE = re.compile(r"requests\.exceptions\.|ServiceError|Failed to (connect|resolve)")


def main() -> int:
    """Print what was found, and return the exit status: 1 if a finding is not accepted."""
    accepted = [
        line.split()
        for line in (FOLDER / "accepted_vulnerabilities.txt").read_text(encoding="utf-8").splitlines()
        if line
    ]
    if unexplained := [words[0] for words in accepted if words[0] != "#" and len(words) < 4]:
        print(f"error: accepted_vulnerabilities.txt: say why {', '.join(unexplained)} does no harm", file=sys.stderr)
        return 1
    lock = str(FOLDER / "lock.txt")
    command = ["pip-audit", "-r", lock, "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    audit = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # nosec B603 # fixed words, no shell
    try:
        packages = json.loads(audit.stdout)["dependencies"]
    except ValueError:
        if OFFLINE.search(audit.stderr):
            print("skipped: the vulnerability service cannot be reached")
            return 0
        print(audit.stderr, file=sys.stderr)
        return 1
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        print("skipped: the vulnerability service knows none of the packages; is it a mirror without advisories?")
        return 0
    findings = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", [])
        if found["id"] not in {words[0] for words in accepted}
    ]
    print(*findings, sep="\n", end="\n" if findings else "")
    print(f"{len(packages) - len(unknown)} packages audited, {len(findings)} findings; not known there: {unknown}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
