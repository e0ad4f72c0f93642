"""The training curves of a run that is still training."""

import time
from collections.abc import Iterator

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.grid import Run
from dhel_kcl.jobs.experiment import Experiment
from dhel_kcl.paper.render import render_live
from dhel_kcl.results.collect import training_rows


def watch(experiment: Experiment, run: Run, every: float, once: bool) -> Iterator[str]:
    """Draw a run from its log into its folder ``live`` whenever the log has grown, until the run ends.

    Args:
        experiment: the experiment.
        run: the run.
        every: seconds between two looks at the log.
        once: draw once.

    Yields:
        What to print about each drawing.

    Raises:
        InputError: the run has no log yet, or its folder ``live`` is a link.
    """
    layout, drawn = experiment.layout, 0
    log, live = layout.training_log(run.id), layout.live(run.id)
    while True:
        over = once or layout.outcome(run.id).exists()
        seen = log.stat().st_mtime_ns if log.exists() else 0
        if seen > drawn:
            rows = training_rows(run, log)
            if live.is_symlink():
                raise InputError(f"{live}: a link, through which files of others would be replaced; remove it")
            paths = render_live(experiment.scripts / "fig_training.py", rows, live)
            yield f"{paths[1]}: {rows['x'].max():.0f} of {run.dataset.epochs} epochs"
            drawn = seen
        if over and not drawn:
            raise InputError(f"{log}: missing; it appears when the first epoch of the run is over")
        if over:
            return
        time.sleep(every)
