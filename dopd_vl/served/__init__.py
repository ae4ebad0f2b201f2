"""Teachers that score in a process of their own, on other GPUs or another machine: vLLM's and SGLang's servers."""
