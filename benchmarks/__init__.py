"""How fast trilemma trains, samples and scores on this machine: ``python -m benchmarks``.

Everything is measured in one process, beside what the machine can do at best, and compared with the last committed
results of the same name.
"""
