"""Prediction files, and the record beside them of the pretrained weights that they came from."""

import json
import os

from files.errors import UserError
from files.json_object import read_json
from files.writing import alone_in, atomic_write, is_device

WEIGHTS_RECORD = "weights.json"


def write_predictions(path, header, ids, predictions_by_id):
    """Write `{id} , {prediction} \\n` for every id, in the order of `ids`; the file is whole or not there."""
    with atomic_write(path) as file:
        file.write(header)
        file.writelines(f"{sent_id} , {predictions_by_id[sent_id]} \n" for sent_id in ids)


def hand_in(path, header, ids, predictions_by_id, pretrained):
    """Write a prediction file, note beside it which weights made it, and say so."""
    write_predictions(path, header, ids, predictions_by_id)
    record_weights(path, pretrained)
    print(f"wrote {len(ids)} predictions to {path}")


def records(paths):
    """Return where `record_weights` notes what it is told of prediction files, a list."""
    return list(dict.fromkeys(os.path.join(os.path.dirname(path), WEIGHTS_RECORD) for path in paths
                              if not is_device(path)))


def record_weights(path, pretrained):
    """Note in weights.json, beside a prediction file, which pretrained weights it came from.

    A damaged record is begun anew. Of two scripts that write there at once none loses what the other noted.
    """
    for record_path in records([path]):
        with alone_in(os.path.dirname(record_path) or "."):
            record = {}
            if os.path.exists(record_path):
                try:
                    record = read_json(record_path, "it is begun anew, and no longer tells what older files came from")
                except UserError as damage:
                    print(f"note: {damage}")
            record[os.path.basename(path)] = pretrained
            with atomic_write(record_path) as file:
                json.dump(record, file, indent=2, sort_keys=True)
                file.write("\n")
