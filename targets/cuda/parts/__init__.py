"""What CUDA kernels are made of and share: tiles, stages, orders of operands, packings."""
