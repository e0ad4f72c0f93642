"""A run goes on from a checkpoint only under its own settings, and at a place that there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pretrain import COMPUTE, run  # noqa: F401 # a fixture

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import Run
from dhel_kcl.training.pretrain import pretrain


def group(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["optimizer"]["param_groups"][0].update(values)


CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (group(weight_decay=0.5), "its optimizer.weight_decay is not that of the run"),
    (group(momentum=0.5), "its optimizer.momentum is not that of the run"),
    (group(maximize=True), "its optimizer.maximize is not that of the run"),
    (
        lambda state: group(params=[0] * len(state["optimizer"]["param_groups"][0]["params"]))(state),
        "its optimizer.params is not that of the run",
    ),
    (group(lr=9.0), "its learning rate is not that of step 22"),
    (lambda state: state["schedule"].update(base_lrs=[9, 9]), "its schedule.base_lrs is not that of the run"),
    (lambda state: state["schedule"].update(_last_lr=[9, 9]), "its learning rate is not that of step 22"),
    (lambda state: state["loader"].update(epoch=1, batch=11), "its loader is not at step 22"),
    (lambda state: state["loader"].update(epoch=3, batch=-11), "its loader is not at step 22"),
    (lambda state: state["loader"]["settings"].update(seed=9), "its loader.settings is not that of the run"),
]


def test_other_settings_are_named_instead_of_trained_with(
    run: Run,  # noqa: F811
    digits_beton: Path,
    tmp_path: Path,
) -> None:
    settings = COMPUTE.model_copy(update={"checkpoint_every_steps": 17, "checkpoints_kept": 1})
    checkpoints = pretrain(run, settings, digits_beton, "settings", tmp_path)
    for change, said in CHANGES:
        state = checkpoints.newest()
        assert state is not None
        step, sound = state["log"]["step"], checkpoints.paths()[0].read_bytes()
        change(state)
        checkpoints.discard()
        checkpoints.save(step, state)
        (path,) = checkpoints.paths()
        with pytest.raises(InputError) as caught:
            pretrain(run, settings, digits_beton, "settings", tmp_path)
        assert str(caught.value) == f"{path}: not a checkpoint of this run: {said}; delete it"
        path.write_bytes(sound)
        path.rename(path.with_name(f"step-{step:08d}-{sha256_start(sound)}.pt"))


def sha256_start(content: bytes) -> str:
    from hashlib import sha256

    return sha256(content).hexdigest()[:16]
