// Forward and backward of a U-Net in training, as a tape of operations on values.
//
// `unet1d_tape.py` writes the tape. The batch is cut into chunks, and a thread takes its chunks
// through the whole tape, so that threads wait for each other only at the end of a pass. Nothing is
// checked here.
//
// A value of some positions and channels of n samples is a stack of panels of PANEL channels,
// [panel, position, sample, PANEL]; channels beyond the last are zero. Values beside each other in
// memory are their concatenation. Weights are packed as blocks [PANEL, PANEL], once as they are
// used and once transposed for the way back.

#include "training/convolution.h"
#include "training/norm.h"

namespace {

template <class Act>
void activate(const Chunk& chunk, const Op& op) {
    const Value& v = chunk.value(op.in);
    const float* in = chunk.x(op.in);
    float* out = chunk.x(op.out);
    for (int64_t i = 0; i < v.panels * chunk.panel(v); i += LANES) {
        Vec value, slope;
        Act::of(load(in + i), value, slope);
        store(out + i, value);
    }
}

template <class Act>
void activate_back(const Chunk& chunk, const Op& op) {
    if (op.d_in == NOTHING) return;
    const Value& v = chunk.value(op.in);
    const float *in = chunk.x(op.in), *d_out = chunk.d(op.out);
    float* d_in = chunk.d(op.in);
    for (int64_t i = 0; i < v.panels * chunk.panel(v); i += LANES) {
        Vec value, slope;
        Act::of(load(in + i), value, slope);
        write(d_in + i, slope * load(d_out + i), op.d_in);
    }
}

// The mean of each two positions.
void halve(const Chunk& chunk, const Op& op) {
    const Value& out = chunk.value(op.out);
    const int64_t next = chunk.row();
    for (int64_t l = 0; l < out.panels * out.length; ++l) {
        const float* from = chunk.x(op.in) + 2 * l * next;
        for (int64_t i = 0; i < next; i += LANES) {
            store(chunk.x(op.out) + l * next + i, 0.5f * (load(from + i) + load(from + next + i)));
        }
    }
}

void halve_back(const Chunk& chunk, const Op& op) {
    const Value& out = chunk.value(op.out);
    const int64_t next = chunk.row();
    for (int64_t l = 0; l < out.panels * out.length; ++l) {
        float* to = chunk.d(op.in) + 2 * l * next;
        for (int64_t i = 0; i < next; i += LANES) {
            const Vec half = 0.5f * load(chunk.d(op.out) + l * next + i);
            write(to + i, half, op.d_in);
            write(to + next + i, half, op.d_in);
        }
    }
}

template <class Act>
void forward(Chunk& chunk, const Op& op) {
    switch (op.kind) {
        case LINEAR: return linear(chunk, op);
        case TOOM_COOK: return convolution(chunk, op);
        case NORM: return norm<Act>(chunk, op);
        case ACTIVATE: return activate<Act>(chunk, op);
        case HALVE: return halve(chunk, op);
    }
}

template <class Act>
void backward(Chunk& chunk, const Op& op) {
    switch (op.kind) {
        case LINEAR: return linear_back(chunk, op);
        case TOOM_COOK: return convolution_back(chunk, op);
        case NORM: return norm_back<Act>(chunk, op);
        case ACTIVATE: return activate_back<Act>(chunk, op);
        case HALVE: return halve_back(chunk, op);
    }
}

// What is given or asked for, [batch, length, channels], of a value that is no concatenation.
struct Outside {
    int64_t value;
    float* data;
};

// Calls do(floats within a chunk, floats outside, how many) for each row of a panel.
template <class Do>
void each_row_outside(const Chunk& chunk, const Outside& outside, Do what) {
    const Value& v = chunk.value(outside.value);
    for (int64_t p = 0; p < v.panels; ++p) {
        for (int64_t l = 0; l < v.length; ++l) {
            for (int64_t b = 0; b < chunk.n; ++b) {
                const int64_t row = (chunk.first + b) * v.length + l;
                what(((p * v.length + l) * chunk.n + b) * PANEL,
                     outside.data + row * v.channels + p * PANEL, v.size(p));
            }
        }
    }
}

void take(const Chunk& chunk, const Outside& from, float* to) {
    each_row_outside(chunk, from, [=](int64_t at, const float* row, int64_t size) {
        std::memcpy(to + at, row, 4 * size);
        std::fill(to + at + size, to + at + PANEL, 0.0f);
    });
}

void give(const Chunk& chunk, const Outside& to, const float* from) {
    each_row_outside(chunk, to, [=](int64_t at, float* row, int64_t size) {
        std::memcpy(row, from + at, 4 * size);
    });
}

// Packing of weights.

void pack_vector(const Tape& tape, int64_t parameter, int64_t at, const Value& v, int64_t packed) {
    if (parameter < 0) return;
    float* to = tape.packed + packed;
    std::memcpy(to, tape.parameters[parameter] + at, 4 * v.channels);
    std::fill(to + v.channels, to + v.panels * PANEL, 0.0f);
}

// The blocks of an operation's weights for one panel of its output.
void pack_panel(const Tape& tape, const Op& op, int64_t o) {
    const Value &in = tape.values[op.in], &out = tape.values[op.out];
    const bool is_toom = op.kind == TOOM_COOK;
    const auto& sums = in.length <= TILE ? TAP_SUMS.seven : TAP_SUMS.eight;
    const int64_t n = is_toom ? (in.length <= TILE ? POINTS - 1 : POINTS) : op.taps;
    const int64_t n_out = out.size(o);
    const float* weight = tape.parameters[op.weight] + op.weight_at + out.first(o) * op.out_stride;
    alignas(64) float flat[TAPS * PANEL];
    for (int64_t i = 0; i < in.panels; ++i) {
        const int64_t n_in = in.size(i);
        const auto back = [&](int64_t k) {
            const int64_t block = is_toom ? (k * in.panels + i) * out.panels + o
                                          : (i * n + k) * out.panels + o;
            return tape.packed + op.packed_back + block * BLOCK;
        };
        const auto there = [&](int64_t k) {
            const int64_t block = is_toom ? (k * out.panels + o) * in.panels + i
                                          : (o * n + k) * in.panels + i;
            return tape.packed + op.packed + block * BLOCK;
        };
        for (int64_t r = 0; r < PANEL; ++r) {
            const float* row = weight + r * op.out_stride + in.first(i) * op.in_stride;
            if (is_toom) {
                const bool is_whole = r < n_out && n_in == PANEL;
                if (!is_whole) {
                    std::memset(flat, 0, sizeof flat);
                    if (r < n_out) std::memcpy(flat, row, 4 * TAPS * n_in);
                }
                for (int v = 0; v < VECTORS; ++v) {
                    Vec taps[TAPS];
                    apart((is_whole ? row : flat) + v * TAPS * LANES, taps);
                    for (int64_t k = 0; k < n; ++k) {
                        Vec sum = {};
#pragma GCC unroll 8
                        for (int t = 0; t < TAPS; ++t) sum += sums[k][t] * taps[t];
                        store(back(k) + r * PANEL + v * LANES, sum);
                    }
                }
            } else {
                for (int64_t k = 0; k < n; ++k) {
                    float* to = back(k) + r * PANEL;
                    for (int64_t c = 0; c < PANEL; ++c) {
                        to[c] = r < n_out && c < n_in ? row[c * op.in_stride + k] : 0.0f;
                    }
                }
            }
        }
        for (int64_t k = 0; k < n; ++k) transpose(back(k), there(k));
    }
}

void pack(const Tape& tape, int threads) {
    std::vector<std::pair<const Op*, int64_t>> parts;
    for (int64_t i = 0; i < tape.n_ops; ++i) {
        const Op& op = tape.ops[i];
        const Value& out = tape.values[op.out];
        if (op.kind == LINEAR || op.kind == TOOM_COOK) {
            pack_vector(tape, op.bias, op.bias_at, out, op.packed_bias);
            for (int64_t o = 0; o < out.panels; ++o) parts.emplace_back(&op, o);
        } else if (op.kind == NORM) {
            pack_vector(tape, op.gamma, 0, out, op.packed_gamma);
            pack_vector(tape, op.beta, 0, out, op.packed_beta);
        }
    }
    const int64_t n = parts.size();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < n; ++i) pack_panel(tape, *parts[i].first, parts[i].second);
}

}  // namespace

extern "C" int64_t training_panel() { return PANEL; }

extern "C" void training_forward(const Tape* tape, const Outside* inputs, int64_t n_inputs,
                                 Outside output) {
    const int threads = int(tape->threads);
    pack(*tape, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
        for (int64_t i = tape->chunks * t / threads; i < tape->chunks * (t + 1) / threads; ++i) {
            Chunk chunk(*tape, i, t, {});
            for (int64_t k = 0; k < n_inputs; ++k) take(chunk, inputs[k], chunk.x(inputs[k].value));
            for (const Op* op = tape->ops; op < tape->ops + tape->n_ops; ++op) {
                op->is_mish ? forward<Mish>(chunk, *op) : forward<Silu>(chunk, *op);
            }
            give(chunk, output, chunk.x(output.value));
        }
    }
}

// `grads`: [threads, all parameters], of which the first row is the result.
extern "C" void training_backward(const Tape* tape, Outside d_output, const Outside* d_inputs,
                                  int64_t n_inputs, float* grads) {
    const int threads = int(tape->threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
        const int64_t begin = tape->chunks * t / threads;
        for (int64_t i = begin; i < tape->chunks * (t + 1) / threads; ++i) {
            Chunk chunk(*tape, i, t, {grads + t * tape->n_grads, i > begin});
            take(chunk, d_output, chunk.d(d_output.value));
            for (const Op* op = tape->ops + tape->n_ops - 1; op >= tape->ops; --op) {
                op->is_mish ? backward<Mish>(chunk, *op) : backward<Silu>(chunk, *op);
            }
            for (int64_t k = 0; k < n_inputs; ++k) {
                give(chunk, d_inputs[k], chunk.d(d_inputs[k].value));
            }
        }
    }
    if (threads == 1) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < tape->n_grads; ++i) {
        for (int64_t t = 1; t < threads; ++t) grads[i] += grads[t * tape->n_grads + i];
    }
}
