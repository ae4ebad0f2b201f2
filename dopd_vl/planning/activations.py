"""What a forward pass holds, in bytes: for the backward pass, and in passing.

Counted from the layers of transformers' Qwen3 and Qwen3-VL, with terms for what Qwen3-MoE and Qwen3.5 have besides.
Symbols: H hidden width, Q and K widths of all query and of all key heads, M width of the MLP; tests compare with what
autograd saves.
"""

from dataclasses import dataclass

from dopd_vl.planning.shapes import ModelShape, VisionShape
from dopd_vl.planning.workload import Precision


@dataclass(frozen=True)
class Width:
    """Bytes of one value, by what it is."""

    product: int
    """of a linear layer's result, and of what attention takes"""
    normed: int
    """of a normalised value before its scale"""
    stream: int
    """of the residual stream"""
    copies: bool
    """autocast makes a bf16 copy of a linear layer's input for each layer that reads it"""


WIDTHS: dict[Precision, Width] = {
    "float32": Width(product=4, normed=4, stream=4, copies=False),
    # Embeddings and scales of norms are fp32, so the stream and its norms are; products are bf16.
    "autocast": Width(product=2, normed=4, stream=4, copies=True),
    "bfloat16": Width(product=2, normed=2, stream=2, copies=False),
}


_PROJECTIONS = 7  # of a decoder layer: four of attention, three of its MLP


def saved_by_layer(shape: ModelShape, precision: Precision, lora_rank: int = 0) -> int:
    """Bytes a token that one decoder layer saves for its backward pass, without attention's keys, values and mask.

    With adapters (`lora_rank` above 0) the weights are frozen: a frozen scale needs no normalised value.
    """
    w = WIDTHS[precision]
    h, q, k, m = shape.hidden, shape.queries, shape.keys, shape.mlp
    readers = (3, 2) if w.copies else (1, 1)  # q, k, v read the first norm; gate and up the second
    norms = 0
    for linears in readers:
        norms += 4 * h  # the input, which a norm reads in fp32
        norms += 0 if lora_rank else w.normed * h
        norms += w.product * h * linears  # the scaled result, input of the projections
    # Norms of queries and keys: input in fp32, normalised value in the product's precision.
    head_norms = (q + k) * (4 + (0 if lora_rank else w.product)) if shape.head_norms else 0
    attention = 2 * q * w.product  # queries, and the result, which is the input of o_proj
    mlp = 4 * m * w.product  # gate, its activation, up, their product
    adapters = lora_rank * _PROJECTIONS * w.product + (q * w.product if lora_rank and w.copies else 0)
    one_each = 4 * (2 + 2 * shape.heads + shape.kv_heads)  # scales of the norms, and attention's log-sum, in fp32
    layer = norms + head_norms + attention + mlp + adapters + one_each
    return layer + _saved_by_experts(shape, w) + _saved_by_delta_rule(shape)


def _saved_by_experts(shape: ModelShape, w: Width) -> int:
    """A token's input and result once for each expert that it goes to, and before and after the cast to bf16."""
    return shape.experts * shape.hidden * (2 * w.product + (2 * w.stream if w.copies else 0))


def _saved_by_delta_rule(shape: ModelShape) -> int:
    """A layer's mean share of what PyTorch's own gated delta rule saves, which computes in fp32 and in chunks.

    Not derived: 28 values for each one of its width were measured (`tests/planning/test_activations.py`).
    """
    without = shape.layers - shape.attention_layers
    return 28 * 4 * shape.state_width * without // shape.layers


def saved_keys(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token that attention saves of keys and values: with a mask they are repeated for every query head."""
    return 2 * shape.queries * WIDTHS[precision].product


def saved_mask(precision: Precision) -> int:
    """Bytes a pair of query and key that each layer's attention saves: the mask, as numbers to add."""
    return WIDTHS[precision].product


def cache_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token of a cache of keys and values, all layers; scaled by an fp32 norm, autocast's keys are fp32."""
    key = 4 if precision != "bfloat16" else 2
    return shape.attention_layers * shape.keys * (key + WIDTHS[precision].product)


def state_bytes(shape: ModelShape) -> int:
    """Bytes a sequence of what layers without attention carry from token to token, in fp32."""
    return 4 * (shape.layers - shape.attention_layers) * shape.state_values


def layer_inputs(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token of the inputs of all decoder layers: all that checkpointed layers keep."""
    return shape.layers * shape.hidden * WIDTHS[precision].stream


def final_norm(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token that the last norm saves and returns."""
    w = WIDTHS[precision]
    return shape.hidden * (4 + w.normed + w.stream)


def backward_temporaries(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token of gradients in flight within one layer: of the MLP's three products and of two streams."""
    w = WIDTHS[precision]
    return 3 * shape.mlp * w.product + 2 * shape.hidden * w.stream


def passing(shape: ModelShape, precision: Precision) -> int:
    """Bytes a token in passing through a layer without a gradient: the wider of its MLP and its attention."""
    w = WIDTHS[precision]
    mlp = 3 * shape.mlp * w.product
    # Queries, their rotated copy and its two factors, repeated keys and values, the result.
    attention = (3 * shape.queries + shape.keys) * max(w.product, w.normed) + 3 * shape.queries * w.product
    return 2 * shape.hidden * w.stream + max(mlp, attention)


def saved_by_vision(vision: VisionShape, precision: Precision, checkpointing: bool, frozen: bool = False) -> int:
    """Bytes a patch that the tower, unless it is frozen, and its mergers save for the backward pass."""
    w = WIDTHS[precision]
    d, m = vision.hidden, vision.mlp
    # Two norms: input, and result as input of the next layer. Rotated queries and keys, and values that hold on to the
    # projection that all three are cut from; attention's result, put together anew for proj; the MLP, twice.
    block = 2 * d * (w.stream + w.product) + 7 * d * w.product + 2 * m * w.product
    merger = 3 * d * w.product + d * w.stream
    mergers = (1 + vision.deepstack) * merger
    if frozen:
        return mergers
    body = vision.layers * d * w.stream + block if checkpointing else vision.layers * block
    return body + mergers + vision.patch_inputs * w.product


def passing_vision(vision: VisionShape, precision: Precision) -> int:
    """Bytes a patch in passing through the tower: a block's attention, rotated in fp32, or its MLP."""
    w = WIDTHS[precision]
    return 2 * vision.hidden * w.stream + max(2 * vision.mlp * w.product, vision.hidden * (4 * w.product + 8))
