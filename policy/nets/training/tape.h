// The tape: its operations, the values that they are about, and the state of one chunk of samples.
//
// The structs are mirrored field by field in unet1d_tape.py.

#pragma once

#include <algorithm>

#include "products.h"

namespace {

enum Kind : int64_t { LINEAR, TOOM_COOK, NORM, ACTIVATE, HALVE };

struct Value {
    int64_t at, grad_at;  // floats of each sample that lie before it
    int64_t length, panels, parts, channels;  // channels of each part of a concatenation

    int64_t first(int64_t panel) const {  // channel
        return panel / (panels / parts) * channels + panel % (panels / parts) * PANEL;
    }
    int64_t size(int64_t panel) const {  // channels of a panel
        return std::min<int64_t>(PANEL, channels - panel % (panels / parts) * PANEL);
    }
    int64_t depth() const { return panels == 1 ? channels : PANEL; }  // of products with it
};

// Values and parameters by number, -1: none. Places of what is packed are in floats.
struct Op {
    int64_t kind, in, out, d_in;  // d_in: a Write
    int64_t weight, weight_at, out_stride, in_stride, taps, step, before, is_transposed;
    int64_t bias, bias_at, packed, packed_back, packed_bias;
    int64_t gamma, beta, packed_gamma, packed_beta, groups, is_mish;
    int64_t scale, sample_scale, sample_shift, shift, residual, d_residual, statistics;
};

struct Tape {
    const Op* ops;
    const Value* values;
    const float* const* parameters;
    const int64_t* grads_at;  // of each parameter in the flat gradient
    int64_t n_ops, n_grads;
    int64_t batch, chunks, threads;
    int64_t floats, scratch;  // of a sample; of a thread
    double epsilon;
    float *packed, *arena, *workspace;
};

struct Grad {  // of all parameters, by one thread
    float* data;
    bool add;
    void write(int64_t at, float value) const { data[at] = add ? data[at] + value : value; }
};

class Chunk {
  public:
    Chunk(const Tape& tape, int64_t number, int64_t thread, Grad grad)
        : tape(tape), first(begin(tape, number)), n(begin(tape, number + 1) - first),
          scratch(tape.workspace + thread * tape.scratch), grad(grad),
          arena_(tape.arena + first * tape.floats) {}

    const Value& value(int64_t number) const { return tape.values[number]; }
    float* x(int64_t number) const {
        return number < 0 ? nullptr : arena_ + value(number).at * n;
    }
    float* d(int64_t number) const {  // gradient
        return number < 0 ? nullptr : arena_ + value(number).grad_at * n;
    }
    int64_t row() const { return n * PANEL; }  // floats of a panel of a position
    int64_t rows(const Value& v) const { return v.length * n; }
    int64_t panel(const Value& v) const { return v.length * row(); }  // floats

    // Gradients of a parameter from sums over samples of a panel of its channels.
    void write_channels(int64_t parameter, int64_t at, const Value& v, int64_t panel,
                        const float* sums) const {
        for (int64_t c = 0; c < v.size(panel); ++c) {
            grad.write(tape.grads_at[parameter] + at + panel * PANEL + c, sums[c]);
        }
    }

    const Tape& tape;
    const int64_t first, n;  // samples
    float* const scratch;
    const Grad grad;
    std::vector<Factor> factors;  // of the product at hand

  private:
    // Positions that lie a multiple of 4096 bytes apart hinder each other in the cache, so that
    // chunks have odd sizes where they have many samples.
    static int64_t begin(const Tape& tape, int64_t number) {
        const int64_t begin = tape.batch * number / tape.chunks;
        const bool is_between = number % 2 && number < tape.chunks;
        return is_between && tape.batch > 16 * tape.chunks ? begin - 1 + begin % 2 : begin;
    }

    float* const arena_;
};

}  // namespace
