// The whole call of a UNet1d for few samples on a CPU, as a flat list of fused layers.
//
// A layer is a 1-D convolution and all that follows it up to the next one: bias, group norm,
// activation, FiLM, residual. `LoweredUNet1d` (unet1d_lowered.py) plans the layers and packs their
// weights; the structs below are mirrored there field by field. Nothing is checked here.
//
// Features lie channels last, [length, stride], with rows of zeros before and after them for the
// convolution's overhang. Position l and tap t see row l * step + t, so that the convolution is a
// matrix product without a copy of its input:
//
//     out[l, o] = sum over t, c of  in[l * step + t, c] * weight[t, c, o]
//
// Weights are packed in the order in which they are read: panels of PANEL output channels, each
// [taps, channels, PANEL] in fp32. A word of 32 bits holds two bf16 or four int8 of successive
// input channels, which are unpacked in registers.
//
// Channels of outputs are padded to whole panels; what is in the padding is 0 and stays so, since
// its weights, biases, norms and FiLMs are 0 (0 times a NaN is one: then all actions are none).
//
// With several threads each owns some units of output channels in every layer: whole panels that
// are whole groups of the norm too, so that one barrier per layer is all they wait for.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

namespace {

constexpr int PANEL = LANES == 16 ? 32 : 16, MOST_POSITIONS = LANES == 16 ? 8 : 6;
constexpr int VECTORS = PANEL / LANES;
constexpr int MOST_SAMPLES = 8;  // side by side, so that weights are read once for all of them
constexpr int LINE = 16, PREFETCH = 1024;  // words of a line of the cache; how far ahead to ask
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

enum Activation : int64_t { NONE = 0, SILU = 1, MISH = 2 };
enum Format : int64_t { FP32 = 0, BF16 = 1, INT8 = 2 };

// Offsets into the scratch and the constants are in floats, those of weights in bytes; -1: none.
struct Layer {
    int64_t in, in_stride, step, taps, in_channels;
    int64_t out, out_stride, length, channels, padded_channels, unit;
    int64_t weights, scale, bias;                   // scale and bias: [padded_channels]
    int64_t group, gamma, beta, activation;         // channels per group; 0: no norm
    int64_t film, film_stride, film_of_positions;   // columns and rows of the FiLMs
    int64_t residual, residual_stride, residual_channels;
    int64_t skip_weights, skip_scale, skip_bias;    // of a residual by a 1 x 1 convolution
    int64_t border, border_stride, halo, rows;      // rows to be zeroed around the output's
};

struct Network {
    int64_t n_layers, format, action_size, length;
    int64_t input, input_stride, halo;   // where the chunk goes
    int64_t output, output_stride;       // where the result is
    int64_t scratch;                     // floats in all
    int64_t film_shared, film_of_positions;  // floats of the noise FiLMs of a sample
    double epsilon;
    Layer layers[1];
};

// Weights of TOGETHER successive input channels in each word of 32 bits; `unpack` gives the i-th.
struct Fp32 {
    static constexpr int TOGETHER = 1;
    static Vec unpack(Bits words, int) { return (Vec)words; }
};
struct Bf16 {  // the upper half of a float
    static constexpr int TOGETHER = 2;
    static Vec unpack(Bits words, int i) { return (Vec)(i ? words & 0xffff0000 : words << 16); }
};
struct Int8 {
    static constexpr int TOGETHER = 4;
    static Vec unpack(Bits words, int i) {
        return __builtin_convertvector((Ints)(words << (24 - 8 * i)) >> 24, Vec);
    }
};

inline Vec activate(Vec x, int64_t activation) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == MISH) {  // tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2)
        const Vec e = exponential(x > 20.0f ? splat(20.0f) : x);
        const Vec n = e * (e + 2.0f);
        return x * (n / (n + 2.0f));
    }
    return x;
}

// A convolution: out = in * weights * scale + bias, or that added to what is in `out`.
struct Product {
    const float* in;  // first position and tap
    int64_t in_stride, step, taps, channels;
    const uint32_t* weights;
    const float *scale, *bias;  // of the output channels
    float* out;
    int64_t out_stride, length;
    bool add;
    int64_t samples, next_sample;  // further inputs and outputs, and how far they are apart
};

// N positions from `first` of the panel that begins at output channel `o`. The sums are kept in
// registers; eight or more of them hide the time that a multiply-add takes.
template <int N, class Weights>
void tile(const Product& p, int64_t first, int64_t o, int64_t sample) {
    Vec sum[N][VECTORS] = {};
    const uint32_t* words = p.weights + o * p.taps * p.channels / Weights::TOGETHER;
    const int64_t next = p.in_stride * p.step;
    for (int64_t t = 0; t < p.taps; ++t) {
        const float* in = p.in + sample + first * next + t * p.in_stride;
        for (int64_t c = 0; c < p.channels; c += Weights::TOGETHER, words += PANEL) {
#pragma GCC unroll 8
            for (int i = 0; i < PANEL; i += LINE) __builtin_prefetch(words + PREFETCH + i, 0, 2);
            Bits packed[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) packed[v] = load<Bits>(words + v * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < Weights::TOGETHER; ++i) {
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    const Vec x = splat(in[n * next + c + i]);
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; ++v) {
                        sum[n][v] += x * Weights::unpack(packed[v], i);
                    }
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            float* out = p.out + sample + (first + n) * p.out_stride + o + v * LANES;
            const Vec y = sum[n][v] * load(p.scale + o + v * LANES) + load(p.bias + o + v * LANES);
            store(out, p.add ? load(out) + y : y);
        }
    }
}

// Whole panels of output channels. All tiles of a panel but the first find its weights cached.
template <class W>
void multiply(const Product& p, int64_t begin, int64_t end) {
    static constexpr void (*TILES[])(const Product&, int64_t, int64_t, int64_t) = {
        tile<1, W>, tile<2, W>, tile<3, W>, tile<4, W>,
        tile<5, W>, tile<6, W>, tile<7, W>, tile<8, W>};
    const int64_t n_tiles = (p.length + MOST_POSITIONS - 1) / MOST_POSITIONS;
    for (int64_t o = begin; o < end; o += PANEL) {
        for (int64_t i = 0; i < n_tiles * p.samples; ++i) {
            const int64_t sample = i / n_tiles, j = i % n_tiles;
            const int64_t first = j * p.length / n_tiles, next = (j + 1) * p.length / n_tiles;
            TILES[next - first - 1](p, first, o, sample * p.next_sample);
        }
    }
}

// Mean of the groups of the channels [begin, end), and 1 / deviation times gamma, by channel.
void statistics(const Layer& layer, const float* constants, const float* h, int64_t begin,
                int64_t end, float epsilon, float* mean, float* scale) {
    const int64_t group = layer.group, last = std::min(end, layer.channels);
    const float count = float(group * layer.length);
    const auto mean_of_groups = [&](float* sums) {
        for (int64_t g = begin; g < last; g += group) {
            float sum = 0;
            for (int64_t c = g; c < g + group; ++c) sum += sums[c];
            std::fill(sums + g, sums + g + group, sum / count);
        }
    };
    for (int64_t c = begin; c < end; c += LANES) {
        Vec sum = {};
        for (int64_t l = 0; l < layer.length; ++l) sum += load(h + l * layer.out_stride + c);
        store(mean + c, sum);
    }
    mean_of_groups(mean);
    for (int64_t c = begin; c < end; c += LANES) {  // squares about the mean: nothing cancels
        Vec sum = {};
        for (int64_t l = 0; l < layer.length; ++l) {
            const Vec d = load(h + l * layer.out_stride + c) - load(mean + c);
            sum += d * d;
        }
        store(scale + c, sum);
    }
    mean_of_groups(scale);
    for (int64_t c = begin; c < end; ++c) {
        scale[c] = constants[layer.gamma + c] / __builtin_sqrtf(scale[c] + epsilon);
    }
}

struct Call {
    const Network* net;
    const char* weights;
    const float *constants, *noise, *cond;  // noise, cond: FiLMs of the samples
    int64_t noise_stride;                   // from sample to sample
    bool shared;                            // one noise FiLM for all positions
    float* scratch;                         // [samples, net->scratch]
    int64_t samples;
};

// Norm, activation, FiLM, residual of one sample's channels [begin, end), in place.
void follow(const Call& call, const Layer& layer, int64_t sample, int64_t begin, int64_t end) {
    float* scratch = call.scratch + sample * call.net->scratch;
    float* out = scratch + layer.out;
    float* mean = scratch;  // [padded_channels]; each unit writes its own part
    float* scale = mean + layer.padded_channels;
    const float* beta = call.constants + layer.beta;
    statistics(layer, call.constants, out, begin, end, float(call.net->epsilon), mean, scale);
    const bool has_film = layer.film >= 0;
    const float* cond = call.cond + sample * call.net->film_shared + layer.film;
    const float* noise = call.noise + sample * call.noise_stride +
                         (call.shared ? layer.film : layer.film_of_positions);
    const int64_t next = call.shared ? 0 : layer.film_stride, shifts = layer.padded_channels;
    const bool is_identity = layer.residual >= 0 && layer.skip_weights < 0;
    for (int64_t l = 0; l < layer.length; ++l) {
        float* row = out + l * layer.out_stride;
        const float* film = noise + l * next;
        const float* residual = scratch + layer.residual + l * layer.residual_stride;
        for (int64_t c = begin; c < end; c += LANES) {
            Vec y = (load(row + c) - load(mean + c)) * load(scale + c) + load(beta + c);
            y = activate(y, layer.activation);
            if (has_film) {
                y = y * (load(film + c) + load(cond + c)) +
                    (load(film + shifts + c) + load(cond + shifts + c));
            }
            store(row + c, is_identity ? y + load(residual + c) : y);
        }
    }
}

template <class W>
void run_unit(const Call& call, const Layer& layer, int64_t begin) {
    const int64_t end = std::min(begin + layer.unit, layer.padded_channels);
    const int64_t next_sample = call.net->scratch;
    const float* constants = call.constants;
    float* out = call.scratch + layer.out;
    const auto weights = [&](int64_t at) {
        return reinterpret_cast<const uint32_t*>(call.weights + at);
    };
    multiply<W>({call.scratch + layer.in, layer.in_stride, layer.step, layer.taps,
                 layer.in_channels, weights(layer.weights), constants + layer.scale,
                 constants + layer.bias, out, layer.out_stride, layer.length, false,
                 call.samples, next_sample},
                begin, end);
    if (layer.group) {
        for (int64_t s = 0; s < call.samples; ++s) follow(call, layer, s, begin, end);
    }
    if (layer.skip_weights >= 0) {
        multiply<W>({call.scratch + layer.residual, layer.residual_stride, 1, 1,
                     layer.residual_channels, weights(layer.skip_weights),
                     constants + layer.skip_scale, constants + layer.skip_bias, out,
                     layer.out_stride, layer.length, true, call.samples, next_sample},
                    begin, end);
    }
    for (int64_t s = 0; s < call.samples; ++s) {
        float* border = call.scratch + s * next_sample + layer.border + begin;
        for (int64_t row = 0; row < layer.halo; ++row) {
            const int64_t after = layer.halo + layer.rows + row;
            std::memset(border + row * layer.border_stride, 0, 4 * (end - begin));
            std::memset(border + after * layer.border_stride, 0, 4 * (end - begin));
        }
    }
}

// Waits for the other threads. Spinning is the fastest while all of them run; where they do not, as
// on a busy machine, the processor is given up, so that real-time priorities cannot lock it.
class Barrier {
  public:
    void wait(int n_threads) {
        const int turn = turn_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int tries = 0; turn_.load(std::memory_order_acquire) == turn; ++tries) {
            if (tries < 2000) {
                pause();
            } else if (tries < 2100) {
                std::this_thread::yield();
            } else {
                std::this_thread::sleep_for(std::chrono::microseconds(50));
            }
        }
    }

  private:
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
    std::atomic<int> arrived_{0}, turn_{0};
};

void run_layers(const Call& call, int thread, int n_threads, Barrier& barrier) {
    for (int64_t i = 0; i < call.net->n_layers; ++i) {
        const Layer& layer = call.net->layers[i];
        const int64_t n_units = (layer.padded_channels + layer.unit - 1) / layer.unit;
        const int64_t end = (thread + 1) * n_units / n_threads;
        for (int64_t unit = thread * n_units / n_threads; unit < end; ++unit) {
            switch (call.net->format) {
                case FP32: run_unit<Fp32>(call, layer, unit * layer.unit); break;
                case BF16: run_unit<Bf16>(call, layer, unit * layer.unit); break;
                case INT8: run_unit<Int8>(call, layer, unit * layer.unit); break;
            }
        }
        if (n_threads > 1) barrier.wait(n_threads);
    }
}

// Memory of a thread that calls, kept for its next call.
float* scratch_of_thread(int64_t size) {
    thread_local std::unique_ptr<float[]> memory;
    thread_local int64_t available = 0;
    if (available < size) {
        memory.reset(new float[size + 16]);
        available = size;
    }
    const auto address = (reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64;
    return reinterpret_cast<float*>(address);
}

void copy_chunk(const Network& net, const float* x, float* scratch) {
    float* input = scratch + net.input;
    std::memset(input, 0, 4 * net.input_stride * (net.length + 2 * net.halo));
    for (int64_t l = 0; l < net.length; ++l) {
        std::memcpy(input + (net.halo + l) * net.input_stride, x + l * net.action_size,
                    4 * net.action_size);
    }
}

}  // namespace

extern "C" {

int64_t panel() { return PANEL; }

// out [batch, length, action_size] from x of the same shape, FiLMs of the noise [batch, ...] and of
// the condition [batch, film_shared]; `noise_stride` is 0 where all samples have the same.
void unet1d(const Network* net, const char* weights, const float* constants, const float* x,
            const float* noise, int64_t noise_stride, int64_t shared, const float* cond,
            float* out, int64_t batch, int64_t n_threads) {
    const int64_t size = net->length * net->action_size;
    for (int64_t first = 0; first < batch; first += MOST_SAMPLES) {
        const int64_t samples = std::min<int64_t>(batch - first, MOST_SAMPLES);
        float* scratch = scratch_of_thread(samples * net->scratch);
        for (int64_t s = 0; s < samples; ++s) {
            copy_chunk(*net, x + (first + s) * size, scratch + s * net->scratch);
        }
        const Call call = {net, weights, constants, noise + first * noise_stride,
                           cond + first * net->film_shared, noise_stride, shared != 0, scratch,
                           samples};
        Barrier barrier;
#ifdef _OPENMP
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
        run_layers(call, omp_get_thread_num(), omp_get_num_threads(), barrier);
#else
        (void)n_threads;
        run_layers(call, 0, 1, barrier);
#endif
        for (int64_t i = 0; i < samples * net->length; ++i) {
            const int64_t s = i / net->length, l = i % net->length;
            std::memcpy(out + (first + s) * size + l * net->action_size,
                        scratch + s * net->scratch + net->output + l * net->output_stride,
                        4 * net->action_size);
        }
    }
}
}
