// Vectors of sixteen float32, stored as float32 or bfloat16.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
    bfloat16() = default;
    bfloat16(float x) {  // round to nearest, ties to even
        uint32_t u;
        std::memcpy(&u, &x, 4);
        bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    operator float() const {
        uint32_t u = uint32_t(bits) << 16;
        float x;
        std::memcpy(&x, &u, 4);
        return x;
    }
};

constexpr int LANES = 16;
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t wide_bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t short_bits __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

inline lanes read(const float *x) { return *(const lanes *)x; }
inline lanes read(const bfloat16 *x) {
    return (lanes)(__builtin_convertvector(*(const short_bits *)x, wide_bits) << 16);
}

inline void write(float *x, lanes values) { *(lanes *)x = values; }

inline int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

// x with adjacent runs of WIDE lanes exchanged
template <int WIDE>
inline lanes exchanged(lanes x) {
    constexpr int W = WIDE;
    return __builtin_shufflevector(x, x, 0 ^ W, 1 ^ W, 2 ^ W, 3 ^ W, 4 ^ W, 5 ^ W, 6 ^ W, 7 ^ W, 8 ^ W, 9 ^ W, 10 ^ W,
                                   11 ^ W, 12 ^ W, 13 ^ W, 14 ^ W, 15 ^ W);
}
inline float total(lanes x) {
    x += exchanged<8>(x);
    x += exchanged<4>(x);
    x += exchanged<2>(x);
    return x[0] + x[1];
}
inline lanes larger(lanes x, lanes y) { return x > y ? x : y; }
inline float largest(lanes x) {
    x = larger(x, exchanged<8>(x));
    x = larger(x, exchanged<4>(x));
    x = larger(x, exchanged<2>(x));
    return x[0] > x[1] ? x[0] : x[1];
}

inline lanes deal_first(lanes a, lanes b) {  // interleave the first halves
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline lanes deal_second(lanes a, lanes b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Sums of 16 rows.
inline lanes row_sums(lanes (&rows)[LANES]) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            rows[i] = deal_first(rows[i], rows[i + half]) + deal_second(rows[i], rows[i + half]);
    return rows[0];
}

// y (16, 16) = xᵀ
inline void transpose(const float *x, int64_t x_stride, float *y, int64_t y_stride) {
    lanes rows[LANES], dealt[LANES];
    for (int i = 0; i < LANES; i++) rows[i] = read(x + i * x_stride);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < LANES / 2; i++) {
            dealt[2 * i] = deal_first(rows[i], rows[i + LANES / 2]);
            dealt[2 * i + 1] = deal_second(rows[i], rows[i + LANES / 2]);
        }
        std::memcpy(rows, dealt, sizeof rows);
    }
    for (int i = 0; i < LANES; i++) write(y + i * y_stride, rows[i]);
}

// e^x like Cephes' expf, with a relative error of 2e-7; 0 below e^-87. It has no branch, so that loops vectorise.
inline float exponential(float x) {
    const float given = x;
    x = x < -87.f ? -87.f : x;
    x = x > 88.f ? 88.f : x;
    float n = std::rint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return given < -87.f ? 0.f : p * power;
}

// Replaces s by e^(s - max s), and pads with 0 up to padded(count). Returns the sum, and the maximum in `top`.
inline float exponentials(float *s, int64_t count, float &top) {
    const int64_t blocks = padded(count) / LANES;
    for (int64_t t = count; t < blocks * LANES; t++) s[t] = -INFINITY;
    lanes highest = read(s), sums = {};
    for (int64_t b = 1; b < blocks; b++) highest = larger(highest, read(s + b * LANES));
    const float most = largest(highest);
    top = most;
#pragma omp simd
    for (int64_t t = 0; t < blocks * LANES; t++) s[t] = exponential(s[t] - most);
    for (int64_t b = 0; b < blocks; b++) sums += read(s + b * LANES);
    return total(sums);
}

}  // namespace
