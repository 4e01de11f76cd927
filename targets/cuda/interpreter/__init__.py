"""Runs CUDA kernels on the processor, from the TIR they are compiled from."""
