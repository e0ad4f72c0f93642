"""The example of a training loop runs as it is."""

import re
from pathlib import Path

import pytest
from workspace import REPOSITORY, run


def test_training_with_dhel_shows_both_terms_and_the_loss_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = run("python", str(REPOSITORY / "examples" / "train_with_dhel.py"), cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    progress = re.findall(r"^epoch \d+: loss (\S+) = alignment (\S+) \+ energy (\S+)$", outcome.stdout, re.MULTILINE)
    losses = [float(loss) for loss, _, _ in progress]
    assert len(losses) >= 2
    assert losses == sorted(losses, reverse=True)
    for loss, alignment, energy in progress:
        assert abs(float(loss) - float(alignment) - float(energy)) < 0.002
