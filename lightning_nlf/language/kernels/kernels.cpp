// C interface for Python: attention, GELU, norms and next-token functions of language models on a CPU. Tensors are
// float32 or bfloat16 in memory, computations are in float32. Pointers are to whole tensors; strides count elements.

#include "add_norm.h"
#include "attend_spans.h"
#include "attend_steps.h"
#include "gelu.h"
#include "next_token.h"

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
                      T *out, float *statistics, int threads) {
    WITH_WIDTH(attend_spans, qkv, spans, count, heads, kv_heads, out, statistics, threads)
}

void nlf_attend_spans_back(int64_t width, const T *qkv, const Span *spans, int64_t count, int64_t heads,
                           int64_t kv_heads, const T *out, const float *statistics, const T *out_grad, T *grad,
                           int threads) {
    WITH_WIDTH(attend_spans_back, qkv, spans, count, heads, kv_heads, out, statistics, out_grad, grad, threads)
}

void nlf_gelu(const T *x, T *y, int64_t count, int threads) { gelu(x, y, count, threads); }

void nlf_gelu_back(const T *x, const T *y_grad, T *x_grad, int64_t count, int threads) {
    gelu_back(x, y_grad, x_grad, count, threads);
}

void nlf_add_norm(const float *x, const T *y, const float *weight, const float *bias, float eps, int64_t centred,
                  float *sum, T *out, float *means, float *scales, int64_t rows, int64_t width, int threads) {
    add_norm(x, y, weight, bias, eps, centred, sum, out, means, scales, rows, width, threads);
}

void nlf_add_norm_back(const float *sum, const float *weight, int64_t centred, const float *means, const float *scales,
                       const float *sum_grad, const T *out_grad, float *x_grad, T *y_grad, float *weight_grad,
                       float *bias_grad, int64_t rows, int64_t width, int threads) {
    add_norm_back(sum, weight, centred, means, scales, sum_grad, out_grad, x_grad, y_grad, weight_grad, bias_grad, rows,
                  width, threads);
}

void nlf_log_sums(const T *scores, int64_t rows, int64_t size, float *out, int threads) {
    log_sums(scores, rows, size, out, threads);
}

void nlf_log_prob_back(const T *scores, const float *log_sum, const int64_t *tokens, const float *weights, int64_t rows,
                       int64_t size, T *grad, int threads) {
    log_prob_back(scores, log_sum, tokens, weights, rows, size, grad, threads);
}

void nlf_draw(const float *scores, const double *uniform, int64_t rows, int64_t size, int64_t *tokens,
              float *log_probs, int threads) {
    draw(scores, uniform, rows, size, tokens, log_probs, threads);
}

}  // extern "C"
