"""tuning: measures ways to run a model's layers and keeps what was found.

    tasks      the distinct layers of a graph, each as a program of its own
    variants   settings near a kernel's own
    records    one measurement a line, in a file that merges and ships
    worker     the process that builds and measures; measurer is its other side
    remote     measuring on other machines
    search     what to measure next

>>> sparsec.tune("model.onnx", minutes=5)                       # doctest: +SKIP
>>> program = sparsec.compile("model.onnx")                     # doctest: +SKIP
"""
