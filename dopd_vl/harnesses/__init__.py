"""The paper's benchmarks by name, each run by the harness that carries it."""
