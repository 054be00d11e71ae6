// Group norm, activation, FiLM and residual, for some samples at a time.
//
// Sums over positions are [panel, sample, PANEL]; a row of a panel of them is `width` floats.

#pragma once

#include <cmath>

#include "tape.h"

namespace {

constexpr int SAMPLES = 8;  // at a time: as many as stay in the nearest cache

// Each channel's mean over its group, of sums over positions per channel.
inline void mean_of_groups(const Op& op, const Value& v, int64_t width, float* sums) {
    const int64_t size = v.channels / op.groups;
    const float share = 1.0f / float(size * v.length);
    if (LANES % size == 0 && (size & (size - 1)) == 0 && v.channels % PANEL == 0) {
        for (int64_t i = 0; i < v.panels * width; i += LANES) {
            store(sums + i, share * sum_of_lanes(load(sums + i), size));
        }
        return;
    }
    for (int64_t at = 0; at < width; at += PANEL) {
        const auto of_channel = [&](int64_t c) -> float& {
            return sums[c / PANEL * width + at + c % PANEL];
        };
        for (int64_t c = 0; c < v.channels; c += size) {
            float sum = 0;
            for (int64_t i = 0; i < size; ++i) sum += of_channel(c + i);
            for (int64_t i = 0; i < size; ++i) of_channel(c + i) = share * sum;
        }
    }
}

// Calls do(panel, position) for each row of floats of a value.
template <class Do>
void each_row(const Value& v, Do what) {
    for (int64_t p = 0; p < v.panels; ++p) {
        for (int64_t l = 0; l < v.length; ++l) what(p, l);
    }
}

template <class Act>
void norm(const Chunk& chunk, const Op& op) {
    const Value& v = chunk.value(op.in);
    const float epsilon = float(chunk.tape.epsilon);
    const bool has_film = op.scale >= 0, has_residual = op.residual >= 0;
    const int64_t next = chunk.row();
    std::vector<float> buffer(2 * v.panels * SAMPLES * PANEL);
    for (int64_t b = 0; b < chunk.n; b += SAMPLES) {
        const int64_t width = std::min<int64_t>(SAMPLES, chunk.n - b) * PANEL, begin = b * PANEL;
        float *means = buffer.data(), *rstds = means + v.panels * width;
        std::fill(means, rstds + v.panels * width, 0.0f);
        each_row(v, [&](int64_t p, int64_t l) {
            const float* y = chunk.x(op.in) + p * chunk.panel(v) + l * next + begin;
            float* sum = means + p * width;
            for (int64_t i = 0; i < width; i += LANES) store(sum + i, load(sum + i) + load(y + i));
        });
        mean_of_groups(op, v, width, means);
        each_row(v, [&](int64_t p, int64_t l) {  // squares about the mean: nothing cancels
            const float* y = chunk.x(op.in) + p * chunk.panel(v) + l * next + begin;
            const float* mean = means + p * width;
            float* sum = rstds + p * width;
            for (int64_t i = 0; i < width; i += LANES) {
                const Vec difference = load(y + i) - load(mean + i);
                store(sum + i, load(sum + i) + difference * difference);
            }
        });
        mean_of_groups(op, v, width, rstds);
        for (int64_t i = 0; i < v.panels * width; ++i) {
            rstds[i] = 1.0f / std::sqrt(rstds[i] + epsilon);
        }
        for (int64_t p = 0; p < v.panels; ++p) {
            float* statistics = chunk.x(op.statistics) + p * 2 * next + begin;
            std::memcpy(statistics, means + p * width, 4 * width);
            std::memcpy(statistics + next, rstds + p * width, 4 * width);
        }
        each_row(v, [&](int64_t p, int64_t l) {
            const int64_t at = p * chunk.panel(v) + l * next + begin, of_sample = p * next + begin;
            const float *mean = means + p * width, *rstd = rstds + p * width;
            const float *gamma = chunk.tape.packed + op.packed_gamma + p * PANEL;
            const float *beta = chunk.tape.packed + op.packed_beta + p * PANEL;
            const float *y = chunk.x(op.in) + at, *residual = chunk.x(op.residual) + at;
            const float *scale = chunk.x(op.scale) + at, *shift = chunk.x(op.shift) + at;
            const float* sample_scale = chunk.x(op.sample_scale) + of_sample;
            const float* sample_shift = chunk.x(op.sample_shift) + of_sample;
            float* out = chunk.x(op.out) + at;
            for (int64_t i = 0; i < width; i += LANES) {
                const Vec normed = (load(y + i) - load(mean + i)) * load(rstd + i);
                Vec value, slope;
                Act::of(normed * load(gamma + i % PANEL) + load(beta + i % PANEL), value, slope);
                if (has_film) {
                    value = value * (load(scale + i) + load(sample_scale + i)) +
                            (load(shift + i) + load(sample_shift + i));
                }
                if (has_residual) value += load(residual + i);
                store(out + i, value);
            }
        });
    }
}

template <class Act>
void norm_back(const Chunk& chunk, const Op& op) {
    const Value& v = chunk.value(op.in);
    const bool has_film = op.scale >= 0;
    const int64_t next = chunk.row(), size = v.panels * PANEL;
    std::vector<float> buffer(2 * (SAMPLES + 1) * size);
    float *d_gamma = buffer.data(), *d_beta = d_gamma + size;
    for (int64_t b = 0; b < chunk.n; b += SAMPLES) {
        const int64_t width = std::min<int64_t>(SAMPLES, chunk.n - b) * PANEL, begin = b * PANEL;
        float *firsts = d_beta + size, *seconds = firsts + v.panels * width;
        std::fill(firsts, seconds + v.panels * width, 0.0f);
        each_row(v, [&](int64_t p, int64_t l) {
            const int64_t at = p * chunk.panel(v) + l * next + begin, of_sample = p * next + begin;
            const float *mean = chunk.x(op.statistics) + p * 2 * next + begin, *rstd = mean + next;
            const float *gamma = chunk.tape.packed + op.packed_gamma + p * PANEL;
            const float *beta = chunk.tape.packed + op.packed_beta + p * PANEL;
            const float *y = chunk.x(op.in) + at, *d_out = chunk.d(op.out) + at;
            const float* scale = chunk.x(op.scale) + at;
            const float* sample_scale = chunk.x(op.sample_scale) + of_sample;
            float *dy = chunk.d(op.in) + at, *d_residual = chunk.d(op.residual) + at;
            float *d_scale = chunk.d(op.scale) + at;
            float* d_sample_scale = chunk.d(op.sample_scale) + of_sample;
            float* d_sample_shift = chunk.d(op.sample_shift) + of_sample;
            float *first = firsts + p * width, *second = seconds + p * width;
            const Write how = l ? ADD : SET;
            for (int64_t i = 0; i < width; i += LANES) {
                const Vec normed = (load(y + i) - load(mean + i)) * load(rstd + i);
                Vec value, slope, grad = load(d_out + i);
                Act::of(normed * load(gamma + i % PANEL) + load(beta + i % PANEL), value, slope);
                if (op.d_residual != NOTHING) write(d_residual + i, grad, op.d_residual);
                if (has_film) {
                    store(d_scale + i, grad * value);
                    write(d_sample_scale + i, grad * value, how);
                    write(d_sample_shift + i, grad, how);
                    grad *= load(scale + i) + load(sample_scale + i);
                }
                grad *= slope;
                store(dy + i, grad);
                write(first + i, grad, ADD);
                write(second + i, grad * normed, ADD);
            }
        });
        for (int64_t p = 0; p < v.panels; ++p) {
            for (int64_t i = 0; i < width; i += LANES) {
                const int64_t c = p * PANEL + i % PANEL;
                const Vec gamma = load(chunk.tape.packed + op.packed_gamma + c);
                float *first = firsts + p * width + i, *second = seconds + p * width + i;
                write(d_beta + c, load(first), ADD);
                write(d_gamma + c, load(second), ADD);
                store(first, load(first) * gamma);
                store(second, load(second) * gamma);
            }
        }
        mean_of_groups(op, v, width, firsts);
        mean_of_groups(op, v, width, seconds);
        each_row(v, [&](int64_t p, int64_t l) {
            const int64_t at = p * chunk.panel(v) + l * next + begin;
            const float *mean = chunk.x(op.statistics) + p * 2 * next + begin, *rstd = mean + next;
            const float *gamma = chunk.tape.packed + op.packed_gamma + p * PANEL;
            const float *first = firsts + p * width, *second = seconds + p * width;
            const float* y = chunk.x(op.in) + at;
            float* dy = chunk.d(op.in) + at;
            for (int64_t i = 0; i < width; i += LANES) {
                const Vec r = load(rstd + i), normed = (load(y + i) - load(mean + i)) * r;
                const Vec grad = load(dy + i) * load(gamma + i % PANEL);
                store(dy + i, r * (grad - load(first + i) - normed * load(second + i)));
            }
        });
    }
    for (int64_t p = 0; p < v.panels; ++p) {
        chunk.write_channels(op.gamma, 0, v, p, d_gamma + p * PANEL);
        chunk.write_channels(op.beta, 0, v, p, d_beta + p * PANEL);
    }
}

}  // namespace
