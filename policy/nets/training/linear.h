// Linear layers and convolutions with any taps and steps: a product for each tap of each position.

#pragma once

#include "tape.h"

namespace {

// The position of the input that a tap sees for a position of the output; -1: none.
inline int64_t source(const Op& op, const Value& in, int64_t position, int64_t tap) {
    int64_t at = position * op.step + tap - op.before;
    if (op.is_transposed) {
        at = position + op.before - tap;
        if (at % op.step) return -1;
        at /= op.step;
    }
    return at >= 0 && at < in.length ? at : -1;
}

// A layer that looks at each position by itself is one matrix product for all of them.
inline bool is_pointwise(const Op& op) { return op.taps == 1 && op.step == 1; }

// Gradients [out, in] of one tap of the weights of two panels.
inline void write_taps(const Chunk& chunk, const Op& op, int64_t o, int64_t i, int64_t tap,
                       const float* block) {
    const Value &in = chunk.value(op.in), &out = chunk.value(op.out);
    const int64_t at = chunk.tape.grads_at[op.weight] + op.weight_at + tap +
                       out.first(o) * op.out_stride + in.first(i) * op.in_stride;
    for (int64_t r = 0; r < out.size(o); ++r) {
        for (int64_t c = 0; c < in.size(i); ++c) {
            chunk.grad.write(at + r * op.out_stride + c * op.in_stride, block[r * PANEL + c]);
        }
    }
}

inline void bias_back(const Chunk& chunk, const Op& op) {
    if (op.bias < 0) return;
    const Value& out = chunk.value(op.out);
    const float* dy = chunk.d(op.out);
    for (int64_t o = 0; o < out.panels; ++o, dy += chunk.panel(out)) {
        Vec sum[VECTORS] = {};
        for (int64_t row = 0; row < chunk.rows(out); ++row) {
            for (int v = 0; v < VECTORS; ++v) sum[v] += load(dy + row * PANEL + v * LANES);
        }
        float sums[PANEL];
        for (int v = 0; v < VECTORS; ++v) store(sums + v * LANES, sum[v]);
        chunk.write_channels(op.bias, op.bias_at, out, o, sums);
    }
}

inline void linear(Chunk& chunk, const Op& op) {
    const Value &in = chunk.value(op.in), &out = chunk.value(op.out);
    const float *x = chunk.x(op.in), *packed = chunk.tape.packed + op.packed;
    const bool whole = is_pointwise(op);
    const int64_t steps = whole ? 1 : out.length, n = whole ? chunk.rows(out) : chunk.n;
    for (int64_t o = 0; o < out.panels; ++o) {
        const float* bias = op.bias < 0 ? nullptr : chunk.tape.packed + op.packed_bias + o * PANEL;
        for (int64_t l = 0; l < steps; ++l) {
            chunk.factors.clear();
            for (int64_t t = 0; t < op.taps; ++t) {
                const int64_t from = whole ? 0 : source(op, in, l, t);
                if (from < 0) continue;
                for (int64_t i = 0; i < in.panels; ++i) {
                    const int64_t block = (o * op.taps + t) * in.panels + i;
                    chunk.factors.push_back({x + i * chunk.panel(in) + from * n * PANEL,
                                             packed + block * BLOCK});
                }
            }
            float* to = chunk.x(op.out) + o * chunk.panel(out) + l * n * PANEL;
            multiply(chunk.factors, in.depth(), n, to, false, bias);
        }
    }
}

inline void linear_back(Chunk& chunk, const Op& op) {
    const Value &in = chunk.value(op.in), &out = chunk.value(op.out);
    const float *x = chunk.x(op.in), *dy = chunk.d(op.out);
    const float* packed = chunk.tape.packed + op.packed_back;
    const bool whole = is_pointwise(op);
    const int64_t steps = whole ? 1 : out.length, n = whole ? chunk.rows(out) : chunk.n;
    const int64_t in_steps = whole ? 1 : in.length;
    const auto seen = [&](int64_t l, int64_t t) { return whole ? 0 : source(op, in, l, t); };
    alignas(64) float block[BLOCK];
    for (int64_t o = 0; o < out.panels; ++o) {
        for (int64_t i = 0; i < in.panels; ++i) {
            for (int64_t t = 0; t < op.taps; ++t) {
                chunk.factors.clear();
                for (int64_t l = 0; l < steps; ++l) {
                    const int64_t from = seen(l, t);
                    if (from < 0) continue;
                    chunk.factors.push_back({dy + o * chunk.panel(out) + l * n * PANEL,
                                             x + i * chunk.panel(in) + from * n * PANEL});
                }
                multiply<true>(chunk.factors, n, PANEL, block);
                write_taps(chunk, op, o, i, t, block);
            }
        }
    }
    bias_back(chunk, op);
    if (op.d_in == NOTHING) return;
    for (int64_t i = 0; i < in.panels; ++i) {
        for (int64_t from = 0; from < in_steps; ++from) {
            chunk.factors.clear();
            for (int64_t l = 0; l < steps; ++l) {
                for (int64_t t = 0; t < op.taps; ++t) {
                    if (seen(l, t) != from) continue;
                    for (int64_t o = 0; o < out.panels; ++o) {
                        const int64_t at = (i * op.taps + t) * out.panels + o;
                        chunk.factors.push_back({dy + o * chunk.panel(out) + l * n * PANEL,
                                                 packed + at * BLOCK});
                    }
                }
            }
            float* to = chunk.d(op.in) + i * chunk.panel(in) + from * n * PANEL;
            multiply(chunk.factors, out.depth(), n, to, op.d_in == ADD);
        }
    }
}

}  // namespace
