"""Contrastive pretraining of one run.

Two views of each image go through the encoder in one pass (so that batch normalisation sees both), and the loss pulls
their projections together. With a checkpoint every few steps, an interrupted run resumes in mid-epoch and ends with the
same bits; the checkpoints are removed once the final weights are written. Processes started by `torchrun` train one run
together.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dhel_kcl.console import console, print_to_terminal
from dhel_kcl.data.beton import open_beton
from dhel_kcl.data.loader import TwoViewLoader
from dhel_kcl.errors import InputError
from dhel_kcl.experiment.config import ComputeConfig, MonitorConfig
from dhel_kcl.experiment.grid import Run
from dhel_kcl.files import sha256_json, write_json
from dhel_kcl.jobs.job import Job
from dhel_kcl.jobs.running import announce_launcher
from dhel_kcl.losses.build import build_loss
from dhel_kcl.losses.pair_loss import PairLoss
from dhel_kcl.losses.streaming.unit_views import deferred_checks
from dhel_kcl.seeding import derive_seed
from dhel_kcl.training.checkpoints import Checkpoints
from dhel_kcl.training.devices import prepare_device, training_dtype
from dhel_kcl.training.encoder import build_encoder, save_encoder
from dhel_kcl.training.log import Diverged, Throughput, TrainingLog
from dhel_kcl.training.monitor import Monitor
from dhel_kcl.training.optimizer import build_optimizer, build_schedule
from dhel_kcl.training.outcome import read_outcome
from dhel_kcl.training.processes import Processes, become_torchrun, synchronise_batch_norm
from dhel_kcl.training.progress import ProgressDisplay, TensorBoard, progress_display
from dhel_kcl.training.tensor_files import is_finite


def train_step(
    encoder: Callable[[Tensor], tuple[Tensor, Tensor]],
    contrastive_loss: PairLoss,
    optimizer: Optimizer,
    view1: Tensor,
    view2: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    world_size: int = 1,
) -> Tensor:
    """Take one optimiser step on a batch of positive pairs; on one device, the host does not wait for it.

    Args:
        encoder: returns ``(h, z)``; in training mode.
        contrastive_loss: the loss, computed over the whole batch of all processes.
        optimizer: optimiser of the encoder's parameters.
        view1: (B, 3, S, S), float32, this process's share of the batch.
        view2: (B, 3, S, S), the other view of the same images.
        dtype: dtype of the encoder's arithmetic; the parameters and the loss are float32.
        world_size: number of processes whose gradients are averaged.

    Returns:
        (4,) on the device: the loss, its terms ``alignment`` and ``energy``, and the norm of the gradient, all before
        the step. Values that are not finite are returned unchanged.
    """
    with torch.autocast(view1.device.type, dtype=dtype, enabled=dtype != torch.float32):
        _, z = encoder(torch.cat([view1, view2]))
    with deferred_checks():
        terms = contrastive_loss.terms(*z.chunk(2))
    loss = terms.alignment + terms.energy
    optimizer.zero_grad(set_to_none=True)
    # Each process has the whole batch's gradient for its own rows; without the factor, averaging would divide the sum.
    (world_size * loss).backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradient_norm = nn.utils.get_total_norm(gradients)
    optimizer.step()
    return torch.stack([loss.detach(), terms.alignment.detach(), terms.energy.detach(), gradient_norm])


_PARTS = ("encoder", "optimizer", "schedule", "loader", "log")


class _Training:
    """The components of a run's training, and their state."""

    def __init__(
        self, run: Run, compute: ComputeConfig, beton: Path, device: torch.device, processes: Processes
    ) -> None:
        self.run, self.compute, self.device, self.processes = run, compute, device, processes
        self.loader = TwoViewLoader(
            beton,
            batch_size=run.batch_size,
            image_size=run.dataset.image_size,
            augmentation=run.dataset.augmentation,
            seed=run.seed,
            num_workers=compute.loader_workers,
            device=device,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        self.total_steps = run.dataset.epochs * len(self.loader)
        self.dtype = training_dtype(compute, device)
        self.encoder = build_encoder(run.dataset.encoder, run.seed).to(device)
        synchronise_batch_norm(self.encoder, processes, device)
        self.optimizer = build_optimizer(self.encoder, run.dataset.optimizer, run.learning_rate)
        self.schedule = build_schedule(self.optimizer, run.dataset.optimizer, self.total_steps)
        self.loss = build_loss(run.loss)
        self.log = TrainingLog(device, len(self.loader), compute.log_every_steps)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in _PARTS}

    def newest_state(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """Return the checked state of the newest checkpoint, or None if there is none.

        Raises:
            InputError: the checkpoint does not hold the state of this training.
        """
        state = checkpoints.newest()
        if state is not None and (problem := self._problem(state)):
            raise InputError(f"{checkpoints.paths()[0]}: not a checkpoint of this run: {problem}; delete it")
        return state

    def _problem(self, state: dict[str, Any]) -> str | None:
        """Return how the structure or the settings of a checkpoint differ from this training, or None."""
        expected: dict[str, Any] = self.state_dict()
        # Before the first step, the optimiser has no buffers and the log has no rows.
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        has_momentum = self.run.dataset.optimizer.momentum != 0
        buffers = {i: {"momentum_buffer": p} for i, p in enumerate(parameters)} if has_momentum else {}
        expected["optimizer"] = expected["optimizer"] | {"state": buffers}
        log = state.get("log")
        if not isinstance(log, dict) or log.keys() != expected["log"].keys():
            return "log is not that of a training"
        if problem := self.log.problem(log, self.total_steps):
            return f"log: {problem}"
        if problem := Throughput.problem(state.get("throughput")):
            return f"throughput: {problem}"
        same = {"log": log, "throughput": state["throughput"]}
        return (
            _difference(state, expected | same, "state")
            or _wrong_place(state, len(self.loader))
            or self._other_settings(state, expected)
        )

    def _other_settings(self, state: dict[str, Any], expected: dict[str, Any]) -> str | None:
        """Return which setting of a checkpoint of the right structure has another value; weights may have any value."""
        step, schedule = state["log"]["step"], self.schedule
        rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        groups = state["optimizer"]["param_groups"]
        pairs = zip(groups, expected["optimizer"]["param_groups"], strict=True)
        settings = [
            *((f"optimizer.{name}", group[name], own[name]) for group, own in pairs for name in own.keys() - {"lr"}),
            ("schedule.base_lrs", state["schedule"]["base_lrs"], schedule.base_lrs),
            ("loader.settings", state["loader"]["settings"], expected["loader"]["settings"]),
        ]
        for name, found, own in settings:
            if found != own:
                return f"its {name} is not that of the run"
        for found in ([group["lr"] for group in groups], state["schedule"]["_last_lr"]):
            pairs = zip(found, rates, strict=True)
            if not all(math.isclose(*pair, rel_tol=1e-9, abs_tol=1e-12) for pair in pairs):
                return f"its learning rate is not that of step {step}"
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])

    def train(
        self, checkpoints: Checkpoints, monitor: Monitor, board: TensorBoard, throughput: Throughput, log_path: Path
    ) -> None:
        """Train from the current state to the end of the last epoch.

        Raises:
            Diverged: a loss, gradient or weight was not finite.
            InputError: the run was asked to stop; its checkpoint has been written.
        """
        parallel = self.processes.data_parallel(self.encoder, self.device)
        forward = torch.compile(parallel) if self.compute.compile else parallel
        parallel.train()
        with progress_display(self.run.id, self.total_steps, self.log.step) as display, _stop_signal() as asked_to_stop:
            while self.log.step < self.total_steps:
                for view1, view2, _, _ in throughput.timed(self.loader):
                    learning_rate = float(self.schedule.get_last_lr()[0])
                    self.log.add(
                        train_step(
                            forward,
                            self.loss,
                            self.optimizer,
                            view1,
                            view2,
                            dtype=self.dtype,
                            world_size=self.processes.world_size,
                        )
                    )
                    self.schedule.step()
                    stopping = asked_to_stop()
                    due = self.log.step % self.compute.checkpoint_every_steps == 0
                    ends = self.log.step % len(self.loader) == 0
                    if due or ends or stopping or self.log.is_full:
                        self._read_log(board, display, throughput)
                    if ends:
                        self._end_epoch(learning_rate, monitor, board, display, throughput, log_path)
                    kept = due or stopping or self.log.step == self.total_steps
                    if kept and not all(map(is_finite, self.encoder.state_dict().values())):
                        raise Diverged(self.log.step, {"weights": math.nan})
                    if kept and self.processes.is_first:
                        checkpoints.save(self.log.step, self.state_dict() | {"throughput": throughput.epochs})
                    if stopping:
                        raise InputError(
                            f"{self.run.id}: stopped after step {self.log.step} of {self.total_steps} as asked; "
                            "the same command continues from there"
                        )

    def _read_log(self, board: TensorBoard, display: ProgressDisplay, throughput: Throughput) -> None:
        rows = self.log.read()
        board.steps(rows, self.log.step)
        if rows:
            display.update(self.log.step, rows[-1][0], throughput.images_per_second)

    def _end_epoch(
        self,
        learning_rate: float,
        monitor: Monitor,
        board: TensorBoard,
        display: ProgressDisplay,
        throughput: Throughput,
        log_path: Path,
    ) -> None:
        epoch = self.log.step // len(self.loader)
        throughput.end_epoch(epoch)
        watching = monitor.is_due(epoch) and self.processes.is_first
        row = self.log.end_epoch(learning_rate, monitor.measure(self.encoder) if watching else {})
        rate = throughput.images_per_second
        board.epoch(row, rate)
        display.epoch(row, self.run.dataset.epochs, rate)
        if self.processes.is_first:
            self.log.write(log_path)


def pretrain(
    run: Run,
    compute: ComputeConfig,
    beton: Path,
    identity: str,
    folder: Path,
    monitor: MonitorConfig | None = None,
) -> Checkpoints:
    """Train one run and write its ``encoder.safetensors``, ``training_log.csv``, ``throughput.csv``, ``outcome.json``.

    While the run trains, the log is available up to the last finished epoch. A run whose loss, gradient or weights are
    not finite ends as diverged: ``outcome.json`` records the step and its terms, and the weights are those of the last
    checkpoint, or the initial ones.

    Args:
        run: what to train.
        compute: device, precision, threads, and how often to read the log and write a checkpoint.
        beton: the images.
        identity: digest of the settings and the code on which the weights depend; a checkpoint with another digest is
            not resumed.
        folder: the run's folder.
        monitor: how to monitor the encoder; not at all by default.

    Returns:
        The run's checkpoints. The caller discards them once the files are safe; until then, the same call can rewrite
        the files from them without training.

    Raises:
        InputError: the data or device cannot be used, a file cannot be written, or SIGINT, SIGTERM or SIGHUP
            interrupted the run, in which case its checkpoint has been written.
    """
    processes = Processes.of_environment()
    console.quiet = not processes.is_first
    device = prepare_device(compute, processes.local_rank)
    with processes.joined(device):
        training = _Training(run, compute, beton, device, processes)
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        arithmetic = [device.type, gpu, str(training.dtype), torch.__version__, processes.world_size]
        key = sha256_json([identity, open_beton(beton).sha256, *arithmetic])
        checkpoints = Checkpoints(folder / "checkpoints", key, compute.checkpoints_kept)
        throughput = Throughput(run.batch_size)
        if (state := training.newest_state(checkpoints)) is not None:
            throughput.epochs = state["throughput"]
            training.load_state_dict(state)
            console.print(f"{checkpoints.own}: resuming after step {training.log.step} of {training.total_steps}")
        watcher = Monitor(
            monitor or MonitorConfig(),
            beton,
            image_size=run.dataset.image_size,
            num_workers=compute.loader_workers,
            device=device,
        )
        events = folder / "tensorboard" if compute.tensorboard and processes.is_first else None
        board = TensorBoard(events, training.log.step)
        log_path = folder / "training_log.csv"
        outcome: dict[str, Any] = {"status": "finished", "step": training.total_steps}
        try:
            training.train(checkpoints, watcher, board, throughput, log_path)
        except Diverged as event:
            outcome = _diverged(event, training, checkpoints)
        finally:
            board.close()
        if processes.is_first:
            facts = {"device": device.type, "dtype": str(training.dtype).removeprefix("torch.")}
            write_json(folder / "outcome.json", {**outcome, **facts, "processes": processes.world_size})
            training.log.write(log_path)
            throughput.write(folder / "throughput.csv")
            save_encoder(training.encoder, folder / "encoder.safetensors")
        return checkpoints


def _diverged(event: Diverged, training: _Training, checkpoints: Checkpoints) -> dict[str, Any]:
    """Restore the last finite weights, and print and return what happened."""
    run = training.run
    state = training.newest_state(checkpoints)
    initial = build_encoder(run.dataset.encoder, run.seed).state_dict()
    training.encoder.load_state_dict(initial if state is None else state["encoder"])
    kept = 0 if state is None else state["log"]["step"]
    epoch = math.ceil(event.step / len(training.loader))
    console.print(
        f"{run.id}: diverged in epoch {epoch} at {event} (of {training.total_steps}); recorded as diverged, with the "
        f"weights after step {kept}. "
        # At the first step, there has been no update that a lower rate could have changed.
        + ("Check the loss's hyperparameters" if event.step == 1 else "A lower optimizer.learning_rate may help")
    )
    terms = {name: value if math.isfinite(value) else str(value) for name, value in event.terms.items()}
    return {"status": "diverged", "step": event.step, "epoch": epoch, "weights_of_step": kept, "terms": terms}


def _difference(found: Any, expected: Any, place: str) -> str | None:
    """Return where two states differ in keys, lengths, or the types, shapes and dtypes of their values, or None."""
    match expected:
        case Tensor():
            kind = expected.dtype, tuple(expected.shape)
            same = isinstance(found, Tensor) and (found.dtype, tuple(found.shape)) == kind and is_finite(found)
        case dict():
            same = isinstance(found, dict) and found.keys() == expected.keys()
        case list() | tuple():
            same = isinstance(found, list | tuple) and len(found) == len(expected)
        case float():
            same = isinstance(found, int | float) and math.isfinite(found)
        case _:
            same = type(found) is type(expected)
    if not same:
        return f"{place} is not what it should be"
    parts = (
        expected.items() if isinstance(expected, dict) else enumerate(expected) if isinstance(expected, list) else ()
    )
    problems = (_difference(found[key], value, f"{place}.{key}") for key, value in parts)
    return next(filter(None, problems), None)


def _wrong_place(state: dict[str, Any], steps_per_epoch: int) -> str | None:
    """Return which part of a checkpoint is at another step than its log, or None."""
    step = state["log"]["step"]
    loader = state["loader"]
    if (loader["epoch"], loader["batch"]) != divmod(step, steps_per_epoch):
        return f"its loader is not at step {step}"
    return None if state["schedule"]["last_epoch"] == step else f"its schedule is not at step {step}"


@contextmanager
def _stop_signal() -> Iterator[Any]:
    """Yield a function that tells whether SIGINT, SIGTERM or SIGHUP has arrived; a second SIGINT has its usual effect.

    The other signals may arrive several times: from a closing terminal, from the scheduler and from `orphans`. With
    several processes, all signals have their usual effect, because the processes could not agree on a step to stop at.
    """
    received = threading.Event()
    handled: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.set()
        if number == signal.SIGINT:
            signal.signal(number, handled[number])

    if threading.current_thread() is threading.main_thread() and Processes.of_environment().world_size == 1:
        for asking in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(asking) is not signal.SIG_IGN:  # as under nohup
                handled[asking] = signal.signal(asking, note)
    try:
        yield received.is_set
    finally:
        for each, previous in handled.items():
            signal.signal(each, previous)


def run(job: Job) -> None:
    """Pretrain one run, in as many processes as it has GPUs.

    If `compute.gpus_per_run` is above 1, this program replaces itself with `torchrun`, which starts each process.

    Raises:
        InputError: as for `pretrain`.
    """
    count, processes = max(1, job.config.compute.gpus_per_run), Processes.of_environment()
    if count > 1 and "RANK" not in os.environ:
        print_to_terminal()  # each process opens its own log
        announce_launcher()
        become_torchrun(count)
    chosen, folder = job.run, job.layout.run(job.subject)
    (beton,) = job.reads.values()
    train = partial(pretrain, chosen, job.config.compute, beton, job.identity, folder, job.config.monitor)
    if not processes.is_first:
        train()
        return
    seeds = {purpose: derive_seed(chosen.seed, purpose) for purpose in ("initialisation", "order", "augmentation")}
    with job.recorded(seeds | {"run": chosen.seed}):
        checkpoints = train()
    if not read_outcome(job.writes["outcome.json"]).diverged:
        checkpoints.discard()
