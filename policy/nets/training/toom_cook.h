// Convolutions of five taps, four positions at a time, by Toom-Cook.
//
// Four positions y are coefficients of a product of polynomials, which is known from its values at
// the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity (Lavin and Gray 2015, arXiv:1509.09308):
//
//     y = combine (sums of taps * spread x)     with 8 products in place of 20.
//
// A chunk of at most four positions sees nothing beyond them. There the inputs and the outputs are
// the polynomials and the taps coefficients of their product, for which 7 points do:
//
//     y = reversed combine (sums of taps * evaluate x).

#pragma once

#include "vectors.h"

namespace {

constexpr int TILE = 4, TAPS = 5, POINTS = 8;

// Values at the points of the polynomial with coefficients d; the last is that at infinity.
inline void evaluate(const Vec* d, Vec* at) {
    Vec even = d[0] + d[2], odd = d[1] + d[3];
    at[0] = d[0], at[1] = even + odd, at[2] = even - odd;
    even = d[0] + 4.0f * d[2], odd = 2.0f * d[1] + 8.0f * d[3];
    at[3] = even + odd, at[4] = even - odd;
    even = d[0] + 0.25f * d[2], odd = 0.5f * d[1] + 0.125f * d[3];
    at[5] = even + odd, at[6] = even - odd;
    at[7] = d[3];
}

// The transpose of `evaluate`.
inline void combine(const Vec* m, Vec* y) {
    const Vec even1 = m[1] + m[2], even2 = m[3] + m[4], even3 = m[5] + m[6];
    const Vec odd1 = m[1] - m[2], odd2 = m[3] - m[4], odd3 = m[5] - m[6];
    y[0] = m[0] + even1 + even2 + even3;
    y[1] = odd1 + 2.0f * odd2 + 0.5f * odd3;
    y[2] = even1 + 4.0f * even2 + 0.25f * even3;
    y[3] = odd1 + 8.0f * odd2 + 0.125f * odd3 + m[7];
}

// Sums of eight positions that go into the products: coefficients of the polynomials that are zero
// at all points but one.
inline void spread(const Vec* x, Vec* v) {
    v[0] = (x[6] - x[0]) + 5.25f * (x[2] - x[4]);
    v[7] = (x[7] - x[1]) + 5.25f * (x[3] - x[5]);
    Vec even = x[2] + x[6] - 4.25f * x[4], odd = x[1] + x[5] - 4.25f * x[3];
    v[1] = even + odd, v[2] = even - odd;
    even = 0.25f * x[2] - 1.25f * x[4] + x[6], odd = 0.5f * x[1] - 2.5f * x[3] + 2.0f * x[5];
    v[3] = even + odd, v[4] = even - odd;
    even = 4.0f * x[2] - 5.0f * x[4] + x[6], odd = 2.0f * x[1] - 2.5f * x[3] + 0.5f * x[5];
    v[5] = even + odd, v[6] = even - odd;
}

// The transpose of `spread`.
inline void gather(const Vec* v, Vec* x) {
    const Vec even1 = v[1] + v[2], even2 = v[3] + v[4], even3 = v[5] + v[6];
    const Vec odd1 = v[1] - v[2], odd2 = v[3] - v[4], odd3 = v[5] - v[6];
    x[0] = -v[0];
    x[1] = odd1 + 0.5f * odd2 + 2.0f * odd3 - v[7];
    x[2] = 5.25f * v[0] + even1 + 0.25f * even2 + 4.0f * even3;
    x[3] = 5.25f * v[7] - 4.25f * odd1 - 2.5f * odd2 - 2.5f * odd3;
    x[4] = -5.25f * v[0] - 4.25f * even1 - 1.25f * even2 - 5.0f * even3;
    x[5] = odd1 + 2.0f * odd2 + 0.5f * odd3 - 5.25f * v[7];
    x[6] = v[0] + even1 + even2 + even3;
    x[7] = v[7];
}

// [points, taps] sums of taps. With eight points they are powers of the points, with seven the
// coefficients 1 to 5 of the polynomials of `spread`; both over the polynomials' values.
struct TapSums {
    float eight[POINTS][TAPS], seven[POINTS][TAPS];
};

constexpr TapSums tap_sums() {
    constexpr double points[] = {0, 1, -1, 2, -2, 0.5, -0.5};
    TapSums sums{};
    for (int j = 0; j < 7; ++j) {
        double polynomial[8] = {1}, value = 1, power = 1;
        for (int l = 0; l < 7; ++l) {
            if (l == j) continue;
            value *= points[j] - points[l];
            for (int k = 6; k > 0; --k) {
                polynomial[k] = polynomial[k - 1] - points[l] * polynomial[k];
            }
            polynomial[0] *= -points[l];
        }
        for (int k = 0; k < TAPS; ++k, power *= points[j]) {
            sums.eight[j][k] = float(power / value);
            sums.seven[j][k] = float(polynomial[k + 1] / value);
        }
    }
    sums.eight[7][TAPS - 1] = 1;
    return sums;
}
constexpr TapSums TAP_SUMS = tap_sums();

// Weights of LANES channels lie channel by channel: `apart` gives them tap by tap, `together` takes
// them back.
#if defined(__AVX512F__)
struct Shuffles {
    uint32_t apart[TAPS][LANES], together[TAPS][LANES];  // which lane goes where
    uint16_t apart_from[TAPS][TAPS], together_from[TAPS][TAPS];  // which lanes come from a register
};

constexpr Shuffles shuffles() {
    Shuffles s{};
    for (int channel = 0; channel < LANES; ++channel) {
        for (int tap = 0; tap < TAPS; ++tap) {
            const int at = channel * TAPS + tap, part = at / LANES, lane = at % LANES;
            s.apart[tap][channel] = lane;
            s.apart_from[tap][part] |= uint16_t(1 << channel);
            s.together[part][lane] = channel;
            s.together_from[part][tap] |= uint16_t(1 << lane);
        }
    }
    return s;
}
constexpr Shuffles SHUFFLES = shuffles();

inline void shuffle(const Vec* from, const uint32_t lanes[][LANES], const uint16_t masks[][TAPS],
                    Vec* to) {
#pragma GCC unroll 8
    for (int i = 0; i < TAPS; ++i) {
        const __m512i lane = _mm512_loadu_si512(lanes[i]);
        __m512 out = _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int j = 0; j < TAPS; ++j) {
            out = _mm512_mask_permutexvar_ps(out, masks[i][j], lane, (__m512)from[j]);
        }
        to[i] = (Vec)out;
    }
}
inline void apart(const float* flat, Vec* taps) {
    Vec parts[TAPS];
    for (int i = 0; i < TAPS; ++i) parts[i] = load(flat + i * LANES);
    shuffle(parts, SHUFFLES.apart, SHUFFLES.apart_from, taps);
}
inline void together(const Vec* taps, float* flat) {
    Vec parts[TAPS];
    shuffle(taps, SHUFFLES.together, SHUFFLES.together_from, parts);
    for (int i = 0; i < TAPS; ++i) store(flat + i * LANES, parts[i]);
}

#else
inline void apart(const float* flat, Vec* taps) {
    float beside[LANES];
    for (int t = 0; t < TAPS; ++t) {
        for (int i = 0; i < LANES; ++i) beside[i] = flat[i * TAPS + t];
        taps[t] = load(beside);
    }
}
inline void together(const Vec* taps, float* flat) {
    float beside[LANES];
    for (int t = 0; t < TAPS; ++t) {
        store(beside, taps[t]);
        for (int i = 0; i < LANES; ++i) flat[i * TAPS + t] = beside[i];
    }
}
#endif

}  // namespace
