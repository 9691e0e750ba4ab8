"""The Triton kernels for a GPU. Nothing here imports Triton before a tensor on a GPU asks for it."""
