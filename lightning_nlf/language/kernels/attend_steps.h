// Attention of one new token per row to the keys and values of a cache. T is the storage type, E the width of a head.

#pragma once

#include <vector>

#include "lanes.h"

namespace {

template <class T, int E>
inline void prefetch(const T *x) {
    for (int d = 0; d < E; d += 64 / sizeof(T)) __builtin_prefetch(x + d);
}

// Reads keys and values once, in order, and prefetches what comes next (values, then the keys of the next head).
template <class T, int E>
void attend_step(const T *query, const T *keys, const T *values, const T *next, const float *bias, T *out,
                 int64_t columns, float *s) {
    constexpr int WIDE = E / LANES;
    lanes q[WIDE], mixed[WIDE] = {};
    for (int w = 0; w < WIDE; w++) q[w] = read(query + w * LANES) / std::sqrt(float(E));
    for (int64_t from = 0; from < columns; from += LANES) {
        lanes dots[LANES];
        for (int i = 0; i < LANES; i++) {
            const int64_t t = from + i < columns ? from + i : columns - 1;
            prefetch<T, E>(values + t * E);
            dots[i] = q[0] * read(keys + t * E);
            for (int w = 1; w < WIDE; w++) dots[i] += q[w] * read(keys + t * E + w * LANES);
        }
        write(s + from, row_sums(dots));
    }
    for (int64_t t = 0; t < columns; t++) s[t] += bias[t];
    float top, sum = exponentials(s, columns, top);
    for (int64_t t = 0; t < columns; t++) {
        prefetch<T, E>(next + t * E);
        for (int w = 0; w < WIDE; w++) mixed[w] += s[t] * read(values + t * E + w * LANES);
    }
    for (int d = 0; d < E; d++) out[d] = T(mixed[d / LANES][d % LANES] / sum);
}

template <class T, int E>
void attend_steps(const T *qkv, T *store, int64_t capacity, const float *bias, int64_t bias_row, T *out, int64_t rows,
                  int64_t heads, int64_t kv_heads, int64_t columns, int threads) {
    const int64_t head = capacity * E, row = 2 * kv_heads * head, shared = heads / kv_heads;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> s(padded(columns));
#pragma omp for
        for (int64_t b = 0; b < rows; b++) {
            const T *queries = qkv + b * (heads + 2 * kv_heads) * E, *added = queries + heads * E;
            T *own = store + b * row;
            for (int64_t g = 0; g < 2 * kv_heads; g++)
                std::memcpy(own + g * head + (columns - 1) * E, added + g * E, E * sizeof(T));
            for (int64_t h = 0; h < heads; h++) {
                const T *keys = own + h / shared * head;
                const T *next = h + 1 < heads ? own + (h + 1) / shared * head : b + 1 < rows ? own + row : own;
                attend_step<T, E>(queries + h * E, keys, keys + kv_heads * head, next, bias + b * bias_row,
                                  out + (b * heads + h) * E, columns, s.data());
            }
        }
    }
}

}  // namespace
