"""Measure everything that a GPU can show of this project, by one command on a bare CUDA machine: `mineral-bench gpu`.

`benchmarks/GPU.md` describes the stages, what to bring along and how to rehearse it.
"""
