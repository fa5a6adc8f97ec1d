// Add a layer's output to the residual stream, and compute the norm of the sum: LayerNorm (with bias) or RMSNorm.
// T is the type of layer inputs and outputs; the stream itself is float32.

#pragma once

#include <vector>

#include "lanes.h"

namespace {

// sum = x + y, out = (sum - mean) · scale · weight + bias, scale = 1 / √(variance + eps), all (rows, width);
// the mean is 0 for a norm that is not centred.
template <class T>
void add_norm(const float *x, const T *y, const float *weight, const float *bias, float eps, bool centred, float *sum,
              T *out, float *means, float *scales, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = x + row * width;
        const T *more = y + row * width;
        float *s = sum + row * width, mean = 0, variance = 0;
        T *to = out + row * width;
#pragma omp simd reduction(+ : mean)
        for (int64_t d = 0; d < width; d++) {
            s[d] = from[d] + float(more[d]);
            mean += s[d];
        }
        mean = centred ? mean / width : 0;
#pragma omp simd reduction(+ : variance)
        for (int64_t d = 0; d < width; d++) variance += (s[d] - mean) * (s[d] - mean);
        const float scale = 1 / std::sqrt(variance / width + eps);
        if (bias)
            for (int64_t d = 0; d < width; d++) to[d] = T((s[d] - mean) * scale * weight[d] + bias[d]);
        else
            for (int64_t d = 0; d < width; d++) to[d] = T((s[d] - mean) * scale * weight[d]);
        means[row] = mean;
        scales[row] = scale;
    }
}

// Gradients, with g = ∂/∂out · weight and z = (sum - mean) · scale:
// ∂/∂sum = incoming ∂/∂sum (if any) + scale · (g - mean(g) - z · mean(g · z)), where mean(g) is only for centred norms.
// ∂/∂sum is both x_grad and y_grad. weight_grad and bias_grad (if requested) are sums over the rows.
template <class T>
void add_norm_back(const float *sum, const float *weight, bool centred, const float *means, const float *scales,
                   const float *sum_grad, const T *out_grad, float *x_grad, T *y_grad, float *weight_grad,
                   float *bias_grad, int64_t rows, int64_t width, int threads) {
    std::vector<float> partial(2 * width * threads, 0);
#pragma omp parallel for num_threads(threads)
    for (int part = 0; part < threads; part++) {
        float *to_weight = partial.data() + 2 * width * part, *to_bias = to_weight + width;
        for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; row++) {
            const float *s = sum + row * width, mean = means[row], scale = scales[row];
            const T *slope = out_grad + row * width;
            float g_sum = 0, gz_sum = 0;
#pragma omp simd reduction(+ : g_sum, gz_sum)
            for (int64_t d = 0; d < width; d++) {
                const float z = (s[d] - mean) * scale, given = slope[d], g = given * weight[d];
                g_sum += g;
                gz_sum += g * z;
                to_weight[d] += given * z;
                to_bias[d] += given;
            }
            const float g_mean = centred ? g_sum / width : 0, gz_mean = gz_sum / width;
            const float *other = sum_grad ? sum_grad + row * width : nullptr;
            float *to_x = x_grad + row * width;
            T *to_y = y_grad + row * width;
            for (int64_t d = 0; d < width; d++) {
                const float z = (s[d] - mean) * scale;
                const float found = scale * (float(slope[d]) * weight[d] - g_mean - z * gz_mean);
                to_x[d] = other ? other[d] + found : found;
                to_y[d] = T(to_x[d]);
            }
        }
    }
    for (int64_t d = 0; d < width; d++) {
        float of_weight = 0, of_bias = 0;
        for (int part = 0; part < threads; part++) {
            of_weight += partial[2 * width * part + d];
            of_bias += partial[2 * width * part + width + d];
        }
        weight_grad[d] = of_weight;
        if (bias_grad) bias_grad[d] = of_bias;
    }
}

}  // namespace
