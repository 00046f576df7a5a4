"""The results of scripts/probe.py as markdown, and as a picture where matplotlib is installed."""

import numpy as np

from files.writing import atomic_write


def names_of(layers):
    """Return the rows' names: of the embeddings and of the layers after them."""
    return ["embeddings", *(f"layer {i}" for i in range(1, layers))]


def markdown(header, rows):
    """Return a table; numbers have three digits after the point."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in line) + " |"
                     for line in lines) + "\n"


def by_head(layers):
    """Return a table of a value for each head of each layer, and their mean."""
    heads = [f"head {i}" for i in range(1, max(map(len, layers)) + 1)]
    return markdown(["", "mean", *heads], [[f"layer {i}", float(np.mean(layer)), *map(float, layer)]
                                           for i, layer in enumerate(layers, 1)])


def tables(results):
    """Return the results as markdown."""
    models = [name for name in ("pretrained", "tuned") if name in results["probes"]]
    columns = [(name, task) for task in results["probes"]["pretrained"] for name in models]
    layers = len(results["cka"]), len(results["cka"][0])
    longest = max(len(results["probes"][name][task]) for name, task in columns)
    cell = [[values[i] if i < len(values) else "" for values in (results["probes"][name][task]
             for name, task in columns)] for i in range(longest)]
    text = [f"Linear probes on mean hidden states, {results['rows']}: accuracy, of sts Pearson's r\n\n"
            + markdown(["", *(f"{task} {name}" for name, task in columns)],
                       [[name, *line] for name, line in zip(names_of(longest), cell, strict=True)]),
            f"Linear CKA, pretrained (rows) with {models[-1]} (columns)\n\n"
            + markdown(["", *names_of(layers[1])], [[name, *line] for name, line in
                                                    zip(names_of(layers[0]), results["cka"], strict=True)])]
    text += [f"Entropy of attention in nats, {name}\n\n{by_head(results['entropy'][name])}" for name in models]
    if "pruned" in results:
        importance = [[value / (np.linalg.norm(layer) or 1.0) for value in layer] for layer in results["importance"]]
        text.append("Importance of heads, of each layer scaled to an L2 norm of 1\n\n" + by_head(importance))
        text.append("Dev score with the least important heads pruned\n\n" + markdown(
            ["pruned", "heads", *list(results["pruned"][0])[2:]],
            [[f"{row['share']:.0%}", row["heads"], *list(row.values())[2:]] for row in results["pruned"]]))
    return "\n".join(text)


def picture(results, path):
    """Draw the tables into a .png file; one line instead where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("note: no picture, as matplotlib is not installed; `pip install matplotlib`")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((probed, similar), (spread, pruned)) = pyplot.subplots(2, 2, figsize=(11, 9), layout="constrained")
    colours = {task: f"C{i}" for i, task in enumerate(results["probes"]["pretrained"])}
    for name, by_task in results["probes"].items():
        for task, scores in by_task.items():
            probed.plot(scores, "-" if name != "pretrained" or len(results["probes"]) == 1 else ":",
                        color=colours[task], label=f"{task}, {name}")
    probed.set(title="linear probes (accuracy; sts: r)", xlabel="layer (0: embeddings)")
    probed.legend()
    last = list(results["probes"])[-1]
    image = similar.imshow(results["cka"], origin="lower", vmin=0, vmax=1)
    similar.set(title="linear CKA", xlabel=f"layer, {last}", ylabel="layer, pretrained")
    figure.colorbar(image, ax=similar)
    for i, (name, layers) in enumerate(results["entropy"].items()):
        for layer, heads in enumerate(layers, 1):
            spread.plot([layer + 0.2 * i] * len(heads), heads, ".", color=f"C{i}", label=name if layer == 1 else None)
    spread.set(title="entropy of attention, a head a dot (nats)", xlabel="layer")
    spread.legend()
    if "pruned" in results:
        pruned.plot([row["share"] for row in results["pruned"]], [row["score"] for row in results["pruned"]], "o-")
        pruned.set(title="dev score with heads pruned", xlabel="share of the heads", ylim=(0, 1))
    else:
        pruned.axis("off")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
    print(f"drew {path}")
