"""What is assumed of a core before anything was measured on it; every number with where it is from.

Efficiencies are shares of the board's peak that onnxruntime's kernels reach. They come from counting
the executed instructions of onnxruntime 1.32's aarch64 kernels under emulation and costing each hot
block with LLVM 19's scheduling models (A53 in-order, A72 out-of-order, Neoverse N1 for the A76 with
dot product): no cache misses, no throttling. benchmarks/predict_published.py
holds them against published timings of real boards.
"""

from __future__ import annotations

from edgeml.bench.predict.machine import Machine

IN_ORDER, OUT_OF_ORDER, DOT = "in-order", "out-of-order", "dot-product"

# class -> share of peak on each kind of core. conv and gemm: a 128x512x512 product at 2.1, 3.9 and 7.7 MAC
# a cycle in fp32, 2.6, 7.2 and 26.8 in int8. depthwise: what is left of MobileNetV2 after that. gemv: 0.59
# instructions a MAC in fp32, 0.57 (0.44 with dot product) in int8, at the rates of INSTRUCTIONS_PER_CYCLE
EFFICIENCY: dict[str, dict[str, float]] = {
    "conv": {IN_ORDER: 0.52, OUT_OF_ORDER: 0.97, DOT: 0.96},
    "gemm": {IN_ORDER: 0.52, OUT_OF_ORDER: 0.97, DOT: 0.96},
    "depthwise": {IN_ORDER: 0.025, OUT_OF_ORDER: 0.058, DOT: 0.042},
    "gemv": {IN_ORDER: 0.30, OUT_OF_ORDER: 0.50, DOT: 0.53},
    "conv.int8": {IN_ORDER: 0.32, OUT_OF_ORDER: 0.90, DOT: 0.84},
    "gemm.int8": {IN_ORDER: 0.32, OUT_OF_ORDER: 0.90, DOT: 0.84},
    "depthwise.int8": {IN_ORDER: 0.026, OUT_OF_ORDER: 0.069, DOT: 0.027},
    "gemv.int8": {IN_ORDER: 0.15, OUT_OF_ORDER: 0.25, DOT: 0.18},
}

# int8 by activation type, relative to the better one: instructions of one MobileNetV2-96
ACTIVATIONS: dict[str, dict[str, float]] = {
    "u8s8": {IN_ORDER: 1.0, OUT_OF_ORDER: 1.0, DOT: 0.95},  # 13.16 M against 12.50 M with dot product
    "s8s8": {IN_ORDER: 0.935, OUT_OF_ORDER: 0.935, DOT: 1.0},  # 25.09 M against 23.47 M without
}

INSTRUCTIONS_PER_CALL = 24_000  # bound buffers, one float input: 23,383 counted on aarch64
INSTRUCTIONS_PER_RUN = 42_400  # session.run with a dictionary: 42,421 counted
INSTRUCTIONS_PER_NODE = 3_000  # assumption: dispatch of one small operator
INSTRUCTIONS_PER_UNKNOWN = 50_000  # assumption, and it lowers the coverage
INSTRUCTIONS_PER_CYCLE = {IN_ORDER: 0.7, OUT_OF_ORDER: 1.2, DOT: 2.0}  # assumption: branchy code, small data
CYCLES_PER_VISIT = {IN_ORDER: 20.0, OUT_OF_ORDER: 10.0, DOT: 8.0}  # assumption: one tree node, in cache or near
THREAD_EXPONENT = 0.5  # four threads are about twice as fast as one on every Pi (ncnn, TFLite: 1.7 to 2.2)


def kind_of(board: Machine) -> str:
    """Return which column of the tables fits `board`."""
    if board.pipeline == "in-order":
        return IN_ORDER
    return DOT if board.dot_product else OUT_OF_ORDER


def macs_per_second(board: Machine, macs_class: str) -> float:
    """Return the multiply-accumulates a second that one core of `board` reaches in a class of graph.Cost."""
    operator, _, types = macs_class.partition(".")
    hertz, kind = board.frequency_ghz * 1e9, kind_of(board)
    if not types:
        return hertz * board.fp32_flops_per_cycle / 2 * EFFICIENCY[operator][kind]
    share = EFFICIENCY[f"{operator}.int8"][kind] * ACTIVATIONS.get(types, ACTIVATIONS["s8s8"])[kind]
    return hertz * board.int8_macs_per_cycle * share
