// Convolutions of five taps by Toom-Cook, on all positions of a chunk.

#pragma once

#include "linear.h"
#include "toom_cook.h"

namespace {

// Values at the points are [points, panel, tile, sample, PANEL].
inline int64_t tiles(const Value& v) { return (v.length + TILE - 1) / TILE; }
inline int64_t points(const Value& v) { return v.length <= TILE ? POINTS - 1 : POINTS; }
inline int64_t of_point(const Chunk& chunk, const Value& v) {  // floats
    return v.panels * tiles(v) * chunk.row();
}

// Calls do(first position, place in the value, place at a point) for each vector of all tiles.
template <class Do>
void each_tile(const Chunk& chunk, const Value& v, Do what) {
    for (int64_t p = 0; p < v.panels; ++p) {
        for (int64_t t = 0; t < tiles(v); ++t) {
            for (int64_t i = 0; i < chunk.row(); i += LANES) {
                what(t * TILE, p * chunk.panel(v) + i, (p * tiles(v) + t) * chunk.row() + i);
            }
        }
    }
}

inline void spread_inputs(const Chunk& chunk, const Value& v, const float* x, float* spread_x) {
    const int64_t next = chunk.row(), next_point = of_point(chunk, v), length = v.length;
    if (length <= TILE) {
        each_tile(chunk, v, [=](int64_t, int64_t from, int64_t to) {
            Vec in[TILE], out[POINTS];
            for (int i = 0; i < TILE; ++i) in[i] = i < length ? load(x + from + i * next) : Vec{};
            evaluate(in, out);
#pragma GCC unroll 8
            for (int p = 0; p < POINTS - 1; ++p) store(spread_x + to + p * next_point, out[p]);
        });
        return;
    }
    each_tile(chunk, v, [=](int64_t first, int64_t from, int64_t to) {
        Vec in[POINTS], out[POINTS];
#pragma GCC unroll 8
        for (int i = 0; i < POINTS; ++i) {
            const int64_t at = first + i - TAPS / 2;
            in[i] = at >= 0 && at < length ? load(x + from + at * next) : Vec{};
        }
        spread(in, out);
#pragma GCC unroll 8
        for (int p = 0; p < POINTS; ++p) store(spread_x + to + p * next_point, out[p]);
    });
}

inline void combine_outputs(const Chunk& chunk, const Value& v, const float* m, const float* bias,
                            float* y) {
    const int64_t next = chunk.row(), next_point = of_point(chunk, v), length = v.length;
    const int64_t n_points = points(v), of_panel = chunk.panel(v);
    each_tile(chunk, v, [=](int64_t first, int64_t to, int64_t from) {
        Vec in[POINTS] = {}, out[TILE];
#pragma GCC unroll 8
        for (int p = 0; p < POINTS; ++p) {
            if (p < n_points) in[p] = load(m + from + p * next_point);
        }
        combine(in, out);
        const Vec b = load(bias + to / of_panel * PANEL + to % PANEL);
#pragma GCC unroll 4
        for (int i = 0; i < TILE; ++i) {
            const Vec sum = b + out[length <= TILE ? TILE - 1 - i : i];
            if (first + i < length) store(y + to + (first + i) * next, sum);
        }
    });
}

// The transpose of `combine_outputs`.
inline void spread_grads(const Chunk& chunk, const Value& v, const float* dy, float* dm) {
    const int64_t next = chunk.row(), next_point = of_point(chunk, v), length = v.length;
    const int64_t n_points = points(v);
    each_tile(chunk, v, [=](int64_t first, int64_t from, int64_t to) {
        Vec in[TILE], out[POINTS];
#pragma GCC unroll 4
        for (int i = 0; i < TILE; ++i) {
            const int64_t at = first + (length <= TILE ? TILE - 1 - i : i);
            in[i] = at < length ? load(dy + from + at * next) : Vec{};
        }
        evaluate(in, out);
#pragma GCC unroll 8
        for (int p = 0; p < POINTS; ++p) {
            if (p < n_points) store(dm + to + p * next_point, out[p]);
        }
    });
}

// The transpose of `spread_inputs`.
inline void combine_grads(const Chunk& chunk, const Value& v, const float* dv, float* dx,
                          int64_t how) {
    const int64_t next = chunk.row(), next_point = of_point(chunk, v), length = v.length;
    if (length <= TILE) {
        each_tile(chunk, v, [=](int64_t, int64_t to, int64_t from) {
            Vec in[POINTS] = {}, out[TILE];
            for (int p = 0; p < POINTS - 1; ++p) in[p] = load(dv + from + p * next_point);
            combine(in, out);
            for (int i = 0; i < length; ++i) write(dx + to + i * next, out[i], how);
        });
        return;
    }
    each_tile(chunk, v, [=](int64_t first, int64_t to, int64_t from) {
        Vec in[POINTS], out[POINTS];
#pragma GCC unroll 8
        for (int p = 0; p < POINTS; ++p) in[p] = load(dv + from + p * next_point);
        gather(in, out);
#pragma GCC unroll 8
        for (int i = 0; i < POINTS; ++i) {  // the tile before this one reached its first four
            const int64_t at = first + i - TAPS / 2;
            if (at < 0 || at >= length) continue;
            write(dx + to + at * next, out[i], first && i < TILE ? int64_t(ADD) : how);
        }
    });
}

// Gradients of the taps from those of their sums, [points, out panel, in panel, PANEL, PANEL].
inline void write_tap_sums(const Chunk& chunk, const Op& op, const float* du, int64_t next_point) {
    const Value &in = chunk.value(op.in), &out = chunk.value(op.out);
    const auto& sums = in.length <= TILE ? TAP_SUMS.seven : TAP_SUMS.eight;
    const int64_t n_points = points(in);
    float* grad = chunk.grad.data + chunk.tape.grads_at[op.weight] + op.weight_at;
    for (int64_t o = 0; o < out.channels; ++o) {
        for (int64_t i = 0; i < in.panels * VECTORS; ++i) {
            const int64_t panel = i / VECTORS, c = i % VECTORS * LANES;
            const int64_t size = std::min<int64_t>(LANES, in.size(panel) - c) * TAPS;
            if (size <= 0) continue;
            const int64_t block = o / PANEL * in.panels + panel;
            const float* from = du + block * BLOCK + o % PANEL * PANEL + c;
            Vec taps[TAPS] = {};
            for (int64_t p = 0; p < n_points; ++p) {
                const Vec value = load(from + p * next_point);
#pragma GCC unroll 8
                for (int t = 0; t < TAPS; ++t) taps[t] += sums[p][t] * value;
            }
            alignas(64) float flat[TAPS * LANES];
            together(taps, flat);
            float* to = grad + o * op.out_stride + (in.first(panel) + c) * TAPS;
            if (chunk.grad.add) {
                for (int64_t l = 0; l < size; ++l) to[l] += flat[l];
            } else {
                std::memcpy(to, flat, 4 * size);
            }
        }
    }
}

inline void convolution(Chunk& chunk, const Op& op) {
    const Value &in = chunk.value(op.in), &out = chunk.value(op.out);
    const int64_t n_rows = tiles(in) * chunk.n, of_panel = n_rows * PANEL;
    float* v = chunk.scratch;
    float* m = v + POINTS * in.panels * of_panel;
    spread_inputs(chunk, in, chunk.x(op.in), v);
    for (int64_t p = 0; p < points(in); ++p) {
        for (int64_t o = 0; o < out.panels; ++o) {
            chunk.factors.clear();
            for (int64_t i = 0; i < in.panels; ++i) {
                const int64_t block = (p * out.panels + o) * in.panels + i;
                chunk.factors.push_back({v + (p * in.panels + i) * of_panel,
                                         chunk.tape.packed + op.packed + block * BLOCK});
            }
            multiply(chunk.factors, in.depth(), n_rows, m + (p * out.panels + o) * of_panel);
        }
    }
    combine_outputs(chunk, out, m, chunk.tape.packed + op.packed_bias, chunk.x(op.out));
}

inline void convolution_back(Chunk& chunk, const Op& op) {
    const Value &in = chunk.value(op.in), &out = chunk.value(op.out);
    const int64_t n_rows = tiles(in) * chunk.n, of_panel = n_rows * PANEL;
    const int64_t blocks = out.panels * in.panels;
    float* v = chunk.scratch;
    float* dm = v + POINTS * in.panels * of_panel;
    float* du = dm + POINTS * out.panels * of_panel;
    spread_inputs(chunk, in, chunk.x(op.in), v);
    spread_grads(chunk, out, chunk.d(op.out), dm);
    for (int64_t p = 0; p < points(in); ++p) {
        for (int64_t o = 0; o < out.panels; ++o) {
            for (int64_t i = 0; i < in.panels; ++i) {
                chunk.factors.assign(1, {dm + (p * out.panels + o) * of_panel,
                                         v + (p * in.panels + i) * of_panel});
                multiply<true>(chunk.factors, n_rows, PANEL,
                               du + ((p * out.panels + o) * in.panels + i) * BLOCK);
            }
        }
        if (op.d_in == NOTHING) continue;
        for (int64_t i = 0; i < in.panels; ++i) {
            chunk.factors.clear();
            for (int64_t o = 0; o < out.panels; ++o) {
                const int64_t block = p * blocks + i * out.panels + o;
                chunk.factors.push_back({dm + (p * out.panels + o) * of_panel,
                                         chunk.tape.packed + op.packed_back + block * BLOCK});
            }
            multiply(chunk.factors, out.depth(), n_rows, v + (p * in.panels + i) * of_panel);
        }
    }
    write_tap_sums(chunk, op, du, blocks * BLOCK);
    bias_back(chunk, op);
    if (op.d_in != NOTHING) combine_grads(chunk, in, v, chunk.d(op.in), op.d_in);
}

}  // namespace
