// Attention and GELU of language models on a CPU: float32 or bfloat16 in memory, float32 in between.
//
// T is what is stored, E the width of a head. Pointers are to whole tensors; offsets and strides count elements.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bfloat16 {
    uint16_t bits;
    bfloat16() = default;
    bfloat16(float x) {  // to the nearest, ties to even
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
inline lanes read(const bfloat16 *x) { return (lanes)(__builtin_convertvector(*(const short_bits *)x, wide_bits) << 16); }

inline int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

inline lanes deal_first(lanes a, lanes b) {  // the first halves, in turns
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline lanes deal_second(lanes a, lanes b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Of 16 rows, the sum of each.
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
    for (int i = 0; i < LANES; i++) *(lanes *)(y + i * y_stride) = rows[i];
}

// 0 from e^-87 down, and without a branch, so that loops with it become vector code; as Cephes' expf, to 2e-7 of it.
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

// s becomes e^(s - max s); returns the sum, and the maximum in `top`.
inline float exponentials(float *s, int64_t count, float &top) {
    float highest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t t = 0; t < count; t++) highest = s[t] > highest ? s[t] : highest;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < count; t++) {
        s[t] = exponential(s[t] - highest);
        sum += s[t];
    }
    top = highest;
    return sum;
}

// ---- One new token a row, against the keys and values of a cache ----

template <class T, int E>
inline void prefetch(const T *x) {
    for (int d = 0; d < E; d += 64 / sizeof(T)) __builtin_prefetch(x + d);
}

// Reads keys and values once, in order; what is read next (values, then the keys of the next head) is on its way.
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
        *(lanes *)(s + from) = row_sums(dots);
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

// ---- Whole sequences in flat tokens: each sees a prefix elsewhere, and of itself what came before ----

struct Span {
    int64_t first, count;                // of its own tokens
    int64_t prefix_first, prefix_count;  // of those of another sequence, that come before them
    int64_t columns() const { return prefix_count + count; }
    int64_t token(int64_t t) const { return t < prefix_count ? prefix_first + t : first + t - prefix_count; }
};

constexpr int BLOCK = 8;  // queries at a time

// s (BLOCK, stride) = x (BLOCK, E) · y, whose columns are tokens: (E, stride)
template <int E>
inline void products(const float *x, const float *y, int64_t stride, int64_t columns, float *s) {
    for (int64_t t = 0; t < columns; t += LANES) {
        lanes sums[BLOCK] = {};
        for (int d = 0; d < E; d++) {
            const lanes column = *(const lanes *)(y + d * stride + t);
            for (int i = 0; i < BLOCK; i++) sums[i] += x[i * E + d] * column;
        }
        for (int i = 0; i < BLOCK; i++) *(lanes *)(s + i * stride + t) = sums[i];
    }
}

// out (BLOCK, E) = p (BLOCK, stride) · y (tokens, E)
template <int E>
inline void mixtures(const float *p, const float *y, int64_t stride, int64_t columns, float *out) {
    constexpr int WIDE = E / LANES, ROWS = BLOCK < 16 / WIDE ? BLOCK : 16 / WIDE;  // as many as registers hold
    for (int first = 0; first < BLOCK; first += ROWS) {
        lanes sums[ROWS][WIDE] = {};
        for (int64_t t = 0; t < columns; t++)
            for (int w = 0; w < WIDE; w++) {
                const lanes value = *(const lanes *)(y + t * E + w * LANES);
                for (int i = 0; i < ROWS; i++) sums[i][w] += p[(first + i) * stride + t] * value;
            }
        for (int i = 0; i < ROWS; i++)
            for (int w = 0; w < WIDE; w++) *(lanes *)(out + (first + i) * E + w * LANES) = sums[i][w];
    }
}

// sums (tokens, E) += pᵀ · x, of p (BLOCK, stride) and x (BLOCK, E)
template <int E>
inline void add_outer(const float *p, const float *x, int64_t stride, int64_t columns, float *sums) {
    constexpr int WIDE = E / LANES;
    for (int64_t t = 0; t < columns; t++)
        for (int w = 0; w < WIDE; w++) {
            lanes sum = *(lanes *)(sums + t * E + w * LANES);
            for (int i = 0; i < BLOCK; i++) sum += p[i * stride + t] * *(const lanes *)(x + i * E + w * LANES);
            *(lanes *)(sums + t * E + w * LANES) = sum;
        }
}

// One kind of head (keys, say) of a span's tokens, as (tokens, E), and as (E, stride) where wanted; zeros behind the last.
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

template <class T, int E>
void attend_spans(const T *qkv, const Span *spans, int64_t count, int64_t heads, int64_t kv_heads, T *out,
                  float *log_sums, int threads) {
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
                        float sums[BLOCK];
                        for (int64_t i = 0; i < own; i++) {
                            float top, *row = s.data() + i * stride;
                            const int64_t sees = span.prefix_count + from + i + 1;
                            sums[i] = exponentials(row, sees, top);
                            for (int64_t t = sees; t < seen; t++) row[t] = 0;
                            log_sums[(first + i) * heads + h] = top + std::log(sums[i]);
                        }
                        mixtures<E>(s.data(), values.rows.data(), stride, seen, mixed);
                        for (int64_t i = 0; i < own; i++)
                            for (int d = 0; d < E; d++)
                                out[((first + i) * heads + h) * E + d] = T(mixed[i * E + d] / sums[i]);
                    }
            }
    }
}

// Adds to `grad` (tokens, heads + 2 · kv_heads, E); threads share no head.  Dao et al. 2022, algorithm 4
template <class T, int E>
void attend_spans_back(const T *qkv, const Span *spans, int64_t count, int64_t heads, int64_t kv_heads, const T *out,
                       const float *log_sums, const T *out_grad, float *grad, int threads) {
    const int64_t token = (heads + 2 * kv_heads) * E, shared = heads / kv_heads;
    const float scale = 1 / std::sqrt(float(E));
#pragma omp parallel num_threads(threads)
    {
        Heads<T, E> keys, values;
        std::vector<float> p, ds, key_grads, value_grads;
        float q[BLOCK * E], dout[BLOCK * E], dq[BLOCK * E];
#pragma omp for
        for (int64_t g = 0; g < kv_heads; g++)
            for (int64_t at = 0; at < count; at++) {
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
                            const int64_t sees = i < own ? span.prefix_count + from + i + 1 : 0;
                            const float log_sum = i < own ? log_sums[(first + i) * heads + h] : 0;
                            for (int d = 0; d < E && i < own; d++)
                                delta += dout[i * E + d] * float(out[there + i * heads * E + d]);
                            for (int64_t t = 0; t < sees; t++) {
                                row[t] = exponential(row[t] - log_sum);
                                slope[t] = row[t] * (slope[t] - delta);
                            }
                            for (int64_t t = sees; t < seen; t++) row[t] = slope[t] = 0;
                        }
                        mixtures<E>(ds.data(), keys.rows.data(), stride, seen, dq);
                        add_outer<E>(ds.data(), q, stride, seen, key_grads.data());
                        add_outer<E>(p.data(), dout, stride, seen, value_grads.data());
                        for (int64_t i = 0; i < own; i++)
                            for (int d = 0; d < E; d++) grad[(first + i) * token + h * E + d] = dq[i * E + d] * scale;
                    }
                for (int64_t t = 0; t < span.columns(); t++) {
                    float *own = grad + span.token(t) * token + (heads + g) * E;
                    for (int d = 0; d < E; d++) {
                        own[d] += key_grads[t * E + d];
                        own[kv_heads * E + d] += value_grads[t * E + d];
                    }
                }
            }
    }
}

// ---- GELU by tanh: x · σ(2u), u = √(2/π) (x + 0.044715 x³) ----

inline float sigmoid_2u(float x) { return 1 / (1 + exponential(-1.5957691216f * x * (1 + 0.044715f * x * x))); }

template <class T>
void gelu(const T *x, T *y, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++) y[i] = T(float(x[i]) * sigmoid_2u(x[i]));
}

template <class T>
void gelu_back(const T *x, const T *y_grad, T *x_grad, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        const float v = x[i], s = sigmoid_2u(v);
        const float slope = s + v * s * (1 - s) * 1.5957691216f * (1 + 3 * 0.044715f * v * v);
        x_grad[i] = T(float(y_grad[i]) * slope);
    }
}

// ---- The next token's distribution, by its scores (rows, size), not normalised ----

// log Σ eˣ of each row
void log_sums(const float *scores, int64_t rows, int64_t size, float *out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = scores + row * size;
        float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t v = 0; v < size; v++) top = x[v] > top ? x[v] : top;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < size; v++) sum += exponential(x[v] - top);
        out[row] = top + std::log(sum);
    }
}

// ∂/∂x of Σ weight · log p(token): weight (1[token] − p)
void log_prob_back(const float *scores, const float *log_sum, const int64_t *tokens, const float *weights, int64_t rows,
                   int64_t size, float *grad, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = scores + row * size, weight = weights[row], normaliser = log_sum[row];
        float *out = grad + row * size;
        for (int64_t v = 0; v < size; v++) out[v] = -weight * exponential(x[v] - normaliser);
        out[tokens[row]] += weight;
    }
}

// A token a row where the cumulative distribution exceeds `uniform`, and its log-probability.
void draw(const float *scores, const double *uniform, int64_t rows, int64_t size, int64_t *tokens, float *log_probs,
          int threads) {
    const int64_t blocks = padded(size) / LANES;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> p(blocks * LANES, 0), sums(blocks);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            const float *x = scores + row * size;
            float top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
            for (int64_t v = 0; v < size; v++) top = x[v] > top ? x[v] : top;
            for (int64_t v = 0; v < size; v++) p[v] = exponential(x[v] - top);
            for (int64_t b = 0; b < blocks; b++) {
                float sum = 0;
                for (int i = 0; i < LANES; i++) sum += p[b * LANES + i];
                total += sums[b] = sum;
            }
            const double target = std::min(uniform[row], 1 - 0x1p-24) * total;
            // the block, and in it the token; whatever is rounded, one that has a probability
            float before = 0;
            int64_t token = -1;
            for (int64_t b = 0; b < blocks && token < 0; b++) {
                if (before + sums[b] <= target) {
                    before += sums[b];
                    continue;
                }
                for (int64_t v = b * LANES; v < (b + 1) * LANES && token < 0; v++) {
                    before += p[v];
                    if (before > target) token = v;
                }
            }
            for (int64_t v = size - 1; v > 0 && token < 0; v--)
                if (p[v] > 0) token = v;
            tokens[row] = token < 0 ? 0 : token;  // of numbers that are none, too
            log_probs[row] = x[tokens[row]] - top - std::log(total);
        }
    }
}

}  // namespace

// ---- What Python calls, for what is stored: float, or with -DBFLOAT16 that ----

#ifdef BFLOAT16
typedef bfloat16 T;
#else
typedef float T;
#endif

#define WITH_WIDTH(FUNCTION, ...) \
    switch (width) { \
        case 16: return FUNCTION<T, 16>(__VA_ARGS__); \
        case 32: return FUNCTION<T, 32>(__VA_ARGS__); \
        case 64: return FUNCTION<T, 64>(__VA_ARGS__); \
        case 128: return FUNCTION<T, 128>(__VA_ARGS__); \
    }

extern "C" {

void nlf_attend_steps(int64_t width, const T *qkv, T *store, int64_t capacity, const float *bias, int64_t bias_row,
                      T *out, int64_t rows, int64_t heads, int64_t kv_heads, int64_t columns, int threads) {
    WITH_WIDTH(attend_steps, qkv, store, capacity, bias, bias_row, out, rows, heads, kv_heads, columns, threads)
}

void nlf_attend_spans(int64_t width, const T *qkv, const Span *spans, int64_t count, int64_t heads, int64_t kv_heads,
                      T *out, float *log_sums, int threads) {
    WITH_WIDTH(attend_spans, qkv, spans, count, heads, kv_heads, out, log_sums, threads)
}

void nlf_attend_spans_back(int64_t width, const T *qkv, const Span *spans, int64_t count, int64_t heads,
                           int64_t kv_heads, const T *out, const float *log_sums, const T *out_grad, float *grad,
                           int threads) {
    WITH_WIDTH(attend_spans_back, qkv, spans, count, heads, kv_heads, out, log_sums, out_grad, grad, threads)
}

void nlf_gelu(const T *x, T *y, int64_t count, int threads) { gelu(x, y, count, threads); }

void nlf_gelu_back(const T *x, const T *y_grad, T *x_grad, int64_t count, int threads) {
    gelu_back(x, y_grad, x_grad, count, threads);
}

void nlf_log_sums(const float *scores, int64_t rows, int64_t size, float *out, int threads) {
    log_sums(scores, rows, size, out, threads);
}

void nlf_log_prob_back(const float *scores, const float *log_sum, const int64_t *tokens, const float *weights,
                       int64_t rows, int64_t size, float *grad, int threads) {
    log_prob_back(scores, log_sum, tokens, weights, rows, size, grad, threads);
}

void nlf_draw(const float *scores, const double *uniform, int64_t rows, int64_t size, int64_t *tokens,
              float *log_probs, int threads) {
    draw(scores, uniform, rows, size, tokens, log_probs, threads);
}

}  // extern "C"
