"""Judge the claims on the results of an experiment, by the rule and the settings of its study."""

from pathlib import Path

import pandas as pd

from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import StudyConfig
from dhel_kcl.jobs.job import Job
from dhel_kcl.results.claims import judge
from dhel_kcl.results.table import write_results


def read_and_judge(results: Path, study: StudyConfig) -> pd.DataFrame:
    """Return the verdicts on the results in a file, like `judge`.

    Raises:
        InputError: the file is missing or damaged, or as for `judge`.
    """
    try:
        table = pd.read_parquet(results)
    except FileNotFoundError as error:
        raise InputError(f"{results}: missing; run the rule that writes it") from error
    except Exception as error:  # the reader raises many types of errors for damaged Parquet
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{results}: not a readable results table ({reason}); delete it and collect again") from error
    return judge(table, study)


def run(job: Job) -> str:
    """Judge the claims of the study and write the verdicts as a tidy table.

    Raises:
        InputError: as for `read_and_judge`.
    """
    (results,) = job.reads.values()
    with job.recorded():
        verdicts = read_and_judge(results, job.config.study)
        write_results(verdicts, job.writes["parquet"])
    claims = verdicts.drop_duplicates(["dataset", "claim", "loss"])["state"].value_counts()
    return f"{job.writes['parquet']}: " + ", ".join(f"{count} {state}" for state, count in claims.items())
