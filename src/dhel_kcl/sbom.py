"""The software of this environment as a CycloneDX bill of materials."""

import json
import subprocess  # nosec B404 # for the program of cyclonedx-bom
import sys
from pathlib import Path

from dhel_kcl.artifacts import write_json

_COMMAND = ("-m", "cyclonedx_py", "environment", "--output-reproducible", "--no-validate", "--output-format", "JSON")


def write_sbom(path: Path) -> None:
    """Write every installed package with its version, licence and dependencies, as CycloneDX 1.6 JSON.

    The same environment gives the same bytes: there is no time, no serial number, and no folder of a local package.
    """
    listed = subprocess.run([sys.executable, *_COMMAND], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)  # nosec B603 # no shell
    bill = json.loads(listed.stdout)
    for component in bill["components"]:
        references = component.pop("externalReferences", [])
        if public := [each for each in references if not each["url"].startswith("file:")]:
            component["externalReferences"] = public
    write_json(path, bill)
