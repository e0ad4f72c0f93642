"""The profiles: Snakemake knows every key, and what they say of the rules is so. `test_slurm.py` runs one for real."""

import re
from pathlib import Path

import pytest
import yaml
from workspace import REPOSITORY, TINY, run

PROFILES = sorted(path.name for path in (REPOSITORY / "workflow" / "profiles").iterdir())


def dry_run(profile: Path, workspace: Path) -> tuple[int, str]:
    arguments = ["--workflow-profile", str(profile), "--dry-run", "--configfile", str(TINY)]
    if "cores" not in yaml.safe_load((profile / "config.yaml").read_text(encoding="utf-8")):
        arguments += ["--cores", "2"]
    outcome = run("snakemake", "theory", *arguments, cwd=workspace)
    return outcome.returncode, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("name", PROFILES)
def test_snakemake_and_its_plugins_know_every_key_of_a_profile(name: str, workspace: Path) -> None:
    status, said = dry_run(workspace / "workflow" / "profiles" / name, workspace)
    assert status == 0, said
    assert re.search(r"^theory +1$", said, re.MULTILINE)


def test_a_key_that_snakemake_does_not_know_would_be_found(workspace: Path) -> None:
    profile = workspace / "workflow" / "profiles" / "slurm"
    with (profile / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("\nrerun-incomplet: true\nslurm-requeu: true\n")
    status, said = dry_run(profile, workspace)
    assert status != 0
    assert "rerun-incomplet" in said
    assert "slurm-requeu" in said


def test_what_the_slurm_profile_leaves_to_be_filled_in_is_known_too(workspace: Path) -> None:
    profile = workspace / "workflow" / "profiles" / "slurm"
    text = (profile / "config.yaml").read_text(encoding="utf-8")
    filled_in = re.sub(r"^( *)# ([a-z_-]+: \S)", r"\1\2", text, flags=re.MULTILINE)
    assert filled_in.count("#") < text.count("#")
    (profile / "config.yaml").write_text(filled_in, encoding="utf-8")
    status, said = dry_run(profile, workspace)
    assert status == 0, said


def test_the_slurm_profile_sends_the_rules_that_use_a_gpu_to_its_gpu_partition() -> None:
    rules = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "workflow" / "rules").glob("*.smk"))
    on_gpu = {block.split(":")[0] for block in re.split(r"^ *rule ", rules, flags=re.MULTILINE) if " gpu=" in block}
    profile = yaml.safe_load(
        (REPOSITORY / "workflow" / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8")
    )
    assert {
        rule: resources["slurm_partition"] for rule, resources in profile["set-resources"].items()
    } == dict.fromkeys(on_gpu, "gpu")
    assert profile["default-resources"]["slurm_partition"] != "gpu"
