"""Rollouts by vLLM, which is TRL's own integration: what can go wrong on the way there is said in one line.

Where the server is slow to start it is waited for, `trl.vllm_server_timeout` seconds, as TRL does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.training.arguments import DopdConfig


def with_one_pad_an_image(
    prompts: Sequence[list[int]], images: Sequence[list[Any] | None], image_token: int
) -> list[list[int]]:
    """Prompts for vLLM in the trainer's process, which puts each image's tokens in by itself, one pad an image.

    A view has as many as the image takes; vLLM would put an image's tokens in the place of every one of them. A server
    is sent the images on their own, and takes the prompt as it is.

    Args:
        images: of each prompt, or None.

    Raises:
        ValueError: a prompt's runs of the token, which others stand between, are not as many as its images.
    """
    shortened = []
    for ids, shown in zip(prompts, images, strict=True):
        before = [None, *ids[:-1]]
        kept = [token for token, last in zip(ids, before, strict=True) if not token == last == image_token]
        if kept.count(image_token) != len(shown or []):
            raise ValueError(
                f"{kept.count(image_token)} runs of image tokens in a prompt with {len(shown or [])} images"
            )
        shortened.append(kept)
    return shortened


def server_address(arguments: DopdConfig) -> str | None:
    """Where the server is that rolls out; None where none does."""
    if not arguments.use_vllm or arguments.vllm_mode != "server":
        return None
    return arguments.vllm_server_base_url or f"http://{arguments.vllm_server_host}:{arguments.vllm_server_port}"


def check_server(arguments: DopdConfig) -> None:
    """Wait for the server, and see that it takes weights, before a model is loaded.

    Raises:
        UserError: it does not answer, or was started without what an update of its weights needs.
    """
    address = server_address(arguments)
    if address is None:
        return
    from trl.generation.vllm_client import VLLMClient

    with server_told_of(arguments, "start it as docs/vllm-and-deepspeed.md says"):
        client = VLLMClient(base_url=address, connection_timeout=arguments.vllm_server_timeout)
        try:
            takes_weights = client.get_server_info()["weight_transfer_config"] is not None
        except RuntimeError as error:  # TRL's own words on a server without its development endpoints
            raise UserError(f"training.use_vllm: {error}") from error
    if not takes_weights:
        raise UserError(
            f"training.use_vllm: the vLLM server at {address} takes no weights; start it with "
            """--weight-transfer-config '{"backend": "nccl"}'"""
        )


@contextmanager
def server_told_of(arguments: DopdConfig, what_to_do: str) -> Iterator[None]:
    """A server that does not answer, or refuses a request, ends the work with one line that says so.

    Raises:
        UserError: in place of what requests or TRL said; `what_to_do` ends its message.
    """
    address = server_address(arguments)
    if address is None:
        yield
        return
    from trl.generation import vllm_client

    server = f"training.use_vllm: the vLLM server at {address}"
    try:
        yield
    except vllm_client.requests.RequestException as error:
        raise UserError(f"{server} does not answer ({type(error).__name__}); {what_to_do}") from error
    except Exception as error:
        said = " ".join(str(error).split())
        if type(error) is not Exception or not said.startswith("Request failed: "):
            raise
        raise UserError(f"{server} refused a request ({said[:300]}); {what_to_do}") from error
