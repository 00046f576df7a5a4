"""What all combinations of the tasks' gradients share: a gradient for each task, and their inner products.

Legend of the shape comments:  K tasks · N shared parameters (numbers, not tensors)

PCGrad, GradVac and CAGrad all end in a sum over tasks of weights_k g_k, and the weights depend on the gradients only
through their inner products, the Gram matrix M = G Gᵀ of G (K, N). So each of them is a few lines on K x K numbers:
a combination with coefficients c (K,) has the inner product (c M)_j with g_j and the squared norm c M cᵀ.
"""

import torch


class TaskGradients:
    """Collect each task's gradient over the parts of a step, then write their combination into `.grad`.

    A technique is a subclass with `weights(gram, order)`. Shared parameters are those with a gradient from at least
    two tasks of the step; the others (heads) get the one that they have, as they do in a step of a single task. A
    shared parameter that a task does not use counts as a gradient of 0. With several processes every task's
    gradient is summed over them, one message a task, before anything is combined: K messages where a sum takes one.
    Memory: K gradients as large as the model, and a second copy of them while they are combined.
    """

    per_task = True

    def __init__(self):
        self.gradients = {}  # {task: its gradient or None for each of the parameters}
        self.cosines = {}  # {(task, other): cosine of their gradients in the last step, 0-dim}

    def weights(self, gram, order):
        """Return the weights of the tasks' gradients in their combination, (K,).

        `gram` (K, K) holds their inner products; row i of `order` (K, K) is a random order of all tasks, the
        same in all processes.
        """
        raise NotImplementedError

    def backward(self, losses, params):
        """Add the gradient of each of {task: loss} to the task's own; once a part of the step."""
        trained = [p for p in params if p.requires_grad]  # some may be frozen for now: gradual unfreezing
        for i, (task, loss) in enumerate(losses.items(), start=1):
            # bf16 autocast casts a weight once for all tasks: they share that piece of the graph.
            grads = torch.autograd.grad(loss, trained, retain_graph=i < len(losses), allow_unused=True)
            by_parameter = dict(zip(trained, grads, strict=True))
            new = [by_parameter.get(p) for p in params]
            old = self.gradients.get(task, [None] * len(new))
            # Not in place: autograd may have given one tensor to two parameters.
            self.gradients[task] = [a if b is None else b if a is None else a + b
                                    for a, b in zip(old, new, strict=True)]

    def messages(self, params):
        """Return the tensors to be summed over processes, a list for each task; `backward` may then begin anew.

        They are the gradients of the shared parameters, a matrix, and the rest, in `.grad`.
        """
        self.tasks, by_task = list(self.gradients), list(self.gradients.values())
        users = [[k for k, gradients in enumerate(by_task) if gradients[i] is not None] for i in range(len(params))]
        self.shared = [i for i, tasks in enumerate(users) if len(tasks) > 1]
        self.alone = [[] for _ in self.tasks]
        for i, tasks in enumerate(users):
            if len(tasks) == 1:
                params[i].grad = by_task[tasks[0]][i].clone(memory_format=torch.contiguous_format)
                self.alone[tasks[0]].append(params[i].grad)
        self.matrix = torch.stack([torch.cat([
            (torch.zeros_like(params[i]) if gradients[i] is None else gradients[i]).flatten() for i in self.shared])
            for gradients in by_task]) if self.shared else None  # (K, N)
        self.gradients = {}
        if self.shared:  # Random numbers differ between processes, their sum does not, and is as good an order.
            self.noise = torch.rand(len(self.tasks), len(self.tasks), device=self.matrix.device).to(self.matrix)
        return [alone + ([self.matrix[k], self.noise[k]] if self.shared else []) for k, alone in enumerate(self.alone)]

    @torch.no_grad()
    def combine(self, params):
        """Write the combination of the shared parameters' gradients into their `.grad`, after `messages`."""
        G, self.matrix, self.alone, self.cosines = self.matrix, None, [], {}
        if G is None:
            return
        gram = torch.stack([torch.stack([a.dot(b) for b in G]) for a in G])  # (K, K)
        norms = gram.diagonal().sqrt()  # (K,)
        cosines = gram / (norms * norms[:, None]).clamp(min=torch.finfo(gram.dtype).tiny)
        self.cosines = {(task, other): cosines[i, j] for i, task in enumerate(self.tasks)
                        for j, other in enumerate(self.tasks) if i < j}
        combined = self.weights(gram, self.noise.argsort(dim=1)) @ G  # (N,)
        pieces = combined.split([params[i].numel() for i in self.shared])
        for i, piece in zip(self.shared, pieces, strict=True):
            params[i].grad = piece.view_as(params[i])

    def state_dict(self):
        """Return nothing: there is no state from step to step, unless a subclass has one."""
        return {}

    def load_state_dict(self, state):
        """Do nothing, unless a subclass has state."""
