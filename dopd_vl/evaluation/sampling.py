"""How responses are drawn."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """Greedily by default. Names and meanings are vLLM's."""

    samples: int = 1
    """Each question gets so many responses, the k of avg@k and pass@k."""
    temperature: float = 0.0
    """The sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest that together have this share of the probability; 1 is all."""
    top_k: int = 0
    """Tokens are drawn from so many of the likeliest; 0 is the whole vocabulary."""
    presence_penalty: float = 0.0
    """This is taken from the logit of every token that the response already holds."""
    seed: int = 0
    """Every draw comes from this number."""

    def __post_init__(self) -> None:
        bounds = {
            "samples": self.samples >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "presence_penalty": -2 <= self.presence_penalty <= 2,
        }
        for name, holds in bounds.items():
            if not holds:
                raise ValueError(f"sampling.{name}: {getattr(self, name)} is out of bounds")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"sampling.samples: {self.samples} greedy responses would all be the same; set sampling.temperature"
            )

    def generation_settings(self) -> dict[str, Any]:
        """Arguments of a `GenerationConfig`."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


GREEDY = Sampling()
