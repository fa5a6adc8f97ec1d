// Distribution of the next token from unnormalised scores (rows, size).

#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

// log Σ eˣ of each row
template <class T>
void log_sums(const T *scores, int64_t rows, int64_t size, float *out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T *x = scores + row * size;
        float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t v = 0; v < size; v++) top = float(x[v]) > top ? float(x[v]) : top;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < size; v++) sum += exponential(float(x[v]) - top);
        out[row] = top == -INFINITY ? top : top + std::log(sum);
    }
}

// Gradient of Σ weight · log p(token): weight (1[token] − p)
template <class T>
void log_prob_back(const T *scores, const float *log_sum, const int64_t *tokens, const float *weights, int64_t rows,
                   int64_t size, T *grad, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T *x = scores + row * size;
        T *out = grad + row * size;
        const float weight = weights[row], normaliser = log_sum[row];
        for (int64_t v = 0; v < size; v++) out[v] = T(-weight * exponential(float(x[v]) - normaliser));
        const int64_t token = tokens[row];
        out[token] = T(weight * (1 - exponential(float(x[token]) - normaliser)));
    }
}

// Sample the first token of each row at which the cumulative distribution exceeds `uniform`, and its log-probability.
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
            // find the block, then the token in it; rounding must not select a token of probability 0
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
            tokens[row] = token < 0 ? 0 : token;  // also for NaN scores
            log_probs[row] = x[tokens[row]] - top - std::log(total);
        }
    }
}

}  // namespace
