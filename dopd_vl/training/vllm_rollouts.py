"""Rollouts by vLLM, which is TRL's own integration: what can go wrong on the way there is said in one line.

Where the server is slow to start it is waited for, `trl.vllm_server_timeout` seconds, as TRL does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dopd_vl.common.errors import UserError
from dopd_vl.training.arguments import DopdConfig


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
