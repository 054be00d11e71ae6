// Activations with their slopes, and sums over lanes.

#pragma once

#include "../vectors.h"

namespace {

enum Write : int64_t { NOTHING, SET, ADD };

inline void write(float* at, Vec v, int64_t how) { store(at, how == ADD ? load(at) + v : v); }

inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)  // an estimate of 14 bits and a step of Newton's take half the time
    const Vec estimate = (Vec)_mm512_rcp14_ps((__m512)x);
    return estimate * (2.0f - x * estimate);
#else
    return 1.0f / x;
#endif
}

struct Silu {
    static inline void of(Vec n, Vec& value, Vec& slope) {
        const Vec sigmoid = reciprocal(1.0f + exponential(-n));
        value = n * sigmoid;
        slope = sigmoid * (1.0f + n * (1.0f - sigmoid));
    }
};

struct Mish {  // n tanh(log(1 + e)) with e = exp(n): tanh = m / (m + 2) with m = e (e + 2)
    static inline void of(Vec n, Vec& value, Vec& slope) {
        const Vec e = exponential(n > 20.0f ? splat(20.0f) : n);
        const Vec m = e * (e + 2.0f);
        const Vec tanh = m * reciprocal(m + 2.0f);
        value = n * tanh;
        slope = tanh + n * (e * reciprocal(1.0f + e)) * (1.0f - tanh * tanh);
    }
};

// Each lane's sum over its group of `size` lanes, a power of two.
inline Vec sum_of_lanes(Vec x, int64_t size) {
    for (int64_t distance = 1; distance < size; distance *= 2) {
        Vec other;
#if defined(__AVX512F__)
        const __m512i lanes =
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512i from = _mm512_xor_si512(lanes, _mm512_set1_epi32(int(distance)));
        other = (Vec)_mm512_permutexvar_ps(from, (__m512)x);
#else
        for (int64_t i = 0; i < LANES; ++i) other[i] = x[i ^ distance];
#endif
        x += other;
    }
    return x;
}

}  // namespace
