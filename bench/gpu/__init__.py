"""Everything on one GPU, in one run of eight minutes at most: encoder, decoder, whole runs, precision, memory, stages.

Each stage has a process and a time of its own: one that crashes or hangs takes no other along, and what it had measured
by then counts. Without NVDEC the CPU lanes and the encoder are measured, and the table says so.

    python -m bench.gpu [--quick] [--json FILE] [--only STAGE,...] [VIDEO ...]
"""
