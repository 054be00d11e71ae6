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

template <class T = Vec>
inline T load(const void* at) {
    T v;
    std::memcpy(&v, at, sizeof v);
    return v;
}
inline void store(float* at, Vec v) { std::memcpy(at, &v, sizeof v); }
inline Vec splat(float value) { return value - Vec{}; }

// exp to one or two units in the last place. NaN may come out as anything.
inline Vec exponential(Vec x) {
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

}  // namespace
