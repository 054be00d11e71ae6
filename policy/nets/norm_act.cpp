// Group norm, activation and FiLM of a U-Net in training, in one pass over the features each way.
//
// Features lie [length, batch, channels], so that all loops run over channels side by side. A sample
// is read once from memory: it stays in the cache from one of its loops to the next. Nothing is
// checked here; `norm_act.py` is the caller.
//
//     n = (y + bias - mean) * rstd * gamma + beta,   mean and rstd over positions and a group's channels
//     out = act(n) * scale + shift + residual
//
// scale and shift are the sum of a FiLM per position [length, batch, 2 channels] and one per sample
// [batch, 2 channels]; where there is none, scale is 1 and shift 0.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

inline float exponential(float x) {  // one or two units in the last place; vectorises
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // the whole part is in the lowest bits
    const float whole = shifted - 12582912.0f;
    const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits, exponent;
    std::memcpy(&bits, &p, 4);
    std::memcpy(&exponent, &shifted, 4);
    bits += exponent << 23;
    std::memcpy(&p, &bits, 4);
    return p;
}

struct Silu {
    static inline void of(float n, float& value, float& slope) {
        const float sigmoid = 1.0f / (1.0f + exponential(-n));
        value = n * sigmoid;
        slope = sigmoid * (1.0f + n * (1.0f - sigmoid));
    }
};

struct Mish {  // n tanh(log(1 + e)) with e = exp(n): tanh = m / (m + 2) with m = e (e + 2)
    static inline void of(float n, float& value, float& slope) {
        const float e = exponential(n > 20.0f ? 20.0f : n);
        const float m = e * (e + 2.0f);
        const float tanh = m / (m + 2.0f);
        value = n * tanh;
        slope = tanh + n * (e / (1.0f + e)) * (1.0f - tanh * tanh);
    }
};

// Each element of the groups' mean, of sums over positions per channel.
void spread(float* per_channel, int64_t channels, int64_t groups, float factor) {
    const int64_t size = channels / groups;
    for (int64_t g = 0; g < groups; ++g) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = g * size; c < (g + 1) * size; ++c) sum += per_channel[c];
        for (int64_t c = g * size; c < (g + 1) * size; ++c) per_channel[c] = sum * factor;
    }
}

struct Shape {
    int64_t length, batch, channels, groups;
};

struct Inputs {  // film_position, film_sample and residual may be null
    const float *y, *bias, *gamma, *beta, *film_position, *film_sample, *residual;
};

template <class Act>
void forward(Shape s, Inputs in, float epsilon, float* out, float* mean, float* rstd, int threads) {
    const int64_t C = s.channels;
    const float share = 1.0f / (s.length * (C / s.groups));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < s.batch; ++b) {
        float *m = mean + b * C, *r = rstd + b * C;
        for (int64_t c = 0; c < C; ++c) m[c] = s.length * in.bias[c], r[c] = 0;
        for (int64_t l = 0; l < s.length; ++l) {
            const float* y = in.y + (l * s.batch + b) * C;
            for (int64_t c = 0; c < C; ++c) m[c] += y[c];
        }
        spread(m, C, s.groups, share);
        for (int64_t l = 0; l < s.length; ++l) {
            const float* y = in.y + (l * s.batch + b) * C;
            for (int64_t c = 0; c < C; ++c) {
                const float d = y[c] + in.bias[c] - m[c];
                r[c] += d * d;
            }
        }
        spread(r, C, s.groups, share);
        for (int64_t c = 0; c < C; ++c) r[c] = 1.0f / std::sqrt(r[c] + epsilon);
        for (int64_t l = 0; l < s.length; ++l) {
            const int64_t at = (l * s.batch + b) * C;
            const float* y = in.y + at;
            float* o = out + at;
            for (int64_t c = 0; c < C; ++c) {
                float value, slope;
                Act::of((y[c] + in.bias[c] - m[c]) * r[c] * in.gamma[c] + in.beta[c], value, slope);
                o[c] = value;
            }
            if (in.film_sample) {
                const float *p = in.film_position + 2 * at, *q = in.film_sample + 2 * b * C;
                for (int64_t c = 0; c < C; ++c)
                    o[c] = o[c] * (p[c] + q[c]) + (p[C + c] + q[C + c]);
            }
            if (in.residual) {
                const float* z = in.residual + at;
                for (int64_t c = 0; c < C; ++c) o[c] += z[c];
            }
        }
    }
}

// d_film_position, d_film_sample may be null. `sums`: [threads, 3, channels], zeros: of gamma, beta
// and bias, a row for each thread.
template <class Act>
void backward(Shape s, Inputs in, const float* mean, const float* rstd, const float* d_out,
              float* d_y, float* d_film_position, float* d_film_sample, float* sums, int threads) {
    const int64_t C = s.channels;
    const float share = 1.0f / (s.length * (C / s.groups));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < threads; ++t) {
        std::vector<float> buffer(2 * C);
        float *first = buffer.data(), *second = first + C;
        float *d_gamma = sums + t * 3 * C, *d_beta = d_gamma + C, *d_bias = d_beta + C;
        for (int64_t b = s.batch * t / threads; b < s.batch * (t + 1) / threads; ++b) {
            const float *m = mean + b * C, *r = rstd + b * C;
            for (int64_t c = 0; c < C; ++c) first[c] = second[c] = 0;
            float* dq = d_film_sample ? d_film_sample + 2 * b * C : nullptr;
            if (dq) std::memset(dq, 0, 2 * C * sizeof(float));
            for (int64_t l = 0; l < s.length; ++l) {
                const int64_t at = (l * s.batch + b) * C;
                const float *y = in.y + at, *d = d_out + at;
                float* dy = d_y + at;
                if (dq) {
                    const float *p = in.film_position + 2 * at, *q = in.film_sample + 2 * b * C;
                    float* dp = d_film_position + 2 * at;
#pragma GCC ivdep
                    for (int64_t c = 0; c < C; ++c) {
                        const float x = (y[c] + in.bias[c] - m[c]) * r[c];
                        float value, slope;
                        Act::of(x * in.gamma[c] + in.beta[c], value, slope);
                        const float d_scale = d[c] * value, dn = d[c] * (p[c] + q[c]) * slope;
                        dp[c] = d_scale;
                        dp[C + c] = d[c];
                        dq[c] += d_scale;
                        dq[C + c] += d[c];
                        dy[c] = dn;
                        first[c] += dn;
                        second[c] += dn * x;
                    }
                } else {
#pragma GCC ivdep
                    for (int64_t c = 0; c < C; ++c) {
                        const float x = (y[c] + in.bias[c] - m[c]) * r[c];
                        float value, slope;
                        Act::of(x * in.gamma[c] + in.beta[c], value, slope);
                        const float dn = d[c] * slope;
                        dy[c] = dn;
                        first[c] += dn;
                        second[c] += dn * x;
                    }
                }
            }
            for (int64_t c = 0; c < C; ++c) {
                d_beta[c] += first[c];
                d_gamma[c] += second[c];
                first[c] *= in.gamma[c];
                second[c] *= in.gamma[c];
            }
            spread(first, C, s.groups, share);
            spread(second, C, s.groups, share);
            for (int64_t l = 0; l < s.length; ++l) {
                const int64_t at = (l * s.batch + b) * C;
                const float* y = in.y + at;
                float* dy = d_y + at;
#pragma GCC ivdep
                for (int64_t c = 0; c < C; ++c) {
                    const float x = (y[c] + in.bias[c] - m[c]) * r[c];
                    const float v = r[c] * (dy[c] * in.gamma[c] - first[c] - x * second[c]);
                    dy[c] = v;
                    d_bias[c] += v;
                }
            }
        }
    }
}

}  // namespace

extern "C" void norm_act_forward(Shape shape, const Inputs* inputs, int64_t is_mish, double epsilon,
                                 float* out, float* mean, float* rstd, int64_t threads) {
    const auto run = is_mish ? forward<Mish> : forward<Silu>;
    run(shape, *inputs, (float)epsilon, out, mean, rstd, (int)threads);
}

extern "C" void norm_act_backward(Shape shape, const Inputs* inputs, int64_t is_mish,
                                  const float* mean, const float* rstd, const float* d_out,
                                  float* d_y, float* d_film_position, float* d_film_sample,
                                  float* sums, int64_t threads) {
    const auto run = is_mish ? backward<Mish> : backward<Silu>;
    run(shape, *inputs, mean, rstd, d_out, d_y, d_film_position, d_film_sample, sums, (int)threads);
}
