"""Runs DeepSparse for engines.py, in an interpreter of its own (it needs numpy before 2).

A line of JSON asks and a line answers: first {"model", "inputs" (.npz), "threads"}, then any of
{"turn": calls} and {"outputs": .npz}.  An answer with "error" ends the conversation.
"""

import json
import os
import sys
import time

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # DeepSparse greets on standard output

import numpy as np  # noqa: E402


def serve(request):
    """Compile, then answer until standard input ends."""
    import deepsparse

    with np.load(request["inputs"]) as file:
        arrays = {name: file[name] for name in file.files}
    shapes = [list(a.shape) for a in arrays.values()]
    engine = deepsparse.Engine(
        request["model"], batch_size=shapes[0][0], num_cores=request["threads"], input_shapes=shapes
    )
    inputs = [np.ascontiguousarray(arrays[name]) for name in engine.input_names]
    answer({})
    for line in sys.stdin:
        asked = json.loads(line)
        if "turn" in asked:
            answer(turn(engine, inputs, asked["turn"]))
        else:
            np.savez(asked["outputs"], *engine.run(inputs, val_inp=False))
            answer({})


def turn(engine, inputs, count):
    """Seconds that passed, and seconds computed, in some calls."""
    busy, start = time.process_time(), time.perf_counter()
    for _ in range(count):
        engine.run(inputs, val_inp=False)
    return {"elapsed": time.perf_counter() - start, "busy": time.process_time() - busy}


def answer(value):
    """One line."""
    print(json.dumps(value), file=ANSWERS, flush=True)


if __name__ == "__main__":
    try:
        serve(json.loads(sys.stdin.readline()))
    except Exception as error:
        answer({"error": str(error).strip().splitlines()[0]})
