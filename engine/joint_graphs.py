"""The training step of several tasks as CUDA graphs: one for each task's batch, and one for the update."""

import torch

from engine.cuda_graphs import GraphedStep, Update, kind_of, static, tensors_of


class JointGraphedStep(GraphedStep):
    """A `TrainingStep` over several tasks' batches that replays CUDA graphs; same call, same losses, same updates.

    Three tasks' widths have thousands of combinations, too many for a graph each. So the graph of a task's batch, by
    its kind, adds its gradient and its loss to buffers, which are zeroed before a step, and the graph of the update
    reads those: Σ_t g_t is the gradient of Σ_t L_t. What keeps the tasks' gradients apart (PCGrad) cannot be had so.
    As in the parent the first batch of a kind is an eager step; it also tells which parameters such tasks train.
    """

    def __init__(self, step, limit=384, recorder=None):
        super().__init__(step, limit, recorder)
        self.buffers = {p: torch.zeros_like(p) for p in step.params}
        self.totals = {task: torch.zeros((), device=step.device) for task in step.losses}
        self.trained, self.updates = {}, {}  # by the tasks of a step: the parameters with a gradient, the last graphs

    def __call__(self, parts):
        """Update the model; return {task: loss} of the step, before the update."""
        if not self.active:
            return self.step(parts)
        pieces = [{task: one} for part in parts for task, one in part.items()]
        kinds = [kind_of([piece]) for piece in pieces]
        tasks = tuple(dict.fromkeys(task for piece in pieces for task in piece))
        if tasks not in self.trained or not self.seen.issuperset(kinds):
            self.seen.update(kinds)
            losses = self.eager(parts)
            self.trained[tasks] = [p for p in self.step.params if p.grad is not None]
            return losses

        gradients = [self.gradient_of(kind, piece, tasks) for kind, piece in zip(kinds, pieces, strict=True)]
        update = self.update_of(tasks)
        if not self.active:  # one of these could not be recorded
            return self.step(parts)
        self.take_buffers(tasks)
        torch._foreach_zero_([*(self.buffers[p] for p in self.trained[tasks]), *self.totals.values()])
        for (inputs, graph), piece in zip(gradients, pieces, strict=True):
            torch._foreach_copy_(tensors_of([inputs]), tensors_of([piece]), non_blocking=True)
            graph.replay()
        losses = {task: self.totals[task] for task in tasks}
        self.step.all_reduce(losses)
        update.plan.advance()
        update.graph.replay()
        self.step.optimizer.zero_grad(set_to_none=True)
        return {task: loss.clone() for task, loss in losses.items()}  # the next step writes over the totals

    def forget(self):
        """Drop all graphs: they are recorded anew."""
        super().forget()
        self.updates.clear()

    def take_buffers(self, tasks):
        """Make the buffers the gradients of what the tasks train."""
        for p in self.step.params:
            p.grad = None
        for p in self.trained[tasks]:
            p.grad = self.buffers[p]

    def gradient_of(self, kind, piece, tasks):
        """Return (the batch that it reads, the graph) of a task's gradient; None where it cannot be recorded."""
        def record():
            self.take_buffers(tasks)
            inputs = {task: static(one, self.step.device) for task, one in piece.items()}
            return inputs, self.recorder.capture(lambda: self.add(inputs))[0]

        recording = self.recordings.get(kind)
        if recording is None and self.active:
            recording = self.attempt(record)
        if recording is not None:
            self.keep(kind, recording)
        return recording

    def add(self, piece):
        """Add the gradient of a task's batch to the buffers, and its loss to the totals."""
        for task, loss in self.step.forward_backward([piece]).items():
            self.totals[task] += loss

    def update_of(self, tasks):
        """Return the `Update` after these tasks' batches; None where it cannot be recorded."""
        def record():
            self.take_buffers(tasks)
            return Update(self.step, {task: self.totals[task] for task in tasks}, self.recorder)

        update = self.updates.get(tasks)
        if self.active and (update is None or not update.plan.fits()):
            update = self.attempt(record)
            if update is not None:
                self.updates[tasks] = update
        return update
