// Products of matrices whose rows are panels of channels.

#pragma once

#include <vector>

#include "vectors.h"

namespace {

constexpr int VECTORS = 2, PANEL = VECTORS * LANES, BLOCK = PANEL * PANEL;
// Rows whose sums are kept in registers; eight sums or more hide the time of a multiply-add.
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 8;
#else
constexpr int MOST_ROWS = 6;
#endif

struct Factor {
    const float *a, *b;
};

// N rows from `row` of a panel: the sum over the factors of a [rows, depth] * b [depth, PANEL], or
// of a [depth, rows] transposed where ACROSS. `start`: added to each row, or null.
template <int N, bool ACROSS>
void tile(const Factor* factors, int64_t count, int64_t depth, int64_t row, const float* start,
          bool add, float* out) {
    Vec sum[N][VECTORS];
    for (int n = 0; n < N; ++n) {
        for (int v = 0; v < VECTORS; ++v) {
            sum[n][v] = start ? load(start + v * LANES) : Vec{};
            if (add) sum[n][v] += load(out + (row + n) * PANEL + v * LANES);
        }
    }
    for (int64_t f = 0; f < count; ++f) {
        const float *a = factors[f].a + row * (ACROSS ? 1 : PANEL), *b = factors[f].b;
        for (int64_t k = 0; k < depth; ++k) {
            Vec w[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) w[v] = load(b + k * PANEL + v * LANES);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                const Vec x = splat(ACROSS ? a[k * PANEL + n] : a[n * PANEL + k]);
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) sum[n][v] += x * w[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) store(out + (row + n) * PANEL + v * LANES, sum[n][v]);
    }
}

typedef void (*Tile)(const Factor*, int64_t, int64_t, int64_t, const float*, bool, float*);

template <bool A>
constexpr Tile TILES[] = {tile<1, A>, tile<2, A>, tile<3, A>, tile<4, A>, tile<5, A>, tile<6, A>,
#if defined(__AVX512F__)
                          tile<7, A>, tile<8, A>
#endif
};

template <bool ACROSS = false>
void multiply(const std::vector<Factor>& factors, int64_t depth, int64_t rows, float* out,
              bool add = false, const float* start = nullptr) {
    const int64_t n_tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t i = 0; i < n_tiles; ++i) {
        const int64_t first = rows * i / n_tiles, next = rows * (i + 1) / n_tiles;
        const Tile tile = TILES<ACROSS>[next - first - 1];
        tile(factors.data(), factors.size(), depth, first, start, add, out);
    }
}

// A block's transpose.
#if defined(__AVX512F__)
inline void transpose_corner(const float* from, float* to) {  // of a block: 16 x 16
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * PANEL);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    const auto low = [](__m512 x, __m512 y) {
        return (__m512)_mm512_unpacklo_pd((__m512d)x, (__m512d)y);
    };
    const auto high = [](__m512 x, __m512 y) {
        return (__m512)_mm512_unpackhi_pd((__m512d)x, (__m512d)y);
    };
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // then part k of a[i + j] is column 4 k + j of four rows
        a[i] = low(b[i], b[i + 2]), a[i + 1] = high(b[i], b[i + 2]);
        a[i + 2] = low(b[i + 1], b[i + 3]), a[i + 3] = high(b[i + 1], b[i + 3]);
    }
    constexpr int EVEN = 0x88, ODD = 0xdd;  // parts of both
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512 even1 = _mm512_shuffle_f32x4(a[j], a[4 + j], EVEN);
        const __m512 even2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], EVEN);
        const __m512 odd1 = _mm512_shuffle_f32x4(a[j], a[4 + j], ODD);
        const __m512 odd2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], ODD);
        _mm512_storeu_ps(to + j * PANEL, _mm512_shuffle_f32x4(even1, even2, EVEN));
        _mm512_storeu_ps(to + (4 + j) * PANEL, _mm512_shuffle_f32x4(odd1, odd2, EVEN));
        _mm512_storeu_ps(to + (8 + j) * PANEL, _mm512_shuffle_f32x4(even1, even2, ODD));
        _mm512_storeu_ps(to + (12 + j) * PANEL, _mm512_shuffle_f32x4(odd1, odd2, ODD));
    }
}
inline void transpose(const float* from, float* to) {
    for (int i = 0; i < PANEL; i += LANES) {
        for (int j = 0; j < PANEL; j += LANES) {
            transpose_corner(from + i * PANEL + j, to + j * PANEL + i);
        }
    }
}
#else
inline void transpose(const float* from, float* to) {
    for (int r = 0; r < PANEL; ++r) {
        for (int c = 0; c < PANEL; ++c) to[c * PANEL + r] = from[r * PANEL + c];
    }
}
#endif

}  // namespace
