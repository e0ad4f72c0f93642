"""The stage `data`: convert one split of a data set to a beton."""

import warnings

from dhel_kcl.console import console
from dhel_kcl.data.beton import write_beton
from dhel_kcl.data.requirements import check_split
from dhel_kcl.data.sources import open_source
from dhel_kcl.errors import few
from dhel_kcl.jobs.job import Job


def run(job: Job) -> str:
    """Write one split of a data set as a beton with its sidecar.

    Raises:
        InputError: the images cannot be used, or later stages could not use them.
    """
    name, split = job.subject.split("/")
    dataset, beton, sidecar = job.config.dataset(name), job.writes["beton"], job.writes["sidecar"]
    warnings.filterwarnings("ignore", module="PIL")  # about odd tags and large sizes, without the image's name
    with job.recorded():
        source = open_source(dataset.data, split)
        info = write_beton(
            source,
            beton,
            storage=dataset.data.storage,
            jpeg_quality=dataset.data.jpeg_quality,
            max_resolution=dataset.data.max_resolution,
            on_corrupt=dataset.data.on_corrupt,
            num_workers=job.config.compute.loader_workers,
            accept=lambda labels: check_split(job.config, dataset, split, source, labels),
        )
    left_out = [f"{reason} ({count:,})" for reason, count in info.left_out.items()]
    if info.skipped:
        left_out.append(f"images that cannot be used ({len(info.skipped):,}): {few(info.skipped)}")
    if left_out:
        console.print(f"{sidecar}: left out {', '.join(left_out)}")
    return f"{beton}: {info.num_images} images, {len(info.classes)} classes"
