"""The loop around the training step: epochs, log points, scorings, checkpoints; stopping, and going on from there.

`schedule(epoch)` returns an epoch's Steps, of which `part` builds what one process computes
(extensions/schedules/_steps.py); the step itself is step.py. Epochs count from 0 here and in checkpoints, and from 1
in all that a person reads.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import time

import torch

from engine import distributed
from engine.checkpoint import load_checkpoint, load_weights, restore_random_states, restoring
from engine.cpu import fit_threads, keep_freed_memory
from engine.ema import ExponentialMovingAverage
from engine.progress import MeanLosses, Progress, note_idle_flags
from engine.run_folder import Run
from engine.signals import StopNow, StopSignal
from engine.step import autocast, lr_factor, make_step, part_to_device, set_learning_rates, to_device
from extensions.encoder import techniques_of
from files.errors import Interrupted, UserError
from files.writing import atomic_write

# Training rows of a task that a scoring scores beside dev: the gap between them shows overfitting.
SEEN_ROWS = 500
# What `Training` keeps running means of.
MEANS = ("recent", "losses", "epoch_losses", "recent_cosines", "cosines")


@dataclasses.dataclass
class Standing:
    """How far a run has come."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0
    within: int = 0  # steps taken of this epoch
    scored: int = 0  # the step of the last scoring
    best: float = -math.inf  # score
    stale: int = 0  # scorings since the best one

    @property
    def epoch_from_1(self):
        """The epoch as a person counts."""
        return self.epoch + 1


class Training:
    """The loop over steps, scorings and checkpoints; its state is `standing`, the losses, and what torch holds."""

    def __init__(self, model, schedule, losses, optimizer, evaluate, save, device, args):
        self.model, self.schedule, self.optimizer = model, schedule, optimizer
        self.evaluate, self.save, self.device, self.args = evaluate, save, device, args
        self.run = Run(args.run_dir)
        self.lengths = [len(schedule(epoch)) for epoch in range(args.epochs)]
        self.counts = [schedule.counts(epoch) for epoch in range(args.epochs)]
        self.total = min(sum(self.lengths), args.max_steps or math.inf)
        if not self.total:
            raise UserError("there is nothing to train on: no rows, or no epochs")
        note_idle_flags(self.total, self.lengths, self.counts, eval_every=args.eval_every, patience=args.patience,
                        init=args.init)
        self.training_step = make_step(model, losses, optimizer, device, joint=schedule.joint, **step_settings(args))
        self.ema = ExponentialMovingAverage(model, args.ema) if args.ema else None
        self.standing = Standing()
        # Mean losses: `recent` since the last log point, `losses` from the last scoring to that point.
        self.recent, self.losses, self.epoch_losses = MeanLosses(), MeanLosses(), MeanLosses()
        self.recent_cosines, self.cosines = MeanLosses(), MeanLosses()  # between the tasks' gradients, likewise
        self.steps = self.progress = None
        self.stop, self.start = StopSignal(), time.monotonic()

    def fit(self):
        """Train to the end; return the best score. Raises Interrupted after a signal, with everything saved."""
        with self.run.locked(), self.stop:
            try:
                self.begin()
                while True:
                    if self.scoring_due():
                        self.score()
                        self.keep()
                    if self.finished():
                        break
                    self.step()
                    if self.args.save_every and self.standing.step % self.args.save_every == 0:
                        self.keep()
                    if self.stop.agreed(self.device.type == "cpu" or self.standing.step % self.args.log_every == 0):
                        self.halt()
                if self.stop.agreed(True):
                    self.halt()
            except StopNow:
                self.halt()
            finally:
                self.close_progress()
        distributed.wait()  # for the files that the main process writes
        return self.standing.best

    def begin(self):
        """Take up the run's last checkpoint, or begin anew."""
        # A restart by torchrun goes on with what it began, not with an older run. Process 0 sees for all.
        begun = distributed.restarted() and self.run.stored_arguments()["launch"] == distributed.launch()
        resume = self.args.resume or begun
        if distributed.gather(bool(resume and self.run.last and os.path.exists(self.run.last)))[0]:
            with restoring(self.run.last):
                self.restore(load_checkpoint(self.run.last))
            self.run.tidy()
            self.run.write_arguments(self.args, self.device)
            print(f"resume {self.run.folder} at step {self.standing.step} of {self.total}")
            return
        if resume:
            print(f"{self.run.folder} holds no checkpoint yet: the run begins")
        if self.args.init:  # the weights to begin with are the first to beat
            self.standing.scored = -1
        self.run.begin(self.args, self.device)
        distributed.take_from_main([*self.model.parameters(), *self.model.buffers()])
        if distributed.world_size() > 1:  # every process draws dropout masks of its own
            torch.manual_seed(self.args.seed + distributed.rank())

    def finished(self):
        """Tell whether the steps or the patience are at their end."""
        out_of_patience = bool(self.args.patience) and self.standing.stale >= self.args.patience
        return self.standing.step >= self.total or out_of_patience

    def scoring_due(self):
        """Tell whether the model should be scored before the next step."""
        step = self.standing.step
        if step == self.standing.scored:
            return False
        if step == 0 or step >= self.total:  # more, where a resumed run has been given fewer
            return True
        if self.args.eval_every:
            return step % self.args.eval_every == 0
        return self.standing.within == self.lengths[self.standing.epoch]

    def step(self):
        """Take the next step."""
        if self.standing.within == self.lengths[self.standing.epoch]:
            self.standing.epoch, self.standing.within, self.steps = self.standing.epoch + 1, 0, None
            self.close_progress()
            self.training_step.weights.end_epoch(self.epoch_losses.means())
            self.epoch_losses = MeanLosses()
        if self.steps is None:
            self.steps = self.schedule(self.standing.epoch)
            for technique in techniques_of(self.model, "start_epoch"):
                technique.start_epoch(self.standing.epoch)
        if self.progress is None:
            self.model.train()
            left = self.lengths[self.standing.epoch] - self.standing.within
            self.progress = Progress(min(left, self.total - self.standing.step), f"epoch {self.standing.epoch_from_1}")

        set_learning_rates(self.optimizer, self.lr_factor(self.standing.step))
        losses = self.training_step(self.parts())
        self.recent.add(losses)
        self.epoch_losses.add(losses)
        self.recent_cosines.add(
            {"/".join(pair): cosine for pair, cosine in self.training_step.gradient.cosines.items()})
        self.standing.step, self.standing.within = self.standing.step + 1, self.standing.within + 1
        if self.ema:
            self.ema.update(self.standing.step)

        self.progress.advance(self.steps.rows(self.standing.within - 1))
        if self.device.type == "cpu":
            self.check()
        if self.standing.step % self.args.log_every == 0:
            self.log()
        if self.progress.due():
            self.check()
            self.progress.show(self.losses.merged(self.recent).means())

    def lr_factor(self, step):
        """Return the share of the peak learning rates that step `step` of this run has."""
        return lr_factor(step, self.total, self.args.warmup, self.args.lr_schedule)

    def parts(self):
        """Return the next step's rows that this process computes, on the device, as --accumulate parts."""
        count = self.args.accumulate
        first, n = distributed.rank() * count, distributed.world_size() * count
        return [{task: part_to_device(part, self.device)
                 for task, part in self.steps.part(self.standing.within, k, n).items()}
                for k in range(first, first + count)]

    def log(self):
        """Write the mean losses since the last log point to the metrics; this waits for the device."""
        self.check()
        if self.recent.counts:
            self.run.log(kind="train", step=self.standing.step, epoch=self.standing.epoch_from_1,
                         loss=self.recent.means(), lr=self.optimizer.param_groups[0]["lr"],
                         examples_per_second=self.progress.rate() if self.progress else None,
                         **({"cosine": self.recent_cosines.means()} if self.recent_cosines.counts else {}))
            self.losses, self.recent = self.losses.merged(self.recent), MeanLosses()
            self.cosines, self.recent_cosines = self.cosines.merged(self.recent_cosines), MeanLosses()

    def score(self):
        """Score the model, or the average of its weights, and keep it if it is the best so far."""
        self.log()
        self.close_progress()
        trained = time.monotonic()
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            # What it computes can be computed again: no need to wait for its end.
            with self.stop.at_once(), autocast(self.device, self.args.precision):
                score, text, metrics = self.evaluate()
            if not math.isfinite(score):
                raise UserError(f"the dev score is {score}: training diverged; try a lower --lr, or --precision fp32")
            reports = [technique.report(self.model) for technique in techniques_of(self.model, "report")]
            better, standing = score > self.standing.best, self.standing
            standing.best, standing.stale = (score, 0) if better else (standing.best, standing.stale + 1)
            standing.scored = standing.step
            if better:
                self.save(self.args.filepath)
        now = time.monotonic()
        losses = self.losses.means()
        self.run.log(kind="score", step=self.standing.step, epoch=self.standing.epoch_from_1, score=score, **metrics,
                     **({"reports": reports} if reports else {}), seconds=round(now - trained, 3))
        cosines = ", ".join(f"{pair} {mean:+.2f}" for pair, mean in self.cosines.means().items())
        if cosines:
            reports.append(f"mean cosines of the tasks' gradients: {cosines}")
        by_step = self.args.eval_every or not standing.step
        where = f"step {standing.step}" if by_step else f"epoch {standing.epoch_from_1}"
        learned = f"train loss {', '.join(f'{task} {mean:.3f}' for task, mean in losses.items())}; " if losses else ""
        print(f"{where}: {learned}dev {text} "
              f"({trained - self.start:.0f} s training, {now - trained:.0f} s scoring)", *reports, sep="\n", flush=True)
        self.losses, self.cosines, self.start = MeanLosses(), MeanLosses(), now

    def check(self):
        """Raise UserError if a loss or gradient was not finite, naming step and rows; this waits for the device.

        No step from that one on has changed the weights.
        """
        skipped = int(self.training_step.skipped)
        if not skipped:
            return
        epoch, within = self.standing.epoch, self.standing.within - skipped
        while within < 0:
            epoch -= 1
            within += self.lengths[epoch]
        rows = {task: self.not_finite(task, part.batch) for task, part in self.schedule(epoch)[within].items()}
        found = {"step": self.standing.step - skipped + 1, "epoch": epoch + 1, "rows": rows}
        where = ""
        if self.run.folder:
            path = os.path.join(self.run.folder, "diverged.json")
            if distributed.is_main():
                with self.run.writing(path), atomic_write(path) as file:
                    json.dump(found, file, indent=2)
            kept = "; the last checkpoint is as it was" if os.path.exists(self.run.last) else ""
            where = f" (all of them in {path}{kept})"
        some = "; ".join(f"{task}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}" for task, ids in rows.items())
        raise UserError(f"step {found['step']}, epoch {epoch + 1}: the loss or its gradient is not finite, training "
                        f"diverged on the rows {some}{where}; try a lower --lr, or --precision fp32")

    @torch.no_grad()
    def not_finite(self, task, batch):
        """Return the ids of a batch's rows whose logits are not finite, or of all rows where that shows nothing."""
        self.model.eval()
        with autocast(self.device, self.args.precision):
            logits = self.model.logits(task, to_device(batch, self.device)).float().cpu()
        bad = ~torch.isfinite(logits.view(len(logits), -1)).all(dim=1)
        return [sent_id for sent_id, is_bad in zip(batch["sent_ids"], bad.tolist(), strict=True)
                if is_bad or not bad.any()]

    def keep(self):
        """Write last.pt: everything that going on from here takes."""
        if self.run.folder:
            self.check()
            self.save(self.run.last, training={
                **dataclasses.asdict(self.standing), "counts": self.counts, "finished": self.finished(),
                **{name: getattr(self, name).state() for name in MEANS},
                "techniques": [part.state_dict() for part in self.training_step.stateful()],
                "ema": self.ema.average if self.ema else None, "metrics_bytes": self.run.length()})

    def restore(self, saved):
        """Put everything back to where `keep` wrote it."""
        load_weights(self.model, saved)
        groups = [{name: group[name] for name in ("lr", "weight_decay")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optim"])
        for group, now in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(now, initial_lr=now["lr"])  # what the command line says now
        stored = saved["training"]
        if stored["step"]:
            set_learning_rates(self.optimizer, self.lr_factor(stored["step"] - 1))  # the last step's, as logged
        n = min(stored["epoch"] + 1, len(self.counts), len(stored["counts"]))
        if stored["counts"][:n] != self.counts[:n]:
            raise UserError(f"the epochs in {self.run.folder} had {stored['counts'][:n]} batches of each task and have "
                            f"{self.counts[:n]} now: the training data or the schedule are others; begin anew in "
                            "another --run_dir")
        self.standing = Standing(**{field.name: stored[field.name] for field in dataclasses.fields(Standing)})
        for name in MEANS:
            setattr(self, name, MeanLosses(**stored.get(name, {})))
        for part, state in zip(self.training_step.stateful(), stored["techniques"], strict=True):
            part.load_state_dict(state)
        if self.ema:
            self.ema.load(stored["ema"] or saved["model"])
        self.run.cut(stored["metrics_bytes"])
        states = saved["processes_rng"]
        if len(states) == distributed.world_size():
            restore_random_states(states[distributed.rank()])
        else:
            print(f"resume: {distributed.world_size()} processes now, was {len(states)}: dropout masks will differ")
            torch.manual_seed(self.args.seed + self.standing.step + distributed.rank())

    def halt(self):
        """Save, and end the script."""
        self.close_progress()
        self.keep()
        distributed.wait()  # torchrun ends all processes as soon as one is gone
        folder = getattr(self.args, "of_run", None) or self.run.folder
        there = f"; go on with --resume --run_dir {folder}" if folder else ""
        raise Interrupted(f"stopped at step {self.standing.step} of {self.total}{there}",
                          self.stop.signum or signal.SIGTERM)

    def close_progress(self):
        """End the progress line, if there is one."""
        if self.progress is not None:
            self.progress.close()
            self.progress = None


def optimizer_settings(args):
    """Return the settings of `make_optimizer` that the command line has, by name."""
    return {name: getattr(args, name) for name in ("lr", "weight_decay", "param_groups", "compile")}


def module_settings(args):
    """Return the settings of `use_faster_modules` that the command line has, by name."""
    return {name: getattr(args, name) for name in ("compile", "attention_backend", "precision")}


def step_settings(args):
    """Return the settings of `make_step` that the command line has, by name."""
    return {"penalties": args.penalty or (), **{name: getattr(args, name) for name in (
        "gradient", "task_weights", "lr", "precision", "max_grad_norm", "compile", "attention_backend")}}


def fit(model, schedule, losses, optimizer, evaluate, save, device, args):
    """Train for args.epochs (or args.max_steps); return the best score.

    `schedule(epoch)` returns an epoch's Steps, `losses` is {task: fn(forward)};
    `evaluate()` returns (score, text to print, {name: metric}); `save(filepath, **more)` writes a checkpoint, to
    args.filepath whenever the score is the highest so far. Raises UserError when a loss is not finite.
    """
    if device.type == "cpu":
        fit_threads()
        keep_freed_memory()
    return Training(model, schedule, losses, optimizer, evaluate, save, device, args).fit()
