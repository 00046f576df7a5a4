"""The training step as CUDA graphs: recorded once for a task and shape, then launched whole instead of by kernels.

https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/ (Nguyen et al. 2021) says what may be recorded.
"""

import contextlib
from collections import OrderedDict

import torch

from engine import distributed


class GraphedStep:
    """A `TrainingStep` that replays CUDA graphs; same call, same losses, same updates.

    The first batch of a kind (task, shapes) is an eager step, which also lets libraries set themselves up; the second
    is recorded, which computes nothing, and from then on every batch of that kind is copied over the recorded one and
    the graphs are replayed. There are two a kind, for the gradient and for the update, so that several processes can
    sum gradients in between. The learning rate and the step counts reach the update through `Plan.advance`. Dropout
    masks are drawn anew at every replay: torch registers its CUDA generator with each graph and moves it on as far
    as the step would have. Random numbers of Python or of the CPU would be repeated, and hyper-parameters other
    than the learning rate stay what they were: after changing one, or what is trained, call `forget`.

    A step that cannot be recorded ends the recording for good, with one line that says why, and so does one for which
    the graphs leave no memory: from then on `active` is False, and every step is eager. `limit` kinds are kept, the
    least recently used makes way. The optimizer must be a `FusedAdamW`.
    """

    def __init__(self, step, limit=128, recorder=None):
        self.step, self.limit, self.active = step, limit, True
        self.params, self.skipped, self.stateful = step.params, step.skipped, step.stateful
        self.weights, self.gradient = step.weights, step.gradient
        self.recorder = recorder or Recorder(step.device)
        self.seen, self.recordings = set(), OrderedDict()
        # Where several processes sum gradients: one place for all kinds of step, {parameter: tensor like it}.
        self.buffers = {}

    def __call__(self, parts):
        """Update the model; return {task: loss} of the step, before the update."""
        if not self.active:
            return self.step(parts)
        kind = kind_of(parts)
        if kind not in self.seen:
            self.seen.add(kind)
            return self.eager(parts)
        recording = self.recording_of(kind, parts)
        if recording is None:
            return self.step(parts)
        recording.plan.advance()
        return recording.replay(self.step, parts)

    def recording_of(self, kind, parts):
        """Return the recording of a kind, a new one where there is none that fits; None where there can be none."""
        recording = self.recordings.get(kind)
        if recording is None or not recording.plan.fits():  # the latter: captured, but the counts came apart
            if distributed.world_size() > 1 and not self.buffers:
                self.buffers = {p: torch.empty_like(p) for p in self.step.params}
            recording = self.attempt(lambda: Recording(self.step, parts, self.recorder, self.buffers))
        if recording is not None:
            self.keep(kind, recording)
        return recording

    def eager(self, parts):
        """Return the losses of an eager step; where memory runs short, of one after all graphs have been dropped.

        With several processes it is an error: the others may have taken their step.
        """
        generators = self.recorder.random_state()
        try:
            return self.recorder.on_side_stream(lambda: self.step(parts))
        except torch.OutOfMemoryError as error:
            if not (self.recordings or self.buffers) or distributed.world_size() > 1:
                raise
            self.give_up(error, generators)
        return self.step(parts)  # not before the error has gone, and with it what the step had allocated

    def give_up(self, error, generators):
        """Say why nothing is recorded any more, drop all graphs, and put the random numbers back."""
        self.recorder.restore_random_state(generators)
        self.active, self.buffers = False, {}
        self.forget()
        if error.__context__ and not error.__suppress_context__:
            error = error.__context__  # the first, not that the capture which it broke could not end
        reason = (str(error).splitlines() or [""])[0]
        print(f"no CUDA graphs from here on, so slower: {type(error).__name__}: {reason}", flush=True)

    def attempt(self, record):
        """Return record(), whose gradients lie in the graphs' memory; None, and never record again, where it fails."""
        generators = self.recorder.random_state()
        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            return record()
        except Exception as error:  # whatever a technique does that no graph can hold; nothing has been computed yet
            self.give_up(error, generators)
            return None
        finally:
            # Their memory serves the next graph too: only between a gradient's replay and its update is it in use.
            self.step.optimizer.zero_grad(set_to_none=True)

    def keep(self, kind, recording):
        """Keep a recording as the last used; the one that was not used for the longest time makes way."""
        self.recordings[kind] = recording
        self.recordings.move_to_end(kind)
        if len(self.recordings) > self.limit:
            self.recordings.popitem(last=False)

    def forget(self):
        """Drop all graphs: they are recorded anew."""
        self.recordings.clear()


class Update:
    """The graph of the second half of a step, from the summed gradients on; `losses` are read when it is replayed."""

    def __init__(self, step, losses, recorder):
        # The host's half of the update is done here, outside: state of the optimizer may have to be allocated.
        self.plan = step.optimizer.plan()

        def update():
            step.combine_gradients()
            self.plan.apply(*step.clip(losses))
            step.after_step(losses)

        self.graph, _ = recorder.capture(update)


class Recording:
    """The two graphs of one kind of step, and the batch that they read."""

    def __init__(self, step, parts, recorder, buffers):
        self.parts = [{task: static(one, step.device) for task, one in part.items()} for part in parts]
        self.forward_backward, self.losses = recorder.capture(lambda: self.gradient(step, buffers))
        self.update = Update(step, self.losses, recorder)
        self.plan = self.update.plan
        self.grads = [(p, p.grad) for p in step.params] if buffers else []

    def gradient(self, step, buffers):
        """Return the step's losses; their gradients go on to the buffers that several processes sum."""
        losses = step.forward_backward(self.parts)
        if buffers:
            params = [p for p in step.params if p.grad is not None]
            torch._foreach_copy_([buffers[p] for p in params], [p.grad for p in params])
            for p in params:
                p.grad = buffers[p]
        return losses

    def replay(self, step, parts):
        """Take the step of `parts`, after `plan.advance()`; return {task: loss}."""
        torch._foreach_copy_(tensors_of(self.parts), tensors_of(parts), non_blocking=True)
        self.forward_backward.replay()
        for p, grad in self.grads:
            p.grad = grad
        step.all_reduce(self.losses)
        self.update.graph.replay()
        # The memory of these losses is another graph's at the next step.
        return {task: loss.clone() for task, loss in self.losses.items()}


def kind_of(parts):
    """Return what parts must have in common to share a graph: tasks, shapes, dtypes, shares and weights."""
    return tuple((i, task, one.share, one.weight,
                  *((name, value.shape, value.dtype) for name, value in tensors_in(one)))
                 for i, part in enumerate(parts) for task, one in part.items())


def tensors_in(part):
    """Return the (name, tensor) of a `Part`'s batch, in an order that only their names decide.

    These are what a graph can hold: a list, such as of ids, would go stale.
    """
    return [(name, value) for name, value in sorted(part.batch.items()) if isinstance(value, torch.Tensor)]


def static(part, device):
    """Return a copy of a `Part` with its tensors alone, for the graphs to read from."""
    return part._replace(batch={name: torch.empty_like(value, device=device).copy_(value)
                                for name, value in tensors_in(part)})


def tensors_of(parts):
    """Return the tensors of the parts in an order that only their kind decides."""
    return [value for part in parts for one in part.values() for _, value in tensors_in(one)]


class Recorder:
    """The CUDA calls of this file in one place; tests put a recorder without CUDA here."""

    def __init__(self, device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # One pool for all graphs: as they never run at once, they may use the same memory one after the other.
        self.pool = torch.cuda.graph_pool_handle()

    def on_side_stream(self, function):
        """Return function(), run where captures are, so that libraries allocate their workspace there beforehand."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                return function()
        finally:
            current.wait_stream(self.stream)

    def capture(self, function):
        """Record the kernels that function() launches, without running them; return (graph, what it returned)."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # thread_local: what other threads do (pin a batch, watch NCCL) is no concern of this capture.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                result = function()
        except BaseException:
            # torch up to 2.11 leaves the allocator in a capture that was broken; where it does not, this is refused.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(current.device_index, self.pool)
            raise
        finally:
            torch.cuda.set_stream(current)  # a capture that fails while it ends leaves its own stream in place
        return graph, result

    def random_state(self):
        """Return a copy of the state of torch's CUDA generator."""
        return torch.cuda.default_generators[torch.cuda.current_device()].clone_state()

    def restore_random_state(self, state):
        """Put back what `random_state` returned: a failed capture leaves its generator in the midst of recording."""
        torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(state)
