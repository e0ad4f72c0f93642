"""The software of this environment as a CycloneDX bill of materials."""

import json
import subprocess  # nosec B404 # for the program of cyclonedx-bom
import sys
from pathlib import Path

from dhel_kcl.errors import InputError
from dhel_kcl.files import write_json

_COMMAND = (
    *("-m", "cyclonedx_py", "environment", "--spec-version", "1.6", "--output-format", "JSON"),
    *("--output-reproducible", "--no-validate"),
)


def write_sbom(path: Path) -> None:
    """Write a list of every installed package with its version, licence and dependencies, as CycloneDX 1.6 JSON.

    The same environment gives the same bytes: no times, serial numbers or folders of local packages are written.

    Raises:
        InputError: the packages cannot be listed.
    """
    listed = subprocess.run([sys.executable, *_COMMAND], capture_output=True, encoding="utf-8", check=False)  # nosec B603 # no shell
    if listed.returncode:
        reason = (listed.stderr.strip() or f"status {listed.returncode}").splitlines()[-1]
        raise InputError(f"{path}: cyclonedx-bom cannot list the environment ({reason}); run `make setup`")
    bill = json.loads(listed.stdout)
    for component in bill["components"]:
        references = component.pop("externalReferences", [])
        if public := [each for each in references if not each["url"].startswith("file:")]:
            component["externalReferences"] = public
    write_json(path, bill)
