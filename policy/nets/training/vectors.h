// Registers of the machine, and what is done to each of their elements.

#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Operators act on each element; the compiler knows the instructions.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

enum Write : int64_t { NOTHING, SET, ADD };

inline Vec load(const float* at) {
    Vec v;
    std::memcpy(&v, at, sizeof v);
    return v;
}
inline void store(float* at, Vec v) { std::memcpy(at, &v, sizeof v); }
inline Vec splat(float value) { return value - Vec{}; }
inline void write(float* at, Vec v, int64_t how) { store(at, how == ADD ? load(at) + v : v); }

inline Vec exponential(Vec x) {  // one or two units in the last place
    x = x > 88.0f ? splat(88.0f) : x;
    x = x < -87.0f ? splat(-87.0f) : x;
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // the whole part is in the lowest bits
    const Vec whole = shifted - 12582912.0f;
    const Vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (Vec)((Bits)p + ((Bits)shifted << 23));
}

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
