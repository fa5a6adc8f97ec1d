// Causal attention of whole sequences in flat tokens. A sequence may have a prefix that is stored elsewhere.
// T is the storage type, E the width of a head.

#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

struct Span {
    int64_t first, count;                // its tokens
    int64_t prefix_first, prefix_count;  // its prefix, tokens of another sequence
    int64_t columns() const { return prefix_count + count; }
    int64_t token(int64_t t) const { return t < prefix_count ? prefix_first + t : first + t - prefix_count; }
};

constexpr int BLOCK = 8;  // queries at a time

// s (BLOCK, stride) = x (BLOCK, E) · y (E, stride), where columns of y are tokens. Two lanes of tokens use each load of
// x twice.
template <int E, int WIDE>
inline void some_products(const float *x, const float *y, int64_t stride, float *s) {
    lanes sums[BLOCK][WIDE] = {};
    for (int d = 0; d < E; d++)
        for (int w = 0; w < WIDE; w++) {
            const lanes column = read(y + d * stride + w * LANES);
            for (int i = 0; i < BLOCK; i++) sums[i][w] += x[i * E + d] * column;
        }
    for (int i = 0; i < BLOCK; i++)
        for (int w = 0; w < WIDE; w++) write(s + i * stride + w * LANES, sums[i][w]);
}

template <int E>
inline void products(const float *x, const float *y, int64_t stride, int64_t columns, float *s) {
    int64_t t = 0;
    for (; t + 2 * LANES <= columns; t += 2 * LANES) some_products<E, 2>(x, y + t, stride, s + t);
    if (t < columns) some_products<E, 1>(x, y + t, stride, s + t);
}

// out (BLOCK, E) = p (BLOCK, stride) · y (tokens, E)
template <int E>
inline void mixtures(const float *p, const float *y, int64_t stride, int64_t columns, float *out) {
    constexpr int WIDE = E / LANES, ROWS = BLOCK < 16 / WIDE ? BLOCK : 16 / WIDE;  // limited by the number of registers
    for (int first = 0; first < BLOCK; first += ROWS) {
        lanes sums[ROWS][WIDE] = {};
        for (int64_t t = 0; t < columns; t++)
            for (int w = 0; w < WIDE; w++) {
                const lanes value = read(y + t * E + w * LANES);
                for (int i = 0; i < ROWS; i++) sums[i][w] += p[(first + i) * stride + t] * value;
            }
        for (int i = 0; i < ROWS; i++)
            for (int w = 0; w < WIDE; w++) write(out + (first + i) * E + w * LANES, sums[i][w]);
    }
}

// sums (tokens, E) += pᵀ · x, for p (BLOCK, stride) and x (BLOCK, E)
template <int E>
inline void add_outer(const float *p, const float *x, int64_t stride, int64_t columns, float *sums) {
    constexpr int WIDE = E / LANES < 2 ? 1 : 2;  // x stays in registers
    for (int first = 0; first < E; first += WIDE * LANES) {
        lanes held[BLOCK][WIDE];
        for (int i = 0; i < BLOCK; i++)
            for (int w = 0; w < WIDE; w++) held[i][w] = read(x + i * E + first + w * LANES);
        for (int64_t t = 0; t < columns; t++) {
            float *to = sums + t * E + first;
            lanes sum[WIDE];
            for (int w = 0; w < WIDE; w++) sum[w] = read(to + w * LANES);
            for (int i = 0; i < BLOCK; i++)
                for (int w = 0; w < WIDE; w++) sum[w] += p[i * stride + t] * held[i][w];
            for (int w = 0; w < WIDE; w++) write(to + w * LANES, sum[w]);
        }
    }
}

template <int E, class T>
inline float dot(const float *x, const T *y) {
    lanes sums = {};
    for (int d = 0; d < E; d += LANES) sums += read(x + d) * read(y + d);
    return total(sums);
}

// One head (such as a key head) of a span's tokens, as (tokens, E), and if requested as (E, stride), padded with zeros.
template <class T, int E>
struct Heads {
    std::vector<float> rows, columns;
    void gather(const T *flat, int64_t token_stride, const Span &span, bool turned) {
        const int64_t count = span.columns(), stride = padded(count);
        rows.resize(stride * E);
        for (int64_t t = 0; t < count; t++) {
            const T *x = flat + span.token(t) * token_stride;
            for (int d = 0; d < E; d++) rows[t * E + d] = float(x[d]);
        }
        if (!turned) return;
        std::memset(rows.data() + count * E, 0, (stride - count) * E * sizeof(float));
        columns.resize(E * stride);
        for (int64_t t = 0; t < stride; t += LANES)
            for (int d = 0; d < E; d += LANES)
                transpose(rows.data() + t * E + d, E, columns.data() + d * stride + t, stride);
    }
};

template <class T, int E>
inline void load(const T *flat, int64_t token_stride, int64_t count, float scale, float *block) {
    for (int i = 0; i < BLOCK; i++)
        for (int d = 0; d < E; d++) block[i * E + d] = i < count ? float(flat[i * token_stride + d]) * scale : 0;
}

// Stores the highest score and 1 / Σ e^(score - highest) in `statistics` (tokens, heads, 2).
template <class T, int E>
void attend_spans(const T *qkv, const Span *spans, int64_t count, int64_t heads, int64_t kv_heads, T *out,
                  float *statistics, int threads) {
    const int64_t token = (heads + 2 * kv_heads) * E, shared = heads / kv_heads;
    const float scale = 1 / std::sqrt(float(E));
#pragma omp parallel num_threads(threads)
    {
        Heads<T, E> keys, values;
        std::vector<float> s;
        float q[BLOCK * E], mixed[BLOCK * E];
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t at = 0; at < count; at++)
            for (int64_t g = 0; g < kv_heads; g++) {
                const Span span = spans[at];
                const int64_t stride = padded(span.columns());
                keys.gather(qkv + (heads + g) * E, token, span, true);
                values.gather(qkv + (heads + kv_heads + g) * E, token, span, false);
                s.resize(BLOCK * stride);
                for (int64_t h = g * shared; h < (g + 1) * shared; h++)
                    for (int64_t from = 0; from < span.count; from += BLOCK) {
                        const int64_t own = span.count - from < BLOCK ? span.count - from : BLOCK;
                        const int64_t first = span.first + from, seen = span.prefix_count + from + own;
                        load<T, E>(qkv + first * token + h * E, token, own, scale, q);
                        products<E>(q, keys.columns.data(), stride, padded(seen), s.data());
                        for (int64_t i = 0; i < own; i++) {
                            float *row = s.data() + i * stride, *kept = statistics + ((first + i) * heads + h) * 2;
                            const int64_t sees = span.prefix_count + from + i + 1;
                            kept[1] = 1 / exponentials(row, sees, kept[0]);
                            for (int64_t t = padded(sees); t < seen; t++) row[t] = 0;
                        }
                        mixtures<E>(s.data(), values.rows.data(), stride, seen, mixed);
                        for (int64_t i = 0; i < own; i++) {
                            const int64_t to = (first + i) * heads + h;
                            for (int d = 0; d < E; d++) out[to * E + d] = T(mixed[i * E + d] * statistics[to * 2 + 1]);
                        }
                    }
            }
    }
}

// Gradients of all heads of each token, (tokens, heads + 2 · kv_heads, E): algorithm 4 of Dao et al. 2022.
// A span comes after its prefix, so going from the last span to the first, all gradients for a prefix are complete
// before its own turn. Threads work on different heads.
template <class T, int E>
void attend_spans_back(const T *qkv, const Span *spans, int64_t count, int64_t heads, int64_t kv_heads, const T *out,
                       const float *statistics, const T *out_grad, T *grad, int threads) {
    const int64_t token = (heads + 2 * kv_heads) * E, shared = heads / kv_heads;
    const float scale = 1 / std::sqrt(float(E));
    int64_t prefixes = 0;  // all prefixes lie in the first `prefixes` tokens
    for (int64_t at = 0; at < count; at++)
        prefixes = std::max(prefixes, spans[at].prefix_first + spans[at].prefix_count);
#pragma omp parallel num_threads(threads)
    {
        Heads<T, E> keys, values;
        std::vector<float> p, ds, key_grads, value_grads, owed_keys, owed_values;
        float q[BLOCK * E], dout[BLOCK * E], dq[BLOCK * E];
#pragma omp for
        for (int64_t g = 0; g < kv_heads; g++) {
            owed_keys.assign(prefixes * E, 0);
            owed_values.assign(prefixes * E, 0);
            for (int64_t at = count - 1; at >= 0; at--) {
                const Span span = spans[at];
                const int64_t stride = padded(span.columns());
                keys.gather(qkv + (heads + g) * E, token, span, true);
                values.gather(qkv + (heads + kv_heads + g) * E, token, span, true);
                p.resize(BLOCK * stride);
                ds.resize(BLOCK * stride);
                key_grads.assign(span.columns() * E, 0);
                value_grads.assign(span.columns() * E, 0);
                for (int64_t h = g * shared; h < (g + 1) * shared; h++)
                    for (int64_t from = 0; from < span.count; from += BLOCK) {
                        const int64_t own = span.count - from < BLOCK ? span.count - from : BLOCK;
                        const int64_t first = span.first + from, seen = span.prefix_count + from + own;
                        const int64_t there = (first * heads + h) * E;
                        load<T, E>(qkv + first * token + h * E, token, own, scale, q);
                        load<T, E>(out_grad + there, heads * E, own, 1, dout);
                        products<E>(q, keys.columns.data(), stride, padded(seen), p.data());
                        products<E>(dout, values.columns.data(), stride, padded(seen), ds.data());
                        for (int64_t i = 0; i < BLOCK; i++) {
                            float *row = p.data() + i * stride, *slope = ds.data() + i * stride, delta = 0;
                            int64_t sees = 0;
                            if (i < own) {
                                const float *kept = statistics + ((first + i) * heads + h) * 2;
                                const float top = kept[0], weight = kept[1];
                                delta = dot<E>(dout + i * E, out + there + i * heads * E);
                                sees = span.prefix_count + from + i + 1;
#pragma omp simd
                                for (int64_t t = 0; t < padded(sees); t++) {
                                    row[t] = exponential(row[t] - top) * weight;
                                    slope[t] = row[t] * (slope[t] - delta);
                                }
                            }
                            for (int64_t t = sees; t < seen; t++) row[t] = slope[t] = 0;
                        }
                        mixtures<E>(ds.data(), keys.rows.data(), stride, seen, dq);
                        add_outer<E>(ds.data(), q, stride, seen, key_grads.data());
                        add_outer<E>(p.data(), dout, stride, seen, value_grads.data());
                        for (int64_t i = 0; i < own; i++)
                            for (int d = 0; d < E; d++)
                                grad[(first + i) * token + h * E + d] = T(dq[i * E + d] * scale);
                    }
                for (int64_t i = 0; i < span.prefix_count * E; i++) {
                    owed_keys[span.prefix_first * E + i] += key_grads[i];
                    owed_values[span.prefix_first * E + i] += value_grads[i];
                }
                for (int64_t t = span.prefix_count; t < span.columns(); t++) {
                    const int64_t at_token = span.token(t);
                    const bool owed = at_token < prefixes;
                    T *own = grad + at_token * token + (heads + g) * E;
                    for (int d = 0; d < E; d++) {
                        own[d] = T(key_grads[t * E + d] + (owed ? owed_keys[at_token * E + d] : 0));
                        own[kv_heads * E + d] = T(value_grads[t * E + d] + (owed ? owed_values[at_token * E + d] : 0));
                    }
                }
            }
        }
    }
}

}  // namespace
